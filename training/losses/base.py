"""What every preference loss shares: the log-probabilities it reads and the settings class it is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Logps:
    """Completion log-probabilities, float32: ``total`` (batch,) in nats, ``length`` (batch,) in tokens, EOS included."""

    total: "Tensor"
    length: "Tensor"

    @property
    def mean(self) -> "Tensor":
        """Nats per token, shape (batch,)."""
        return self.total / self.length


@dataclass(frozen=True)
class PairLogps:
    """Logps of the chosen and the rejected completion of each pair, each of shape (batch,)."""

    chosen: Logps
    rejected: Logps


class LossSettings(BaseModel):
    """A loss: its fields are the paper's constants, its call is the paper's equation, one value per example."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    view: ClassVar[Literal["pairs", "ratings", "rankings"]]
    needs_reference: ClassVar[bool]
