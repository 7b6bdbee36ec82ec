"""Anchored Preference Optimization, APO-down, D'Oosterlinck et al., arXiv 2408.06266.

    loss = sigmoid(beta r(y_w)) + (1 - sigmoid(beta * D))

Both completions are moved down, the rejected one further. For a policy that is better than its data.
"""

from typing import TYPE_CHECKING, Literal

from training.losses.base import LossSettings, PairLogps, Positive

if TYPE_CHECKING:
    from torch import Tensor


class APODown(LossSettings):
    """APO-down (arXiv 2408.06266): both likelihoods fall, the rejected one more."""

    view = "pairs"
    needs_reference = True

    name: Literal["apo_down"] = "apo_down"
    beta: Positive = 0.1

    def __call__(self, policy: PairLogps, reference: PairLogps) -> "Tensor":
        """Per-pair loss, no unit, shape (batch,), between 0 and 2."""
        from torch import sigmoid

        r_w = policy.chosen.total - reference.chosen.total
        r_l = policy.rejected.total - reference.rejected.total
        return sigmoid(self.beta * r_w) + sigmoid(-self.beta * (r_w - r_l))
