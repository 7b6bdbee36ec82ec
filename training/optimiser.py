"""AdamW, its schedule, and clipping: the same bits whether parameters are whole or sharded."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from training.settings import Optimiser

if TYPE_CHECKING:
    from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
# Elements that are converted to float64 at once.
_PIECE = 1 << 22
# Elements whose squares float32 adds up without losing small ones.
_FEW = 1 << 14


def learning_rate(settings: Optimiser, step: int, steps: int) -> float:
    """The rate of a 0-based step: linear warm-up over ``warmup`` of all steps, then the schedule down to 0."""
    warm = round(settings.warmup * steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / (warm + 1)
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - warm) / max(1, steps - warm)
    factor = 0.5 * (1 + math.cos(math.pi * done)) if settings.schedule == "cosine" else 1 - done
    return settings.learning_rate * factor


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The random seed of one step in one process (dropout): a pure function, so that a resume needs no generator state."""
    return (seed * 1_000_003 + step * 7_919 + rank * 104_729 + 1) % 2**31


def adamw(parameters: Mapping[str, Any], settings: Optimiser, processes: int = 1) -> Any:
    """AdamW over named parameters, weight decay on matrices only. Its state is there from the start.

    A state that is made in the first step could run out of memory when half of the parameters have moved.
    """
    import torch

    # The fused kernel is four times faster on a CPU, but there it rounds the last few elements of a tensor in another
    # way than the others: a weight would depend on where shards begin.
    fused = processes == 1 or next(iter(parameters.values())).is_cuda

    matrices = [value for value in parameters.values() if value.ndim >= 2]
    others = [value for value in parameters.values() if value.ndim < 2]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((matrices, settings.weight_decay), (others, 0.0))
        if params
    ]
    optimiser = torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=fused,
        foreach=not fused,
    )
    for value in parameters.values():
        optimiser.state[value] = {
            "step": torch.zeros((), dtype=torch.float32, device=value.device),
            **{moment: torch.zeros_like(value, memory_format=torch.preserve_format) for moment in MOMENTS},
        }
    return optimiser


def state_tensors(parameters: Mapping[str, Any], optimiser: Any) -> dict[str, Any]:
    """Weights and AdamW's state by name: ``weights/…``, ``step/…``, ``exp_avg/…``, ``exp_avg_sq/…``; not copied."""
    named = {f"weights/{name}": value.detach() for name, value in parameters.items()}
    for part in ("step", *MOMENTS):
        named |= {f"{part}/{name}": optimiser.state[value][part] for name, value in parameters.items()}
    return named


def local(tensor: Any) -> Any:
    """This process's shard of a sharded tensor; a whole tensor as it is. The memory is shared."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def squared_norm(parameters: Mapping[str, Any], processes: int = 1) -> "Tensor":
    """The sum of squares of all gradients that are here, a float64 scalar.

    In float64, so that the clip coefficient does not depend on how gradients are cut into shards. One process has no
    shards: there pieces so short that float32 loses nothing are three times faster (on a CPU).
    """
    import torch

    gradients = [local(value.grad) for value in parameters.values() if value.grad is not None]
    fast = processes == 1 and all(gradient.dtype == torch.float32 and gradient.is_cpu for gradient in gradients)
    pieces = [piece for gradient in gradients for piece in gradient.flatten().split(_FEW if fast else _PIECE)]
    squares = [
        torch.dot(piece, piece) if fast else torch.linalg.vector_norm(piece, dtype=torch.float64).square()
        for piece in pieces
        if piece.numel()
    ]
    return torch.stack(squares).double().sum() if squares else torch.zeros((), dtype=torch.float64)


def clip(parameters: Mapping[str, Any], norm: float, largest: float) -> None:
    """Scale all gradients by ``largest / norm`` where their norm is larger."""
    import torch

    if norm > largest:
        gradients = [local(value.grad) for value in parameters.values() if value.grad is not None]
        torch._foreach_mul_(gradients, largest / (norm + 1e-6))
