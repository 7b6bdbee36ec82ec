"""Anchored Preference Optimization, APO-zero, D'Oosterlinck et al., arXiv 2408.06266.

    loss = (1 - sigmoid(beta r(y_w))) + sigmoid(beta r(y_l))

Each completion is moved against the reference, not against the other one: the chosen one up, the rejected one down.
For data that are better than the policy.
"""

from typing import TYPE_CHECKING, Literal

from training.losses.base import LossSettings, PairLogps, Positive

if TYPE_CHECKING:
    from torch import Tensor


class APOZero(LossSettings):
    """APO-zero (arXiv 2408.06266): the chosen likelihood rises, the rejected one falls."""

    view = "pairs"
    needs_reference = True

    name: Literal["apo_zero"] = "apo_zero"
    beta: Positive = 0.1

    def __call__(self, policy: PairLogps, reference: PairLogps) -> "Tensor":
        """Per-pair loss, no unit, shape (batch,), between 0 and 2."""
        from torch import sigmoid

        r_w = policy.chosen.total - reference.chosen.total
        r_l = policy.rejected.total - reference.rejected.total
        return sigmoid(-self.beta * r_w) + sigmoid(self.beta * r_l)
