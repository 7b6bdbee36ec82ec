"""The one optimiser loop, for the warm start and for preferences, in one or several processes.

What differs between the two is an ``Objective``: which rows a step sees and what their loss is. Everything else is
here: the optimiser's step, checkpoints, events, and what happens when a number is none, memory runs out, or the policy
has stopped to get better.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from training import budget, checkpoint
from training.early_stop import Patience
from training.metrics import measured_peak
from training.optimiser import adamw, clip, learning_rate, squared_norm, state_tensors, step_seed
from training.parallel import Parallel
from training.processes import World
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
    """What is trained on. ``parts`` gives this process's micro-batches of a step, each to be computed when it is called;
    every process has the same number of them. ``records`` names the rows of the whole step. ``judge`` is the mean
    held-out margin in nats over all processes (asked for early stopping only; the model is in evaluation mode).
    ``begin`` is called once, while the model still has its initial weights, in a run that goes on too.

    One that also has ``counts(step)``, numbers by name of the whole step (``pairs``, ``prompts``, and ``flops``, the least
    arithmetic that its rows need), has them told with the step's metrics."""

    steps: int

    def begin(self, model: Any, world: World) -> None: ...

    def parts(self, model: Any, step: int, budget: int, world: World) -> Sequence[Callable[[], Part]]: ...

    def records(self, step: int) -> list[str]: ...

    def judge(self, model: Any, budget: int, world: World) -> float: ...


class Diverged(RuntimeError):
    """Loss or gradient is no number; the message names the step, its records and the last checkpoint."""


def train(
    scorer: Any,
    objective: Objective,
    settings: Optimiser,
    profile: Profile,
    seed: int,
    name: str,
    folder: Path,
    log: Log,
    world: World | None = None,
    budgets: Sequence[Sequence[int]] | None = None,
) -> Any:
    """Train the parameters of ``scorer`` (a module; the objective knows its inputs) that require gradients.

    Returns it with all trained weights in the main process, on the CPU where it was sharded; None in the others.
    ``name`` is the objective's digest and ``folder`` holds its checkpoints: training goes on from the newest.
    ``budgets`` are the token budgets to replay, [[step, tokens], …]; those that were used are logged as a fact.
    Raises Diverged on a loss or gradient that is not finite, ValueError on a foreign checkpoint, budget.NoMemory where
    no smaller token budget can help, budget.Halved where all processes must start again with a smaller one.
    """
    run = _Run(scorer, objective, settings, profile, seed, name, folder, log, world or World.current(profile))
    return run.to_end(budgets)


