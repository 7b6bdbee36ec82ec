"""Who becomes champion, and who does not: the registry's alias follows evidence about the champion that is there."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.flows.tiny import ROOT, Tiny, environment, ran, settings


def test_a_version_that_was_taken_down_is_not_promoted_again_by_itself(copied: Tiny) -> None:
    with sqlite3.connect(copied.home / "mlflow.db") as database:
        database.execute("DELETE FROM registered_model_aliases WHERE alias = 'champion'")
    database.close()
    outcome = copied.run()
    assert outcome["champion"] is None and ran(outcome) == []
    assert "it is not promoted again by itself" in outcome["note"]


@pytest.mark.soak
def test_of_two_runs_at_once_one_is_champion_and_the_other_was_not_judged_against_it(
    fresh: Callable[[str], Tiny],
) -> None:
    tiny = fresh("race")
    runs, outcomes = [], []
    for name, seed in (("one", 31), ("two", 32)):
        file = tiny.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**settings(), "name": name, "seed": seed}))
        command = [sys.executable, "-m", "flows.cli", "run", str(file), "--profile", str(tiny.folder / "profile.yaml")]
        runs.append(
            subprocess.Popen(
                [*command, "--json"], cwd=ROOT, env=environment(tiny.home), stdout=subprocess.PIPE, text=True
            )
        )
    for run in runs:
        outcome: dict[str, Any] = json.loads(run.communicate()[0])
        outcomes.append(outcome)
    # The slower one is told that the champion moved, unless it was so much slower that it was judged against it.
    notes = [outcome["note"] for outcome in outcomes]
    assert any("is champion" in note for note in notes)
    assert all("is champion" in note or "the champion moved from none to" in note for note in notes), notes
    assert sorted(outcome["version"]["version"] for outcome in outcomes) == [1, 2]
