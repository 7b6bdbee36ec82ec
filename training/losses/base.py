"""What every preference loss shares: the log-probabilities that it reads, by view, and the settings class that it is.

A view is how data is seen: pairs (better, worse), ratings (desirable or not), rankings (K completions with grades).
Notation in all files of this folder: l(y) is the summed log-probability of a completion in nats, its closing
end-of-turn token included; |y| its length in tokens; r(y) = l_policy(y) - l_reference(y).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
View = Literal["pairs", "ratings", "rankings"]


@dataclass(frozen=True)
class Logps:
    """Completion log-probabilities, float32: ``total`` in nats, ``length`` in tokens, EOS included; of one shape."""

    total: "Tensor"
    length: "Tensor"

    @property
    def mean(self) -> "Tensor":
        """Nats per token, of the same shape."""
        return self.total / self.length


@dataclass(frozen=True)
class PairLogps:
    """Logps of the chosen and the rejected completion of each pair, each of shape (batch,).

    ``gap`` (batch,) is the score of the chosen minus that of the rejected one, in the data's units; None without scores.
    """

    chosen: Logps
    rejected: Logps
    gap: "Tensor | None" = None


@dataclass(frozen=True)
class RatedLogps:
    """Logps of single completions, shape (batch,), and whether each is ``desirable`` (bool, shape (batch,)).

    ``baseline`` is KTO's z, a detached scalar in nats over the global batch; None where no loss needs it.
    """

    completions: Logps
    desirable: "Tensor"
    baseline: "Tensor | None" = None


@dataclass(frozen=True)
class RankedLogps:
    """Logps of K completions per prompt, shape (batch, K), and their ``grade`` (batch, K): more is better.

    Prompts with fewer completions are filled up: there ``grade`` is -inf, ``total`` 0 and ``length`` 1. The order of the
    completions means nothing; equal grades are ties.
    """

    completions: Logps
    grade: "Tensor"


class LossSettings(BaseModel):
    """A loss: its fields are the paper's constants, its call is the paper's equation, one value per example.

    ``needs_scores``: grades must be scores, whose differences mean something; ranks or labels will not do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    view: ClassVar[View]
    needs_reference: ClassVar[bool]
    needs_scores: ClassVar[bool] = False
    needs_baseline: ClassVar[bool] = False

    @property
    def reward_scale(self) -> float:
        """The coefficient of the KL term, by which a log-ratio becomes an implicit reward; 1 where there is none."""
        return float(getattr(self, "beta", 1.0)) if self.needs_reference else 1.0
