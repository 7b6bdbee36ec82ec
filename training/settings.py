"""The settings of data, models and training: frozen, complete, refused when wrong.

Every class here is one section (or part of one) of an experiment file; ``flows/experiment.py`` composes them.
``Profile`` is the other file: on what to train. It is recorded, and it is not part of an experiment's identity.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.losses import Loss

Share = Annotated[float, Field(ge=0, le=1, description="a share between 0 and 1")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Refused(ValueError):
    """The input or the settings are not acceptable; the message says what, where, found, allowed, next move."""

    exit_code = 2


class Settings(BaseModel):
    """A section that is immutable and knows every key it accepts."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# ------------------------------------------------------------------------------------------------ data


class Hub(Settings):
    """A data set of the Hugging Face hub at one commit; its code is never run."""

    name: str = Field(min_length=1)
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    config: str | None = None
    split: str = "train"


class Source(Settings):
    """Records of one origin: ``path`` (a file, a folder, a glob, a saved datasets folder) or ``hub``.

    ``path`` is relative to the experiment file. ``columns`` renames columns of the data: ours → theirs. What follows is
    declared for every row that does not say it itself (``licence`` as an SPDX identifier; ``expires`` and ``collected_at`` as
    ISO 8601 dates; ``subject`` as whom the data are about; ``legal_basis`` as in GDPR Art. 6).
    """

    path: str | None = Field(default=None, min_length=1)
    hub: Hub | None = None
    form: (
        Literal[
            "pairs",
            "transcripts",
            "graded",
            "labelled",
            "completion",
            "messages",
            "conversations",
            "instruction",
            "text",
            "sentences",
        ]
        | None
    ) = None
    columns: dict[str, str] = {}
    licence: str | None = None
    subject: str | None = None
    consent: str | None = None
    legal_basis: str | None = None
    purpose: str | None = None
    expires: str | None = None
    collected_at: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either 'path' (a file, a folder or a glob) or 'hub' (a data set at a commit)")
        return self

    @property
    def name(self) -> str:
        """How messages and provenance call the source."""
        return self.path if self.path is not None else f"hub:{self.hub.name}@{self.hub.revision}" if self.hub else ""


class Holdout(Settings):
    """Preference records that no training step sees: a share of the prompts, or files of their own."""

    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    sources: tuple[Source, ...] = ()

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.share is None) == (not self.sources):
            raise ValueError("give either 'share' (of the prompts) or 'sources' (files of their own)")
        return self


class DataSettings(Settings):
    """What to learn from. Without ``sft`` the warm start learns the preferred completions."""

    preferences: tuple[Source, ...] = Field(min_length=1)
    sft: tuple[Source, ...] = ()
    holdout: Holdout = Holdout(share=0.1)


Action = Literal["stop", "quarantine", "warn"]


class RuleSetting(Settings):
    """What a broken rule leads to. ``at_most``: the share of a part's rows that may break it before that happens.

    Rows that break a ``quarantine`` rule are always put aside; more of them than ``at_most`` stop the run. A ``stop`` rule stops
    the run, and a ``warn`` rule tells, where more than ``at_most`` of the rows break it. In a file ``duplicate: warn`` is short
    for ``duplicate: {action: warn}``; ``at_most`` is then 1 for quarantine and 0 for the others.
    """

    action: Action
    at_most: Share

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"action": value}
        if isinstance(value, dict) and "action" in value and "at_most" not in value:
            return {**value, "at_most": 1.0 if value["action"] == "quarantine" else 0.0}
        return value


class MeasureSetting(Settings):
    """What a number about the whole set that is out of bounds leads to; ``warn`` is short for ``{action: warn}``."""

    action: Literal["stop", "warn"]

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"action": value} if isinstance(value, str) else value


def _rule(action: Action) -> Any:
    return Field(default=RuleSetting(action=action, at_most=1.0 if action == "quarantine" else 0.0))


def _measure(action: Literal["stop", "warn"] = "warn") -> Any:
    return Field(default=MeasureSetting(action=action))


