"""Training stops when the held-out margin grows no more, gives the best weights, and can be killed at any step."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny import Stopped, stop_at
from tests.training.workers import (
    Events,
    Likelihood,
    Log,
    ignore,
    policy,
    profile,
    rows,
    same,
    settings,
    told,
    trained,
    weights,
)
from training.loop import train
from training.processes import World
from training.settings import EarlyStop


class Margins(Likelihood):
    """The held-out margin is what a list says, by steps done; None stands for the real one."""

    def __init__(self, steps: int, margins: dict[int, float]) -> None:
        super().__init__(rows(), steps)
        self.listed = margins

    def judge(self, model: Any, budget: int, world: World) -> float:
        super().judge(model, budget, world)
        assert self.now in self.listed
        return self.listed[self.now]

    def parts(self, model: Any, step: int, budget: int, world: World) -> Any:
        self.now = step + 1
        return super().parts(model, step, budget, world)


# Judged every 2 steps: best after 4, then two that gain no more than 0.1. Without a stop there would be 20 steps.
MARGINS = {2: 0.5, 4: 1.0, 6: 1.05, 8: 1.1, 10: 9.0}
STOP = EarlyStop(every=2, patience=2, min_gain=0.1)


def run_margins(root: Path, log: Log, margins: dict[int, float] = MARGINS, steps: int = 20) -> dict[str, Any]:
    given = settings(steps, early_stop=STOP)
    return weights(trained(root, log, Margins(steps, margins), given))


def test_training_stops_when_the_margin_grows_no_more_and_gives_the_best_weights(root: Path) -> None:
    seen: dict[int, dict[str, Any]] = {}
    model = policy()
    events: Events = []

    def log(event: dict[str, Any]) -> None:
        events.append(event)
        if event["type"] == "metrics":
            seen[event["step"]] = weights(model)

    given = settings(20, early_stop=STOP)
    result = train(model, Margins(20, MARGINS), given, profile(), 3, "x", root, log)
    assert max(seen) == 8  # 6 and 8 were no better than 4 by more than 0.1: two in a row
    margins = {e["step"]: e["metrics"].get("early_stop/margin") for e in told(events, "metrics")}
    assert {step: margin for step, margin in margins.items() if margin is not None} == {2: 0.5, 4: 1.0, 6: 1.05, 8: 1.1}
    found = weights(result)
    assert same(found, seen[4]) and not same(found, seen[8])
    assert told(events, "milestone")[-1]["message"] == "takes the weights of step 4, the best held-out margin"
    assert [path.name for path in sorted(root.iterdir())] == ["step-00000004", "step-00000006", "step-00000007"]


@pytest.mark.parametrize("step", [3, 4, 5, 7, 8])
def test_a_run_that_stops_early_can_be_killed_and_resumed(root: Path, step: int) -> None:
    quiet: Events = []
    expected = run_margins(root / "quiet", quiet.append)
    with pytest.raises(Stopped):
        run_margins(root / "killed", stop_at(step, []))
    events: Events = []
    assert same(run_margins(root / "killed", events.append), expected)
    assert told(quiet, "metrics")[-1]["metrics"] == told(events, "metrics")[-1]["metrics"]


def test_a_run_that_gets_better_to_the_end_gives_the_last_weights(root: Path) -> None:
    events: Events = []
    found = run_margins(root / "stop", events.append, {2: 1.0, 4: 2.0, 5: 3.0}, steps=5)  # judged at the end too
    plain = weights(trained(root / "plain", ignore, Likelihood(rows(), 5), settings(5)))
    assert same(found, plain) and "takes the weights" not in str(events)


def test_a_margin_that_is_no_number_is_no_gain(root: Path) -> None:
    events: Events = []
    run_margins(root, events.append, {2: math.nan, 4: math.nan})
    assert len(told(events, "metrics")) == 4


def test_best_weights_that_are_damaged_are_not_replaced_by_others(root: Path) -> None:
    def log(event: dict[str, Any]) -> None:
        if event["type"] == "metrics" and event["step"] == 7:
            path = root / "step-00000004" / "rank-00000.safetensors"
            path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(RuntimeError, match=r"checkpoint step-00000004 is damaged .* weights are lost; remove "):
        run_margins(root, log)
