"""Hinge loss over implicit rewards: hinge-norm of RSO, Liu et al., arXiv 2309.06657.

    loss = max(0, 1 - beta * D)

``beta`` is the paper's gamma. It is SLiC's calibration (arXiv 2305.10425) normalised by the reference.
"""

from typing import TYPE_CHECKING, Literal

from training.losses.base import LossSettings, PairLogps, Positive

if TYPE_CHECKING:
    from torch import Tensor


class Hinge(LossSettings):
    """Hinge-norm (arXiv 2309.06657): no gradient from a pair whose margin exceeds 1."""

    view = "pairs"
    needs_reference = True

    name: Literal["hinge"] = "hinge"
    beta: Positive = 0.1

    def __call__(self, policy: PairLogps, reference: PairLogps) -> "Tensor":
        """Per-pair loss, no unit, shape (batch,)."""
        r_w = policy.chosen.total - reference.chosen.total
        r_l = policy.rejected.total - reference.rejected.total
        return (1 - self.beta * (r_w - r_l)).relu()