class _Run:
    def __init__(
        self,
        scorer: Any,
        objective: Objective,
        settings: Optimiser,
        profile: Profile,
        seed: int,
        name: str,
        folder: Path,
        log: Log,
        world: World,
    ) -> None:
        self.objective, self.settings, self.profile, self.seed = objective, settings, profile, seed
        self.name, self.folder, self.log, self.world = name, folder, log, world
        self.parallel = Parallel(scorer, profile, world)
        self.model = self.parallel.model
        self.parameters = {key: value for key, value in self.parallel.scorer.named_parameters() if value.requires_grad}
        self.optimiser = adamw(self.parameters, settings, world.size)

    def to_end(self, recorded: Sequence[Sequence[int]] | None) -> Any:
        if self.world.main:
            checkpoint.clear(self.folder)
        self.objective.begin(self.model, self.world)
        self.parallel.reshard()
        self.peak = self.world.sum({"peak": measured_peak(self.profile)})["peak"]
        self.log({"type": "facts", "facts": {"peak_flops": self.peak}})
        newest = checkpoint.latest(self.folder, self.name, self.world, self.log)
        facts = newest.facts if newest else {}
        self.first = step = self._restore(newest) if newest else 0
        self.patience = Patience(self.settings.early_stop, facts.get("early_stop"))
        self.budgets = budget.find(
            self.folder, self.name, self.profile, recorded, facts.get("budgets"), step, self.world
        )
        self.model.train()
        self.saved = time.monotonic()
        while step < self.objective.steps and not self.patience.over:
            self._step(step)
            step += 1
        self._take_best(step)
        self.log({"type": "facts", "facts": {"token_budgets": self.budgets.changes}})
        return self.parallel.plain()

    def _step(self, step: int) -> None:
        """One step, its events and, when it is time, its checkpoint. ``step`` is 0-based."""
        began = time.monotonic()
        rate = learning_rate(self.settings, step, self.objective.steps)
        if self.budgets.changed_at(step):
            self._say_budget(step, f"the token budget is {self.budgets.at(step)} from step {step + 1} on, as recorded")
        sums = self._attempts(step, lambda: self._gradients(step))
        sums = self.world.sum({**sums, "save": float(self.world.main and self._time_to_save())})
        save, tokens, squared = sums.pop("save") > 0, sums.pop("tokens"), sums.pop("squared")
        # As float32, so that the order in which squares were added does not reach the clip coefficient.
        norm = _float32(math.sqrt(squared))
        if not (math.isfinite(sums["loss"]) and math.isfinite(norm)):
            raise Diverged(self._divergence(step, sums["loss"], norm))
        clip(self.parameters, norm, self.settings.max_grad_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        done, total = step + 1, self.objective.steps
        metrics = {**sums, "grad_norm": norm, "learning_rate": rate}
        if self.patience.asks(done, total):
            margin = self._attempts(done, lambda: self._judge(done))
            save |= self.patience.hears(done, margin)
            metrics["early_stop/margin"] = margin
        seconds = time.monotonic() - began
        self.log({"type": "metrics", "step": done, "total": total, "metrics": metrics, "tokens": int(tokens),
                  "seconds": seconds, **self._counts(step, seconds)})  # fmt: skip
        if save and done < total and not self.patience.over:
            self._save(done)

    def _gradients(self, step: int) -> dict[str, float]:
        """Forward and backward passes of this process's micro-batches: sums of the loss and of what they report, tokens,
        and this process's share of the squared norm of the gradient."""
        import torch

        torch.manual_seed(step_seed(self.seed, step, self.world.rank))
        parts = self.objective.parts(self.model, step, self.budgets.at(step), self.world)
        losses: list[Tensor] = []
        sums: dict[str, float] = {"loss": 0.0, "tokens": 0.0, "squared": 0.0}
        for i, compute in enumerate(parts):
            with nullcontext() if i + 1 == len(parts) else self.parallel.without_exchange():
                part = compute()
                self.parallel.backward(part.loss)
            losses.append(part.loss.detach())
            for key, value in {**part.sums, "tokens": part.tokens}.items():
                sums[key] = sums.get(key, 0.0) + value
        sums["loss"] = sum(float(loss) for loss in losses)
        if self.parallel.sharded or self.world.main:  # whole gradients are the same everywhere and count once
            sums["squared"] = float(squared_norm(self.parameters, self.world.size))
        return sums

    def _counts(self, step: int, seconds: float) -> dict[str, Any]:
        """What the objective counts in a step, and which share of the floor's speed it reached: the least arithmetic at this
        machine's best speed, over the real time."""
        ask = getattr(self.objective, "counts", None)
        counts: dict[str, float] = ask(step) if ask is not None else {}
        share = {"flop_share": counts["flops"] / self.peak / seconds} if counts.get("flops") else {}
        return {"counts": counts, **share} if counts else {}

    def _judge(self, step: int) -> float:
        import torch

        self.model.eval()
        with torch.no_grad():
            margin = self.objective.judge(self.model, self.budgets.at(step), self.world)
        self.parallel.reshard()
        self.model.train()
        return float(margin)

    def _attempts(self, step: int, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returns; where memory runs out, again from the beginning with half the token budget."""
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                if not budget.out_of_memory(error):
                    raise
                why = str(error).partition("\n")[0][:200]
            # Outside of the handler: the traceback would keep the step's tensors alive.
            self.optimiser.zero_grad(set_to_none=True)
            budget.free_memory()
            self._say_budget(step, budget.halve(self.budgets, step, self.folder, self.name, self.world, why))

    def _say_budget(self, step: int, message: str) -> None:
        self.log({"type": "budget", "step": step, "budget": self.budgets.at(step), "message": message})
        self.log({"type": "milestone", "message": message})

    # -------------------------------------------------------------------------------------------- checkpoints

    def _time_to_save(self) -> bool:
        return time.monotonic() - self.saved >= self.profile.checkpoint_seconds

    def _save(self, step: int) -> None:
        tensors = state_tensors(self.parameters, self.optimiser)
        facts = {
            "strategy": "fsdp" if self.parallel.sharded else "ddp",
            "budgets": self.budgets.as_json(),
            "early_stop": self.patience.as_json(),
            "best": self.patience.at,
        }
        checkpoint.save(self.folder, step, self.name, tensors, facts, self.world, KEEP_CHECKPOINTS)
        self.log({"type": "milestone", "message": f"checkpoint at step {step} of {self.objective.steps}"})
        self.saved = time.monotonic()

    def _restore(self, found: checkpoint.Checkpoint) -> int:
        checkpoint.restore(found, state_tensors(self.parameters, self.optimiser))
        message = f"goes on from the checkpoint at step {found.step}"
        before, now = found.state["processes"], self.world.size
        if before != now:
            message += f" of {before} process(es) in {now}: order and batches stay, bits may not"
        self.log({"type": "milestone", "message": message})
        return found.step

    def _take_best(self, step: int) -> None:
        """Early stopping gives the best weights and not the last."""
        best = self.patience.at
        if best is None or best == step:
            return
        tensors = state_tensors(self.parameters, self.optimiser)
        weights = {name: tensor for name, tensor in tensors.items() if name.startswith("weights/")}
        checkpoint.restore(checkpoint.at(self.folder, best, self.world), weights)
        self.log({"type": "milestone", "message": f"takes the weights of step {best}, the best held-out margin"})

    def _divergence(self, step: int, loss: float, norm: float) -> str:
        found = checkpoint.found(self.folder)
        last = f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
        return (
            f"step {step + 1}: loss {loss}, gradient norm {norm}; a finite number is needed. Records of the step: "
            f"{', '.join(self.objective.records(step))}. Training began at step {self.first + 1}; {last}. Lower the "
            "learning rate or look at these records."
        )


def _float32(value: float) -> float:
    import torch

    return float(torch.tensor(value, dtype=torch.float32))