class ValidationSettings(Settings):
    """What happens to a record that breaks a rule, and when there are too many of them.

    The bounds of rules and measures stand behind them; what each says is in ``training.data.rules``.
    """

    # shape
    unreadable: RuleSetting = _rule("quarantine")
    empty_prompt: RuleSetting = _rule("quarantine")
    empty_completion: RuleSetting = _rule("quarantine")
    wrong_roles: RuleSetting = _rule("quarantine")
    too_few_completions: RuleSetting = _rule("quarantine")
    missing_grades: RuleSetting = _rule("quarantine")
    no_preference: RuleSetting = _rule("quarantine")
    identical_completions: RuleSetting = _rule("quarantine")
    # text
    control_characters: RuleSetting = _rule("quarantine")
    replacement_characters: RuleSetting = _rule("quarantine")
    repeated_lines: RuleSetting = _rule("quarantine")
    too_long: RuleSetting = _rule("warn")
    too_many_tokens: RuleSetting = _rule("warn")
    cut: RuleSetting = _rule("quarantine")
    # the same again, and the opposite
    duplicate: RuleSetting = _rule("quarantine")
    near_duplicate: RuleSetting = _rule("quarantine")
    contradiction: RuleSetting = _rule("quarantine")
    in_holdout: RuleSetting = _rule("quarantine")
    contaminated: RuleSetting = _rule("quarantine")
    # people and secrets
    email: RuleSetting = _rule("quarantine")
    phone: RuleSetting = _rule("quarantine")
    card: RuleSetting = _rule("quarantine")
    iban: RuleSetting = _rule("quarantine")
    ip_address: RuleSetting = _rule("quarantine")
    api_key: RuleSetting = _rule("quarantine")
    private_key: RuleSetting = _rule("quarantine")
    # policy
    licence: RuleSetting = _rule("stop")
    no_consent: RuleSetting = _rule("quarantine")
    consent_expired: RuleSetting = _rule("quarantine")
    erased: RuleSetting = _rule("quarantine")
    # the whole set
    label_balance: MeasureSetting = _measure()
    longer_chosen: MeasureSetting = _measure()
    one_model_chosen: MeasureSetting = _measure()
    first_token: MeasureSetting = _measure()
    contamination: MeasureSetting = _measure()
    drift_rows: MeasureSetting = _measure()
    drift_length: MeasureSetting = _measure()
    drift_label: MeasureSetting = _measure()
    drift_source: MeasureSetting = _measure()
    drift_language: MeasureSetting = _measure()

    max_characters: Count = 20_000
    max_repeated_lines: Share = 0.5
    max_cut: Share = 0.5
    near_duplicate_from: Annotated[float, Field(ge=0.5, lt=1)] = 0.8
    contaminated_from: Share = 0.5
    use: str | None = None
    licences: dict[str, tuple[str, ...]] = {}
    min_label_share: Share = 0.1
    max_shortcut: Annotated[float, Field(ge=0.5, le=1)] = 0.9
    max_contamination: Share = 0.0
    max_drift: Positive = 0.25
    max_quarantined: Share = 0.2
    min_records: Count = 1


# ------------------------------------------------------------------------------------------------ model


class NewModel(Settings):
    """A small Llama made from the seed, with a byte-level BPE tokenizer trained on the training text."""

    layers: Count = 3
    hidden: Count = 128
    heads: Count = 4
    vocabulary: Annotated[int, Field(ge=300)] = 1024
    context: Annotated[int, Field(ge=16)] = 256

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError(
                f"hidden ({self.hidden}) must be a multiple of 2 x heads ({self.heads}), so that rotary halves fit"
            )
        return self


class ModelSettings(Settings):
    """The base model: a local directory or a hub id at a commit (``base``), or a small one made here (``new``)."""

    base: str | None = Field(default=None, min_length=1)
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    new: NewModel | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.base is None) == (self.new is None):
            raise ValueError("give either 'base' (a folder, or a hub id with 'revision') or 'new'")
        if self.new is not None and self.revision is not None:
            raise ValueError("'revision' belongs to a hub id in 'base'; a new model has none")
        return self


