"""Simple Preference Optimization, Meng et al., arXiv 2405.14734.

    loss = -log sigmoid(beta (l(y_w) / |y_w| - l(y_l) / |y_l|) - gamma)

Reference-free. ``gamma`` stands outside of beta, as in the paper; its code asks for gamma / beta instead.
"""

from typing import TYPE_CHECKING, Literal

from training.losses.base import LossSettings, NotNegative, PairLogps, Positive

if TYPE_CHECKING:
    from torch import Tensor


class SimPO(LossSettings):
    """SimPO (arXiv 2405.14734), reference-free; ``gamma`` is the margin that is asked for, in units of beta * nats."""

    view = "pairs"
    needs_reference = False

    name: Literal["simpo"] = "simpo"
    beta: Positive = 2.0
    gamma: NotNegative = 0.5

    def __call__(self, policy: PairLogps, reference: None = None) -> "Tensor":
        """Per-pair loss in nats, shape (batch,)."""
        from torch.nn.functional import logsigmoid

        return -logsigmoid(self.beta * (policy.chosen.mean - policy.rejected.mean) - self.gamma)
