"""DPO-Positive (Smaug), Pal et al., arXiv 2402.13228.

    loss = -log sigmoid(beta (D - lambda max(0, -r(y_w))))

dpo is content when both likelihoods fall, the rejected one faster. Here a fall of the chosen one below the reference
counts against the margin, ``lambda_`` times.
"""

from typing import TYPE_CHECKING, Literal

from training.losses.base import LossSettings, NotNegative, PairLogps, Positive

if TYPE_CHECKING:
    from torch import Tensor


class DPOP(LossSettings):
    """DPOP (arXiv 2402.13228); the defaults are the paper's beta of 0.3 and lambda of 50."""

    view = "pairs"
    needs_reference = True

    name: Literal["dpop"] = "dpop"
    beta: Positive = 0.3
    lambda_: NotNegative = 50.0

    def __call__(self, policy: PairLogps, reference: PairLogps) -> "Tensor":
        """Per-pair loss in nats, shape (batch,)."""
        from torch.nn.functional import logsigmoid

        r_w = policy.chosen.total - reference.chosen.total
        r_l = policy.rejected.total - reference.rejected.total
        return -logsigmoid(self.beta * (r_w - r_l - self.lambda_ * (-r_w).relu()))
