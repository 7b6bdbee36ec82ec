"""What is reported of a batch of pairs: one definition, whatever the loss (names as in TRL and the DPO authors' code)."""

from typing import TYPE_CHECKING

from training.losses.base import PairLogps

if TYPE_CHECKING:
    from torch import Tensor


def pair_metrics(policy: PairLogps, reference: PairLogps, beta: float) -> dict[str, "Tensor"]:
    """Per-pair values, shape (batch,). Rewards are ``beta * r`` with r the log-ratio in nats; a tie counts one half."""
    chosen = beta * (policy.chosen.total - reference.chosen.total).detach()
    rejected = beta * (policy.rejected.total - reference.rejected.total).detach()
    margin = chosen - rejected
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margin,
        "rewards/accuracies": (margin > 0).float() + 0.5 * (margin == 0).float(),
        "logps/chosen": policy.chosen.total.detach(),
        "logps/rejected": policy.rejected.total.detach(),
    }
