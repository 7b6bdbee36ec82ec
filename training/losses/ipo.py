"""Identity Preference Optimization, Azar et al., arXiv 2310.12036, equation 17.

    loss = (r(y_w) / |y_w| - r(y_l) / |y_l| - 1 / (2 tau))^2

Equation 17 as printed has r without the division by length. Its authors later confirmed that the log-probabilities are
to be averaged over tokens, or tau would mean something else at every length: TRL pull request 1265
(https://github.com/huggingface/trl/pull/1265) and https://huggingface.co/blog/pref-tuning.
"""

from typing import TYPE_CHECKING, Literal

from training.losses.base import LossSettings, PairLogps, Positive

if TYPE_CHECKING:
    from torch import Tensor


class IPO(LossSettings):
    """IPO: the difference of log-ratios is regressed to 1 / (2 tau).

    ``average`` divides each log-ratio by the tokens of its own completion. The paper (arXiv 2310.12036, equation 17) does
    not write this; its authors confirmed it (TRL pull request 1265). False is the equation as printed.
    """

    view = "pairs"
    needs_reference = True

    name: Literal["ipo"] = "ipo"
    tau: Positive = 0.1
    average: bool = True

    @property
    def reward_scale(self) -> float:
        """tau, the coefficient of the KL term in the paper's objective."""
        return self.tau

    def __call__(self, policy: PairLogps, reference: PairLogps) -> "Tensor":
        """Per-pair loss in squared nats (per squared token with ``average``), shape (batch,)."""
        r_w = policy.chosen.total - reference.chosen.total
        r_l = policy.rejected.total - reference.rejected.total
        if self.average:
            r_w, r_l = r_w / policy.chosen.length, r_l / policy.rejected.length
        return (r_w - r_l - 1 / (2 * self.tau)) ** 2
