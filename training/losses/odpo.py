"""DPO with an offset (ODPO), Amini et al., arXiv 2402.10571.

    loss = -log sigmoid(beta * D - alpha f(s_w - s_l))

s are the scores of the completions, and f grows: the better the chosen one was, the larger the margin that is asked for.
The paper's f is the logarithm, by which a difference of scores below 1 asks for less than dpo does; the identity takes
it as it is.
"""

from typing import TYPE_CHECKING, Literal

from training.losses.base import LossSettings, NotNegative, PairLogps, Positive

if TYPE_CHECKING:
    from torch import Tensor


class ODPO(LossSettings):
    """ODPO (arXiv 2402.10571): needs scores whose differences mean something.

    ``f`` is "log" (the paper's) or "identity". Under "log" a pair without a positive gap has the offset of the smallest
    normal number, so that it is finite and teaches (almost) nothing, which is the limit of the equation.
    """

    view = "pairs"
    needs_reference = True
    needs_scores = True

    name: Literal["odpo"] = "odpo"
    beta: Positive = 0.1
    alpha: NotNegative = 1.0
    f: Literal["log", "identity"] = "log"

    def __call__(self, policy: PairLogps, reference: PairLogps) -> "Tensor":
        """Per-pair loss in nats, shape (batch,). ``policy.gap`` is s_w - s_l."""
        from torch import finfo
        from torch.nn.functional import logsigmoid

        assert policy.gap is not None
        r_w = policy.chosen.total - reference.chosen.total
        r_l = policy.rejected.total - reference.rejected.total
        gap = policy.gap
        offset = self.alpha * (gap.clamp(min=finfo(gap.dtype).tiny).log() if self.f == "log" else gap)
        return -logsigmoid(self.beta * (r_w - r_l) - offset)
