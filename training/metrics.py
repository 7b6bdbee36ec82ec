"""What is reported of a batch: one definition, whatever the loss, computed from log-ratios and never inside of a loss.

Names as in TRL and the DPO authors' code. A reward is ``scale * r(y)`` with r the log-ratio of policy and reference in
nats and ``scale`` the coefficient of the loss's KL term; without a reference r is the log-probability itself.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.data import views
from training.data.encode import Encoded
from training.losses.base import Logps, PairLogps
from training.settings import Profile

if TYPE_CHECKING:
    from torch import Tensor


def pair_metrics(policy: PairLogps, reference: PairLogps | None, scale: float) -> dict[str, "Tensor"]:
    """Per-pair values, shape (batch,). A tie of the two rewards counts one half in the accuracy."""

    def reward(own: Logps, other: Logps | None) -> "Tensor":
        return scale * (own.total - other.total if other is not None else own.total).detach()

    chosen = reward(policy.chosen, reference.chosen if reference else None)
    rejected = reward(policy.rejected, reference.rejected if reference else None)
    margin = chosen - rejected
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margin,
        "rewards/accuracies": (margin > 0).float() + 0.5 * (margin == 0).float(),
        "logps/chosen": policy.chosen.total.detach(),
        "logps/rejected": policy.rejected.total.detach(),
    }


def rating_metrics(total: "Tensor", reference: "Tensor | None", scale: float) -> dict[str, "Tensor"]:
    """Values of single completions, shape (batch,): what stands under "chosen" where desirable, else under "rejected"."""
    reward = scale * (total - reference if reference is not None else total).detach()
    return {"rewards": reward, "logps": total.detach()}


def data_facts(rows: Sequence[Encoded]) -> dict[str, int]:
    """How many prompts, completions, pairs; tokens as they are shared, with prompts repeated, and padded row by row."""
    return {
        "completions": sum(len(row.completions) for row in rows),
        "pairs": _count(views.pairs(row) for row in rows),
        "tokens_unique": sum(row.unique for row in rows),
        "tokens_repeated": sum(row.repeated for row in rows),
    }


def _count(found: Iterable[Sequence[object]]) -> int:
    return sum(len(items) for items in found)


# ------------------------------------------------------------------------------------------------ the FLOP floor

# Floating-point operations per token and weight: one product forward; backward one for the inputs, one for the weights.
FORWARD, BACKWARD_INPUTS, BACKWARD_WEIGHTS = 2, 2, 2


@dataclass(frozen=True)
class Sizes:
    """Weights that a token is multiplied with: ``body`` in the layers, ``head`` in the output head (for tokens that are
    predicted). ``frozen``: whether only adapters are trained, so that no gradient of these weights is needed."""

    body: int
    head: int
    frozen: bool = False


def model_sizes(model: Any) -> Sizes:
    """The sizes of a transformers or peft model. Tables that are only looked up in count nothing, nor do adapters."""
    import torch

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = plain.get_output_embeddings()
    apart = {id(module.weight) for module in plain.modules() if isinstance(module, torch.nn.Embedding)}
    apart.add(id(getattr(head, "weight", None)))
    body = [
        parameter
        for name, parameter in plain.named_parameters()
        if parameter.ndim > 1 and id(parameter) not in apart and "lora_" not in name
    ]
    frozen = not any(parameter.requires_grad for parameter in body)
    return Sizes(sum(map(_weights, body)), 0 if head is None else head.weight.numel(), frozen)


def _weights(parameter: Any) -> int:
    """Numbers that a matrix stands for: a quantised one is stored packed."""
    packed = getattr(parameter, "quant_state", None)
    return int(packed.shape.numel() if packed is not None else parameter.numel())


def floor_flops(rows: Iterable[Encoded], sizes: Sizes, trained: bool = True) -> float:
    """The least arithmetic that ``rows`` need: every prompt once, the head for completion tokens only, attention left out.

    6 operations per weight and token; 4 where the weights are frozen; 2 where the rows are only scored (not ``trained``).
    """
    per_weight = FORWARD
    if trained:
        per_weight += BACKWARD_INPUTS + (0 if sizes.frozen else BACKWARD_WEIGHTS)
    body = head = 0
    for row in rows:
        body += row.unique
        head += sum(len(completion) for completion in row.completions)
    return float(per_weight * (sizes.body * body + sizes.head * head))


def measured_peak(profile: Profile, seconds: float = 0.1) -> float:
    """FLOP/s that this process reaches now: the fastest of several matrix products in the dtype of training.

    Draws no random number and changes no setting, so that nothing which decides bits is touched.
    """
    import torch

    size = 4096 if profile.device == "cuda" else 512
    dtype = torch.float32 if profile.dtype == "float32" else torch.bfloat16
    # Not all the same number: a GPU multiplies those faster than it can multiply weights.
    matrix = (torch.arange(size * size, device=profile.device).reshape(size, size) % 17 - 8).to(dtype)

    def product() -> float:
        began = time.perf_counter()
        matrix @ matrix
        if profile.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    product()  # the first one also loads kernels
    best, end = product(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, product())
    return 2.0 * size**3 / best
