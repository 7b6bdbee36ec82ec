"""Kahneman-Tversky Optimization, Ethayarajh et al., arXiv 2402.01306.

    desirable:      loss = lambda_D (1 - sigmoid(beta (r(y) - z)))
    undesirable:    loss = lambda_U (1 - sigmoid(beta (z - r(y))))

    z = max(0, mean_i r(x_i, y_(i+1)))

z estimates KL(policy || reference) from completions under prompts that they do not belong to. It is no path of the
gradient, it is averaged over the whole global batch, and it is clamped after that mean.
"""

from typing import TYPE_CHECKING, Literal

from training.losses.base import LossSettings, Positive, RatedLogps

if TYPE_CHECKING:
    from torch import Tensor


class KTO(LossSettings):
    """KTO (arXiv 2402.01306) over single completions, each desirable or not.

    The paper advises lambda_D n_D / (lambda_U n_U) between 1 and 4/3, n being the numbers of ratings.
    """

    view = "ratings"
    needs_reference = True
    needs_baseline = True

    name: Literal["kto"] = "kto"
    beta: Positive = 0.1
    lambda_desirable: Positive = 1.0
    lambda_undesirable: Positive = 1.0

    def __call__(self, policy: RatedLogps, reference: RatedLogps) -> "Tensor":
        """Per-rating loss, no unit, shape (batch,), between 0 and its lambda. ``policy.baseline`` is z."""
        from torch import sigmoid, where

        assert policy.baseline is not None
        excess = self.beta * (policy.completions.total - reference.completions.total - policy.baseline)
        # 1 - sigmoid(x) = sigmoid(-x), which keeps its digits where sigmoid(x) rounds to 1.
        return where(
            policy.desirable, self.lambda_desirable * sigmoid(-excess), self.lambda_undesirable * sigmoid(excess)
        )


def baseline(log_ratios: "Tensor") -> "Tensor":
    """z: a detached scalar in nats, never negative, of all mismatched log-ratios r of the global batch (any shape)."""
    return log_ratios.detach().mean().clamp(min=0)
