"""The token budget of a micro-batch over a run: halved when memory runs out, recorded, and replayed by a rebuild."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.digest import canonical_json
from training.processes import World
from training.settings import Profile

FLOOR = 64  # tokens
FILE = "budget.json"


class NoMemory(RuntimeError):
    """Memory ran out, and no smaller budget can help."""


class Halved(RuntimeError):
    """Memory ran out in one of several processes. The smaller budget is written down: start them all again."""

    exit_code = 75  # EX_TEMPFAIL; tasks/ranks.py knows it


class Budgets:
    """``changes`` is a list of [step, budget], 0-based: from this step on this budget. ``asked`` is the profile's."""

    def __init__(self, asked: int, changes: Sequence[Sequence[int]] | None = None) -> None:
        self.asked = asked
        self.changes = [[int(step), int(budget)] for step, budget in changes or [[0, asked]]]

    def at(self, step: int) -> int:
        """The budget of a step, in tokens."""
        return max((change for change in self.changes if change[0] <= step), key=lambda change: change[0])[1]

    def changed_at(self, step: int) -> bool:
        return step > 0 and any(change[0] == step for change in self.changes)

    def set(self, step: int, budget: int) -> None:
        """From ``step`` on this budget and no other."""
        self.changes = [*(change for change in self.changes if change[0] < step), [step, budget]]

    def as_json(self) -> dict[str, Any]:
        return {"asked": self.asked, "changes": self.changes}


def find(
    folder: Path,
    name: str,
    profile: Profile,
    recorded: Sequence[Sequence[int]] | None,
    checkpoint: Any,
    step: int,
    world: World,
) -> Budgets:
    """The budgets of a run that begins or goes on at ``step``.

    What was written down when memory ran out comes first, then the ``checkpoint``'s own, then what a rebuild is to
    replay (``recorded``), then the profile's. A profile with another budget than before holds from ``step`` on.
    """
    written = world.from_main(_read(folder / FILE, name)) or checkpoint
    if written is None:
        return Budgets(profile.token_budget, recorded)
    budgets = Budgets(written["asked"], written["changes"])
    if recorded is None and budgets.asked != profile.token_budget:
        budgets.asked = profile.token_budget
        budgets.set(step, profile.token_budget)
        if world.main:
            _write(folder, name, budgets, world)
    return budgets


def halve(budgets: Budgets, step: int, folder: Path, name: str, world: World, why: str) -> str:
    """Halve the budget from ``step`` on, write that down before going on, and say so.

    Raises NoMemory below the floor, and Halved where there are several processes: the others wait for one that cannot
    go on, so all start again from their last checkpoint and come here with the smaller budget.
    """
    smaller = budgets.at(step) // 2
    if smaller < FLOOR:
        raise NoMemory(
            f"memory ran out in step {step + 1} with a token budget of {budgets.at(step)}, and {FLOOR} is the least: {why}. "
            "Use a shorter max_tokens, LoRA, activation_checkpointing, strategy: fsdp, or a larger device"
        )
    budgets.set(step, smaller)
    _write(folder, name, budgets, world)
    message = f"memory ran out in step {step + 1}: the token budget is {smaller} from here on ({why})"
    if world.size > 1:
        raise Halved(message)
    return message


def out_of_memory(error: BaseException) -> bool:
    """Whether a fault says that memory ran out, on the accelerator or on the host."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    )


def free_memory() -> None:
    """Give back what a step that failed has left behind."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _read(path: Path, name: str) -> Any:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if found.get("objective") == name else None


def _write(folder: Path, name: str, budgets: Budgets, world: World) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".partial-{world.rank}-{FILE}"
    with open(partial, "wb") as file:
        file.write(canonical_json({"objective": name, **budgets.as_json()}))
        file.flush()
        os.fsync(file.fileno())
    partial.rename(folder / FILE)
