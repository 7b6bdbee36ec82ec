"""Direct Preference Optimization, Rafailov et al., arXiv 2305.18290, equation 7.

    loss = -log sigmoid(beta * D),    D = r(y_w) - r(y_l),    r(y) = l_policy(y) - l_reference(y)

With ``label_smoothing`` epsilon it is Mitchell's conservative DPO (cDPO note, equation 3):

    loss = -(1 - epsilon) log sigmoid(beta * D) - epsilon log sigmoid(-beta * D)
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from training.losses.base import LossSettings, PairLogps, Positive

if TYPE_CHECKING:
    from torch import Tensor


class DPO(LossSettings):
    """DPO (arXiv 2305.18290) over summed log-probabilities.

    ``label_smoothing`` is the probability that a label is wrong.
    """

    view = "pairs"
    needs_reference = True

    name: Literal["dpo"] = "dpo"
    beta: Positive = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0

    def __call__(self, policy: PairLogps, reference: PairLogps) -> "Tensor":
        """Per-pair loss in nats, shape (batch,)."""
        from torch.nn.functional import logsigmoid

        r_w = policy.chosen.total - reference.chosen.total
        r_l = policy.rejected.total - reference.rejected.total
        margin = self.beta * (r_w - r_l)
        return -(1 - self.label_smoothing) * logsigmoid(margin) - self.label_smoothing * logsigmoid(-margin)
