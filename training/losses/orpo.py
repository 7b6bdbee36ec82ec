"""Odds Ratio Preference Optimization, Hong et al., arXiv 2403.07691.

    loss = NLL(y_w) / |y_w| - lambda log sigmoid(a(y_w) - a(y_l))
    a(y) = log odds(y) = m - log(1 - e^m),    m = l(y) / |y|

Reference-free. The NLL runs over the completion's tokens only, not over the prompt's. TRL calls lambda ``beta``.
"""

from typing import TYPE_CHECKING, Literal

from training.losses.base import Logps, LossSettings, PairLogps, Positive
from training.losses.stable import log1mexp

if TYPE_CHECKING:
    from torch import Tensor


class ORPO(LossSettings):
    """ORPO (arXiv 2403.07691), reference-free: SFT on the chosen completion and ``lambda_`` times the log-odds term."""

    view = "pairs"
    needs_reference = False

    name: Literal["orpo"] = "orpo"
    lambda_: Positive = 0.1

    def __call__(self, policy: PairLogps, reference: None = None) -> "Tensor":
        """Per-pair loss in nats per token, shape (batch,)."""
        from torch.nn.functional import logsigmoid

        log_odds_ratio = _log_odds(policy.chosen) - _log_odds(policy.rejected)
        return -policy.chosen.mean - self.lambda_ * logsigmoid(log_odds_ratio)


def _log_odds(completion: Logps) -> "Tensor":
    """a(y), finite up to m = 0: there the odds saturate at 1 / epsilon of the dtype, and the gradient in m at 1."""
    from torch import finfo

    m = completion.mean
    return m - log1mexp(m.clamp(max=-finfo(m.dtype).eps))
