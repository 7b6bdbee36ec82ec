"""Memory that runs out: the token budget is halved, recorded and replayed, to the same bits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny import Stopped, stop_at
from tests.training.workers import (
    Events,
    Likelihood,
    Log,
    ignore,
    profile,
    rows,
    same,
    settings,
    told,
    trained,
    weights,
)
from training.budget import Budgets, NoMemory, out_of_memory


def run(root: Path, log: Log, budgets: Any = None, budget: int = 512, **other: Any) -> dict[str, Any]:
    """Six steps of the small Llama; its weights."""
    objective = Likelihood(rows(), 6, **other)
    return weights(trained(root, log, objective, settings(6), profile(token_budget=budget), budgets))


def used(events: Events) -> Any:
    return told(events, "facts")[-1]["facts"]["token_budgets"]


def tokens(events: Events) -> list[float]:
    return [event["tokens"] for event in told(events, "metrics")]


def test_out_of_memory_halves_the_budget_goes_on_and_is_replayed_bit_by_bit(root: Path) -> None:
    # A micro-batch of 8 rows has 112 or 120 tokens: from the third step on only 64 find memory. 512 -> 256 -> 128 -> 64.
    events: Events = []
    found = run(root / "first", events.append, memory=(2, 64))
    assert used(events) == [[0, 512], [2, 64]]
    halved = [(event["step"], event["budget"]) for event in told(events, "budget")]
    assert halved == [(2, 256), (2, 128), (2, 64)]
    assert "memory ran out in step 3: the token budget is 64 from here on (out of memory" in str(events)
    assert [event["step"] for event in told(events, "metrics")] == [1, 2, 3, 4, 5, 6]
    again: Events = []
    replayed = run(root / "again", again.append, budgets=[[0, 512], [2, 64]])  # a machine with memory enough
    assert same(replayed, found) and tokens(again) == tokens(events) and used(again) == used(events)
    assert not same(run(root / "large", ignore), found)  # other sums in another order: other bits


def test_a_run_that_was_killed_after_memory_ran_out_keeps_to_what_it_wrote_down(root: Path) -> None:
    found = run(root / "quiet", ignore, memory=(2, 64))
    events: Events = []
    with pytest.raises(Stopped):
        run(root / "killed", stop_at(3, events), memory=(2, 64))  # before the checkpoint of step 3
    again: Events = []
    assert same(run(root / "killed", again.append), found)  # although memory would be enough now
    assert used(again) == [[0, 512], [2, 64]]
    assert [(event["step"], event["budget"]) for event in told(again, "budget")] == [(2, 64)]


def test_the_budget_has_a_floor(root: Path) -> None:
    with pytest.raises(
        NoMemory, match=r"memory ran out in step 1 with a token budget of 64, and 64 is the least: out of "
    ):
        run(root, ignore, memory=(0, 8))
    assert json.loads((root / "budget.json").read_bytes())["changes"] == [[0, 64]]


def test_a_profile_with_another_budget_holds_from_the_step_at_which_training_goes_on(root: Path) -> None:
    events: Events = []
    with pytest.raises(Stopped):
        run(root, stop_at(3, events), memory=(1, 64))

    with pytest.raises(Stopped):
        run(root, stop_at(5, []), budget=100)  # from the checkpoint of step 2; stopped before that of step 5
    again: Events = []
    run(root, again.append, budget=100)
    assert used(again) == [[0, 512], [1, 64], [2, 100]]


def test_the_budget_of_a_step_is_the_last_that_was_set_before_it() -> None:
    budgets = Budgets(512, [[0, 512], [4, 128], [9, 64]])
    assert [budgets.at(step) for step in (0, 3, 4, 8, 9, 100)] == [512, 512, 128, 128, 64, 64]
    assert [step for step in range(11) if budgets.changed_at(step)] == [4, 9]
    budgets.set(4, 256)  # what comes after was of a run that went another way
    assert budgets.changes == [[0, 512], [4, 256]]


@pytest.mark.parametrize(
    "error, found",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_running_out_of_memory(error: Exception, found: bool) -> None:
    assert out_of_memory(error) is found
