"""What stands in the registry and what ran last: read only, nothing is created."""

import json
from datetime import UTC, datetime
from typing import Any

from tasks.registry import CHALLENGER, CHAMPION, Registry, Version
from tasks.tracking import connect
from tasks.workspace import Workspace
from training.strict import Refused

RUNS = 10


def status(model: str | None) -> dict[str, Any]:
    """Models with their versions and aliases, and the newest runs.

    Raises Refused where there is no workspace yet or no such model.
    """
    workspace = Workspace.at()
    if workspace.embedded_mlflow and not workspace.mlflow_database.exists():
        raise Refused(
            f"there is no run yet in {workspace.home}; start one with 'alignmill run EXPERIMENT', or set ALIGNMILL_HOME or "
            "MLFLOW_TRACKING_URI to where your runs are"
        )
    workspace.configure()
    client = connect(workspace)
    names = sorted(found.name for found in client.search_registered_models(max_results=1000))
    if model is not None and model not in names:
        raise Refused(f"no registered model {model!r}; there are: {', '.join(names) or 'none'}")
    chosen = [model] if model is not None else names
    return {"models": [_model(Registry(client, name)) for name in chosen], "runs": _runs(client)}


def _model(registry: Registry) -> dict[str, Any]:
    def number(version: Version | None) -> int | None:
        return version.number if version else None

    return {
        "model": registry.model,
        "champion": number(registry.alias(CHAMPION)),
        "challenger": number(registry.alias(CHALLENGER)),
        "versions": [
            {
                "version": version.number,
                "accepted": version.accepted,
                "promoted": version.promoted,
                "weights": str(version.weights) if version.weights else None,
                "experiment": version.experiment,
            }
            for version in registry.versions()
        ],
    }


def _runs(client: Any) -> list[dict[str, Any]]:
    experiments = [found.experiment_id for found in client.search_experiments(max_results=1000)]
    found = client.search_runs(
        experiments, "tags.`alignmill.kind` = 'flow'", max_results=RUNS, order_by=["attributes.start_time DESC"]
    )
    return [
        {
            "run": run.info.run_id,
            "name": run.data.tags.get("mlflow.runName", ""),
            "status": run.info.status,
            "started": datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "seconds": (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else None,
            "note": json.loads(run.data.tags.get("alignmill.note", "null")) or run.data.tags.get("alignmill.error"),
        }
        for run in found
    ]


def show(value: dict[str, Any]) -> None:
    """The same as two tables on standard output."""
    from tasks.console import table

    rows = []
    for model in value["models"]:
        for version in model["versions"]:
            aliases = [name for name in (CHAMPION, CHALLENGER) if model[name] == version["version"]]
            decision = "accepted" if version["accepted"] else "refused"
            rows.append(
                [model["model"], str(version["version"]), ", ".join(aliases), decision, version["promoted"] or "–",
                 version["experiment"] or "made elsewhere"]
            )  # fmt: skip
    table(["model", "version", "alias", "gate", "promoted", "experiment"], rows)
    print()
    table(
        ["run", "status", "started", "seconds", "outcome"],
        [
            [
                r["name"],
                r["status"],
                r["started"],
                f"{r['seconds']:.0f}" if r["seconds"] else "–",
                (r["note"] or "–")[:60],
            ]
            for r in value["runs"]
        ],
    )
