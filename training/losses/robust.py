"""Provably robust DPO (rDPO), Ray Chowdhury et al., arXiv 2403.00409.

    loss = [-(1 - epsilon) log sigmoid(beta * D) + epsilon log sigmoid(-beta * D)] / (1 - 2 epsilon)

Over labels that are flipped with probability epsilon its mean is dpo's loss over the true labels. Where cDPO
(``label_smoothing`` of dpo) adds the flipped pair's loss, rDPO subtracts it, so that the loss may be negative.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from training.losses.base import LossSettings, PairLogps, Positive

if TYPE_CHECKING:
    from torch import Tensor


class Robust(LossSettings):
    """rDPO (arXiv 2403.00409); ``label_smoothing`` is the probability epsilon < 1/2 that a label is flipped."""

    view = "pairs"
    needs_reference = True

    name: Literal["robust"] = "robust"
    beta: Positive = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.1

    def __call__(self, policy: PairLogps, reference: PairLogps) -> "Tensor":
        """Per-pair loss in nats, shape (batch,); may be negative."""
        from torch.nn.functional import logsigmoid

        r_w = policy.chosen.total - reference.chosen.total
        r_l = policy.rejected.total - reference.rejected.total
        margin = self.beta * (r_w - r_l)
        epsilon = self.label_smoothing
        return (-(1 - epsilon) * logsigmoid(margin) + epsilon * logsigmoid(-margin)) / (1 - 2 * epsilon)
