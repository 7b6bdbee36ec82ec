"""Run a flow from the command line: refuse what can be refused at once, then bring Prefect up and call the flow."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.experiment import Loaded, load_experiment, load_profile
from tasks.preflight import preflight
from tasks.server import EmbeddedPrefect
from tasks.workspace import Workspace


def launch(experiment: str, profile: str | None) -> dict[str, Any]:
    """The outcome of one run, as JSON. Raises Refused before anything is written where the input is not acceptable."""

    def call(path: Path) -> Any:
        from flows.align import align

        return align(str(path), profile)

    return _with_servers(load_experiment(experiment), profile, call)


def launch_comparison(experiment: str, losses: Sequence[str] | None, profile: str | None) -> dict[str, Any]:
    """The comparison of an experiment's candidates, as JSON. Raises Refused as ``launch`` does."""
    loaded = load_experiment(experiment)
    loaded.experiment.candidates(losses)

    def call(path: Path) -> Any:
        from flows.compare import compare

        return compare(str(path), losses, profile)

    return _with_servers(loaded, profile, call)


def _with_servers(loaded: Loaded, profile: str | None, call: Callable[[Path], Any]) -> dict[str, Any]:
    load_profile(profile)
    e = loaded.experiment
    preflight(loaded.root, e.model, e.data, e.benchmarks, e.gate)
    workspace = Workspace.at()
    workspace.prepare()
    print(f"alignmill: {e.name} ({e.digest.short}) in {workspace.home}", file=sys.stderr)
    with EmbeddedPrefect(workspace.home / "prefect") as server:
        # Imported while the server boots, and only now: Prefect reads its environment at import.
        import flows.align
        import flows.compare  # noqa: F401
        from tasks.drain import wait_for_recorder
        from tasks.tracking import connect

        connect(workspace)  # a new workspace's MLflow database is made while Prefect makes its own
        server.wait()
        try:
            outcome = call(loaded.path)
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


def show_comparison(value: dict[str, Any]) -> None:
    """The table and who was left out, on standard output."""
    from tasks.comparison import Comparison
    from tasks.console import table

    comparison = Comparison(value)
    table(comparison.headings, comparison.rows)
    print()
    for kind in ("refused", "failed"):
        for label, why in value[kind].items():
            print(f"{label}: {kind}: {why}")
    print(f"{value['note']} (MLflow run {value['mlflow_run_id']}); ± is one standard error")
    print(f"see it: {value['reports']['png']}, alignmill ui")
