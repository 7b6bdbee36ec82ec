"""The settings of data and their validation: where records come from, what is declared of them, what is done about faults."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from training.strict import Count, Positive, Settings, Share


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
    columns: dict[str, str] = Field(default_factory=dict)
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
    licences: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    min_label_share: Share = 0.1
    max_shortcut: Annotated[float, Field(ge=0.5, le=1)] = 0.9
    max_contamination: Share = 0.0
    max_drift: Positive = 0.25
    max_quarantined: Share = 0.2
    min_records: Count = 1
