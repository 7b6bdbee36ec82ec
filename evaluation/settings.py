"""The settings of benchmarks and of the gate: frozen, complete, refused when wrong."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
MetricName = Annotated[str, Field(pattern=r"^[^/\s]+/[^/\s]+$", description="benchmark/metric, as the table prints it")]


class Refused(ValueError):
    """The input or the settings are not acceptable; the message says what, where, found, allowed, next move."""

    exit_code = 2


class Settings(BaseModel):
    """A section that is immutable and knows every key it accepts."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class SampleSettings(Settings):
    """Greedy generations on held-out prompts, for the side-by-side table and the collapse guard."""

    prompts: Count = 64
    max_new_tokens: Count = 128


class BenchmarkSettings(Settings):
    """lm-evaluation-harness benchmarks: built in, or YAML files in the folder ``include``."""

    include: str | None = Field(default=None, min_length=1)
    names: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    limit: Count | None = None
    batch_size: Count = 32
    chat_template: bool = True
    samples: SampleSettings = SampleSettings()


class Improve(Settings):
    """The challenger must be better than the champion by more than ``margin``, at the gate's alpha."""

    metric: MetricName
    margin: Annotated[float, Field(ge=0)] = 0.0


class Guard(Settings):
    """The challenger must not be worse than the champion by ``margin`` or more (non-inferiority, at the gate's alpha).

    A challenger that agrees with the champion on every item passes.
    """

    metric: MetricName
    margin: Annotated[float, Field(gt=0)]


class Floor(Settings):
    """The challenger must reach ``minimum``, whoever is champion."""

    metric: MetricName
    minimum: float


class Collapse(Settings):
    """Shares of held-out generations above which a model counts as collapsed, whatever its preference accuracy.

    ``max_chosen_fall``: nats per token by which the chosen completions may become less likely than at the warm start.
    """

    max_empty: Share = 0.02
    max_repetitive: Share = 0.1
    max_unfinished: Share = 0.3
    max_identical: Share = 0.5
    max_chosen_fall: Annotated[float, Field(ge=0)] = 0.5


class GateSettings(Settings):
    """The promotion rule. ``collapse: null`` turns the collapse guard off and needs ``collapse_off_reason``."""

    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    improve: tuple[Improve, ...] = ()
    guards: tuple[Guard, ...] = ()
    floors: tuple[Floor, ...] = ()
    collapse: Collapse | None = Collapse()
    collapse_off_reason: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _a_guard_is_not_turned_off_silently(self) -> "GateSettings":
        if self.collapse is None and self.collapse_off_reason is None:
            raise ValueError("collapse: null turns the collapse guard off; say why in collapse_off_reason")
        if self.collapse is not None and self.collapse_off_reason is not None:
            raise ValueError(
                "collapse_off_reason is given but the collapse guard is on; remove it or set collapse: null"
            )
        return self
