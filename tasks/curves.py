"""The curves of a training job: what its events tell of every step, each step once. Plain Python.

A job that was killed goes on from its last checkpoint and tells some steps again: the last word counts.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "curves.json"
TAIL = 0.1  # of the steps, whose mean is called final


@dataclass(frozen=True)
class Curves:
    """``steps`` in order (from 1); ``values`` by metric, one per step, None where a step has none (or no number)."""

    steps: tuple[int, ...]
    values: Mapping[str, tuple[float | None, ...]]

    def points(self, metric: str) -> tuple[list[int], list[float]]:
        """(steps, values) where there is a value; both empty for a metric that nobody told of."""
        found = [(s, v) for s, v in zip(self.steps, self.values.get(metric, ()), strict=False) if v is not None]
        return [step for step, _ in found], [value for _, value in found]

    def final(self, metric: str) -> float | None:
        """The mean over the last tenth of the steps (at least one): a single step's value is mostly its rows'."""
        values = self.points(metric)[1]
        tail = values[-max(1, math.ceil(TAIL * len(values))) :]
        return math.fsum(tail) / len(tail) if tail else None

    def write(self, folder: Path) -> None:
        """Law: ``Curves.read`` gives what was written. Nothing in it tells of time, so equal runs give equal bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {"steps": self.steps, "values": dict(sorted(self.values.items()))}
        (folder / FILE).write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Curves":
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return cls(tuple(content["steps"]), {name: tuple(values) for name, values in content["values"].items()})


def curves(events: Iterable[Mapping[str, Any]]) -> Curves:
    """The metrics of every step in ``events`` (of all attempts, in order)."""
    told = _last_words(events)
    steps = sorted(told)
    names = dict.fromkeys(name for step in steps for name in told[step]["metrics"])
    return Curves(tuple(steps), {n: tuple(_number(told[step]["metrics"].get(n)) for step in steps) for n in names})


def speed(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Means over all steps: seconds of a step, tokens, pairs and prompts per second, and the share of the floor's speed.

    What the events do not tell is left out.
    """
    steps = [event for event in _last_words(events).values() if event.get("seconds")]
    seconds = math.fsum(event["seconds"] for event in steps)
    if not seconds:
        return {}
    found = {"step_seconds": seconds / len(steps), "tokens_per_second": sum(e["tokens"] for e in steps) / seconds}
    for count in ("pairs", "prompts"):
        if all(count in event.get("counts", {}) for event in steps):
            found[f"{count}_per_second"] = sum(event["counts"][count] for event in steps) / seconds
    if all("flop_share" in event for event in steps):
        found["flop_share"] = math.fsum(event["flop_share"] * event["seconds"] for event in steps) / seconds
    return found


def rates(event: Mapping[str, Any]) -> dict[str, float]:
    """What one step's event tells of speed, under the names that MLflow gets."""
    return {name: value for name, value in speed([event]).items() if name != "step_seconds"}


def _last_words(events: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    return {event["step"]: event for event in events if event["type"] == "metrics" and "step" in event}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
