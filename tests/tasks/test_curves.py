"""Curves: what the events of all attempts say of every step, each step once."""

from pathlib import Path
from typing import Any

from tasks.curves import Curves, curves, rates, speed


def event(step: int, seconds: float = 2.0, **metrics: float) -> dict[str, Any]:
    return {"type": "metrics", "step": step, "metrics": metrics, "tokens": 100, "seconds": seconds}


def test_a_step_that_was_told_twice_counts_as_it_was_told_last() -> None:
    events = [event(1, loss=3.0), event(2, loss=9.0), {"type": "milestone", "message": "goes on"}, event(2, loss=2.0)]
    found = curves([*events, event(3, loss=1.0)])
    assert found.steps == (1, 2, 3)
    assert found.points("loss") == ([1, 2, 3], [3.0, 2.0, 1.0])


def test_a_metric_that_comes_now_and_then_and_one_that_is_no_number_leave_gaps() -> None:
    found = curves([event(1, loss=1.0), event(2, loss=float("nan"), margin=5.0), event(3, loss=2.0)])
    assert found.values == {"loss": (1.0, None, 2.0), "margin": (None, 5.0, None)}
    assert found.points("margin") == ([2], [5.0])
    assert found.points("nothing") == ([], [])


def test_final_is_the_mean_of_the_last_tenth() -> None:
    found = curves([event(step, loss=float(step)) for step in range(1, 31)])
    assert found.final("loss") == 29.0  # of 28, 29, 30
    assert curves([event(1, loss=4.0)]).final("loss") == 4.0
    assert found.final("nothing") is None


def test_what_is_written_is_read_and_tells_nothing_of_time(tmp_path: Path) -> None:
    slow, fast = (curves([event(1, seconds, loss=0.1), event(2, seconds, loss=0.2)]) for seconds in (9.0, 1.0))
    for name, found in (("slow", slow), ("fast", fast)):
        found.write(tmp_path / name)
        assert Curves.read(tmp_path / name) == found
    assert (tmp_path / "slow" / "curves.json").read_bytes() == (tmp_path / "fast" / "curves.json").read_bytes()


def test_speed_by_hand() -> None:
    """200 tokens and 12 pairs in 2 + 6 seconds; shares of the floor's speed weigh by their time: (0.8 2 + 0.4 6) / 8."""
    first = event(1, 2.0) | {"counts": {"pairs": 4, "prompts": 4, "flops": 1.0}, "flop_share": 0.8}
    second = event(2, 6.0) | {"counts": {"pairs": 8, "prompts": 4, "flops": 1.0}, "flop_share": 0.4}
    assert speed([first, second]) == {
        "step_seconds": 4.0, "tokens_per_second": 25.0, "pairs_per_second": 1.5, "prompts_per_second": 1.0, "flop_share": 0.5,
    }  # fmt: skip
    assert rates(first) == {
        "tokens_per_second": 50.0,
        "pairs_per_second": 2.0,
        "prompts_per_second": 2.0,
        "flop_share": 0.8,
    }


def test_what_is_not_told_is_left_out() -> None:
    assert rates(event(1)) == {"tokens_per_second": 50.0}
    assert rates({"type": "metrics", "step": 1, "metrics": {}, "tokens": 3}) == {} == speed([])
