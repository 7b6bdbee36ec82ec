"""Rank Responses to align Human Feedback, Yuan et al., arXiv 2304.05302.

    loss = sum over s_i < s_j of max(0, p_i - p_j) / #pairs + NLL(y_best) / |y_best|,    p = l(y) / |y|

Reference-free. The paper sums over the pairs; the division by their number keeps the two terms in the same proportion
whatever the number of completions. The order is strict: equal grades make no pair. Where several completions share the
best grade, the second term is the mean over them, so that their order means nothing.
"""

import math
from typing import TYPE_CHECKING, Literal

from training.losses.base import LossSettings, RankedLogps

if TYPE_CHECKING:
    from torch import Tensor


class RRHF(LossSettings):
    """RRHF (arXiv 2304.05302), reference-free, over rankings; it has no constants: both terms weigh 1, as in the paper.

    Mind that the ranking term is divided by the number of strictly ordered pairs, which the paper does not do.
    """

    view = "rankings"
    needs_reference = False

    name: Literal["rrhf"] = "rrhf"

    def __call__(self, policy: RankedLogps, reference: None = None) -> "Tensor":
        """Per-ranking loss in nats per token, shape (batch,)."""
        p, grade = policy.completions.mean, policy.grade
        present = grade > -math.inf
        # (batch, i, j): completion i is graded below completion j.
        below = present[:, :, None] & (grade[:, :, None] < grade[:, None, :])
        hinges = (p[:, :, None] - p[:, None, :]).relu() * below
        best = present & (grade == grade.amax(-1, keepdim=True))
        ranking = hinges.sum((1, 2)) / below.sum((1, 2)).clamp(min=1)
        return ranking - (p * best).sum(-1) / best.sum(-1)
