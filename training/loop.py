"""The one optimiser loop, for the warm start and for preferences.

What differs between the two is an ``Objective``: which rows a step sees and what their loss is. Everything else is
here: AdamW, schedule, clipping, mixed precision, checkpoints, events, the stop on a number that is none.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from training import checkpoint
from training.settings import Optimiser, Profile

if TYPE_CHECKING:
    from torch import Tensor

Log = Callable[[dict[str, Any]], None]
KEEP_CHECKPOINTS = 2


@dataclass(frozen=True)
class Part:
    """One micro-batch's share of a step: ``loss`` is already divided by the step's whole weight, so parts just add.

    ``sums`` are added over the parts of a step and reported; ``tokens`` are those that the forward pass computed.
    """

    loss: "Tensor"
    sums: dict[str, float]
    tokens: int


class Objective(Protocol):
    """What is trained on: ``parts`` yields a step's micro-batches one after the other, ``records`` names its rows."""

    steps: int

    def parts(self, model: Any, step: int) -> Iterator[Part]: ...

    def records(self, step: int) -> list[str]: ...


class Diverged(RuntimeError):
    """Loss or gradient is no number; the message names the step, its records and the last checkpoint."""


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


def step_seed(seed: int, step: int) -> int:
    """The random seed of one step (dropout): a pure function, so that a resume needs no generator state."""
    return (seed * 1_000_003 + step * 7_919 + 1) % 2**31


def train(
    model: Any,
    objective: Objective,
    settings: Optimiser,
    profile: Profile,
    seed: int,
    name: str,
    folder: Path,
    log: Log,
) -> Any:
    """Train the parameters of ``model`` that require gradients and return it.

    ``name`` is the objective's digest and ``folder`` holds its checkpoints: training goes on from the newest.
    Raises Diverged on a loss or gradient that is not finite, ValueError on a foreign checkpoint.
    """
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(
        mixed_precision="bf16" if profile.dtype == "bfloat16" else "no", cpu=profile.device == "cpu"
    )
    parameters = {key: value for key, value in model.named_parameters() if value.requires_grad}
    optimiser = torch.optim.AdamW(
        parameters.values(),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        foreach=True,
    )
    first = _restore(folder, name, parameters, optimiser, log)
    model, optimiser = accelerator.prepare(model, optimiser)
    model.train()
    saved = time.monotonic()
    for step in range(first, objective.steps):
        began = time.monotonic()
        torch.manual_seed(step_seed(seed, step))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(settings, step, objective.steps)
        sums: dict[str, float] = {}
        tokens = 0
        for part in objective.parts(model, step):
            accelerator.backward(part.loss)
            tokens += part.tokens
            for key, value in {"loss": float(part.loss.detach()), **part.sums}.items():
                sums[key] = sums.get(key, 0.0) + value
        norm = float(accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm))
        if not (math.isfinite(sums["loss"]) and math.isfinite(norm)):
            raise Diverged(_divergence(step, sums["loss"], norm, objective.records(step), first, folder))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seconds = time.monotonic() - began
        sums |= {"grad_norm": norm, "learning_rate": optimiser.param_groups[0]["lr"]}
        log({"type": "metrics", "step": step + 1, "total": objective.steps, "metrics": sums, "tokens": tokens,
             "seconds": seconds})  # fmt: skip
        if time.monotonic() - saved >= profile.checkpoint_seconds and step + 1 < objective.steps:
            checkpoint.save(folder, step + 1, name, parameters, _flat(parameters, optimiser), KEEP_CHECKPOINTS)
            log({"type": "milestone", "message": f"checkpoint at step {step + 1} of {objective.steps}"})
            saved = time.monotonic()
    return accelerator.unwrap_model(model)


def _restore(folder: Path, name: str, parameters: dict[str, Any], optimiser: Any, log: Log) -> int:
    import torch

    restored = checkpoint.load_latest(folder, name, log)
    if restored is None:
        return 0
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(restored.weights[key])
    for key, parameter in parameters.items():
        if f"step/{key}" not in restored.optimiser:  # it never had a gradient
            continue
        state = {part: restored.optimiser[f"{part}/{key}"] for part in ("step", "exp_avg", "exp_avg_sq")}
        optimiser.state[parameter] = {
            part: value if part == "step" else value.to(parameter.device) for part, value in state.items()
        }
    log({"type": "milestone", "message": f"goes on from the checkpoint at step {restored.step}"})
    return restored.step


def _flat(parameters: dict[str, Any], optimiser: Any) -> dict[str, Any]:
    """AdamW's state as named tensors."""
    state = optimiser.state
    return {
        f"{part}/{key}": state[parameter][part]
        for key, parameter in parameters.items()
        if parameter in state
        for part in ("step", "exp_avg", "exp_avg_sq")
    }


def _divergence(step: int, loss: float, norm: float, records: list[str], first: int, folder: Path) -> str:
    found = sorted(folder.glob("step-*"))
    last = f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
    return (
        f"step {step + 1}: loss {loss}, gradient norm {norm}; a finite number is needed. Records of the step: "
        f"{', '.join(records)}. Training began at step {first + 1}; {last}. Lower the learning rate or look at these records."
    )