class LoRA(Settings):
    """Low-rank adapters (arXiv 2106.09685), merged into the weights when the step ends.

    ``rslora`` scales by alpha / sqrt(rank) in place of alpha / rank (arXiv 2312.03732). ``dora`` learns the length of each
    weight's columns apart from their direction (arXiv 2402.09353). ``bits: 4`` holds the base weights in 4-bit NormalFloat
    while the adapters train (QLoRA, arXiv 2305.14314).
    """

    rank: Count = 16
    alpha: Positive = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    rslora: bool = False
    dora: bool = False
    bits: Literal[4] | None = None


# ------------------------------------------------------------------------------------------------ training


class EarlyStop(Settings):
    """Stop when the held-out margin no longer grows; the best weights are the result.

    ``share`` of the training prompts is set aside to be judged on, so that the gate's holdout stays unseen. After every
    ``every`` optimiser steps and at the end the mean margin in nats is taken; training stops after ``patience`` of these
    in a row that exceed the best so far by no more than ``min_gain`` nats.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    every: Count
    patience: Count = 3
    min_gain: Annotated[float, Field(ge=0)] = 0.0


class Optimiser(Settings):
    """AdamW (arXiv 1711.05101) and what one optimiser step sees. Exactly one of ``steps`` and ``epochs``.

    ``weight_decay`` reaches matrices only: biases and the scales of norms are left alone, as is usual.
    """

    steps: Count | None = None
    epochs: Positive | None = None
    batch: Count = 16
    learning_rate: Positive
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Share, Share] = (0.9, 0.95)
    epsilon: Positive = 1e-8
    max_grad_norm: Positive = 1.0
    max_tokens: Annotated[int, Field(ge=8)] = 1024
    lora: LoRA | None = None
    early_stop: EarlyStop | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either 'steps' or 'epochs'")
        return self


class SFTSettings(Optimiser):
    """Supervised warm start: the mean negative log-likelihood of completion tokens."""


class Term(Settings):
    """A loss that is mixed in: ``coefficient`` times its weighted mean is added."""

    coefficient: Positive
    loss: Loss


class PreferenceSettings(Optimiser):
    """Preference optimization. ``batch`` counts prompts, each with all its completions.

    ``mix`` adds more losses to ``loss``. ``desirable_from`` is the score from which a completion is rated desirable;
    without it the middle between a prompt's best and worst score decides.
    ``sft_weight`` is RPO's alpha (arXiv 2404.19733): that much of the preferred completion's mean-token NLL is added.
    ``replay`` SFT rows stand beside the prompts of every step; ``replay_weight`` times their mean NLL is added.
    """

    loss: Loss
    mix: tuple[Term, ...] = ()
    desirable_from: float | None = None
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    replay: Annotated[int, Field(ge=0)] = 0
    replay_weight: Positive = 1.0

    @property
    def terms(self) -> tuple[Term, ...]:
        """The loss and what is mixed into it."""
        return (Term(coefficient=1.0, loss=self.loss), *self.mix)


# ------------------------------------------------------------------------------------------------ profile


class Limits(Settings):
    """Minutes after which a step is stopped (its checkpoint stays)."""

    sft: Positive = 1440.0
    preference: Positive = 1440.0
    benchmarks: Positive = 720.0


class Profile(Settings):
    """On what to train. All but ``checkpoint_seconds`` and ``minutes`` can change bits, so steps record it.

    ``bfloat16`` multiplies matrices in bfloat16 (autocast); weights, sums and the optimiser stay float32.
    ``pure-bfloat16`` holds weights, gradients and optimiser state in bfloat16 too: half the memory, but with 8 bits of
    precision an update below about 1/256 of its weight is lost to rounding.
    ``strategy`` matters for several processes: ``ddp`` keeps the whole model in each; ``fsdp`` (FSDP2) keeps a share of
    weights, gradients and optimiser state in each. ``activation_checkpointing`` computes activations again in the backward
    pass: less memory, about a third more time.
    ``layout`` is how rows are laid out: each prompt once with its completions as branches (``shared``), each completion
    with its own prompt and no padding (``packed``), or rows padded to one length (``padded``).
    """

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16", "pure-bfloat16"] = "float32"
    processes: Count = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    activation_checkpointing: bool = False
    layout: Literal["shared", "packed", "padded"] = "shared"
    threads: Count = 2
    token_budget: Annotated[int, Field(ge=64)] = 8192
    checkpoint_seconds: Positive = 60.0
    minutes: Limits = Limits()
