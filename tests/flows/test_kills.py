"""kill -9 from another process, at seeded random times: the next run goes on and ends with the same bytes."""

import random
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from tests.flows.tiny import Tiny, ran

MOMENTS = {
    "before the first step": "Prefect server",  # no such line: the delay alone counts, from the start
    "between validation and base model": "validate: done",
    "in the warm start": "sft: checkpoint",
    "between the warm start and preferences": "sft: done",
    "in preference optimization": "preference: checkpoint",
    "between preferences and benchmarks": "preference: done",
    "in the benchmarks": "benchmarks:",
    "between gate and registration": "gate: done",
    "between registration and promotion": "register: version",
}
SAMPLE = ("in the warm start", "in preference optimization", "between gate and registration")


def kill_and_resume(tiny: Tiny, moments: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Kill a run at each of ``moments``, up to 1.5 s (seeded) after its line has come; then run to the end."""
    rng = random.Random(seed)
    for moment in moments:
        line, delay = MOMENTS[moment], rng.uniform(0, 1.5)
        tiny.run_until(lambda text, line=line: line in text, delay)  # type: ignore[misc]
    return tiny.run()


@pytest.mark.parametrize(
    ("moments", "seed"),
    [(SAMPLE, 7)]
    + [pytest.param((moment, moment), seed, marks=pytest.mark.soak) for moment in MOMENTS for seed in (1, 2)],
)
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    moments: tuple[str, ...], seed: int, fresh: Callable[[str], Tiny], finished: tuple[Tiny, dict[str, Any]]
) -> None:
    tiny, undisturbed = fresh("killed"), finished[1]
    outcome = kill_and_resume(tiny, moments, seed)
    assert outcome["weights"] == undisturbed["weights"]
    assert outcome["decision"] == undisturbed["decision"]
    assert outcome["scores"] == undisturbed["scores"]
    assert outcome["version"] == {"model": "tiny", "version": 1}
    assert outcome["champion"] == {"model": "tiny", "version": 1}
    assert ran(tiny.run()) == []
    with sqlite3.connect(tiny.home / "mlflow.db") as database:
        open_runs = database.execute("SELECT name FROM runs WHERE status = 'RUNNING'").fetchall()
        versions = database.execute("SELECT count(*) FROM model_versions").fetchone()
        curve = database.execute(
            "SELECT m.step, count(*) FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid"
            " WHERE r.name = 'preference' AND m.key = 'loss' GROUP BY m.step ORDER BY m.step"
        ).fetchall()
    assert open_runs == []
    assert versions == (1,)
    steps = max(step for step, _ in curve)
    assert curve == [(step, 1) for step in range(1, steps + 1)], "every step's loss once, none lost, none twice"
    assert not [path for path in (tiny.home / "store" / "work").glob("*") if path.is_dir()]
