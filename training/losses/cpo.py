"""Contrastive Preference Optimization, Xu et al., arXiv 2401.08417.

    loss = -log sigmoid(beta (l(y_w) - l(y_l))) + alpha NLL(y_w)

Reference-free: dpo with a uniform reference. The NLL is the sum over the completion's tokens, as in the paper
(whose alpha is 1); TRL averages it over the tokens.
"""

from typing import TYPE_CHECKING, Literal

from training.losses.base import LossSettings, NotNegative, PairLogps, Positive

if TYPE_CHECKING:
    from torch import Tensor


class CPO(LossSettings):
    """CPO (arXiv 2401.08417), reference-free; ``alpha`` weighs the summed NLL of the chosen completion."""

    view = "pairs"
    needs_reference = False

    name: Literal["cpo"] = "cpo"
    beta: Positive = 0.1
    alpha: NotNegative = 1.0

    def __call__(self, policy: PairLogps, reference: None = None) -> "Tensor":
        """Per-pair loss in nats, shape (batch,)."""
        from torch.nn.functional import logsigmoid

        l_w, l_l = policy.chosen.total, policy.rejected.total
        return -logsigmoid(self.beta * (l_w - l_l)) - self.alpha * l_w
