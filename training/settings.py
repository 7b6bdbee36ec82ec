"""The settings of models and training: frozen, complete, refused when wrong (those of data: ``training.data.settings``).

Every class here is one section (or part of one) of an experiment file; ``flows/experiment.py`` composes them.
``Profile`` is the other file: on what to train. It is recorded, and it is not part of an experiment's identity.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from training.losses import Loss
from training.strict import Count, Positive, Settings, Share

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
