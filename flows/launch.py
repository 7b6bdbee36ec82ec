"""Run the DAG from the command line: refuse what can be refused at once, then bring Prefect up and call the flow."""

import sys
from contextlib import suppress
from typing import Any

from flows.experiment import load_experiment, load_profile
from tasks.preflight import preflight
from tasks.server import EmbeddedPrefect
from tasks.workspace import Workspace


def launch(experiment: str, profile: str | None) -> dict[str, Any]:
    """The outcome of one run, as JSON. Raises Refused before anything is written where the input is not acceptable."""
    loaded = load_experiment(experiment)
    load_profile(profile)
    e = loaded.experiment
    preflight(loaded.root, e.model, e.data, e.benchmarks, e.gate)
    workspace = Workspace.at()
    workspace.prepare()
    print(f"alignmill: {e.name} ({e.digest.short}) in {workspace.home}", file=sys.stderr)
    with EmbeddedPrefect(workspace.home / "prefect") as server:
        # Imported while the server boots, and only now: Prefect reads its environment at import.
        from flows.align import align
        from tasks.drain import wait_for_recorder
        from tasks.tracking import connect

        connect(workspace)  # a new workspace's MLflow database is made while Prefect makes its own
        server.wait()
        try:
            outcome = align(str(loaded.path), profile)
        finally:
            with suppress(Exception):  # a Prefect server that is lost by now takes nothing from the outcome
                wait_for_recorder()
    return dict(outcome.value)


def show(value: dict[str, Any]) -> None:
    """The table and the decision, on standard output."""
    from tasks.console import table
    from tasks.outcome import Outcome

    outcome = Outcome(value)
    table(outcome.headings, outcome.rows)
    decision = "accepted" if value["decision"]["accepted"] else "refused"
    print(f"\ngate: {decision}")
    for reason in value["decision"]["reasons"]:
        print(f"  {reason}")
    print(f"{value['note']} ({value['version']['model']}; MLflow run {value['mlflow_run_id']})")
    print("see it: alignmill status, alignmill ui")
