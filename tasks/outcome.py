"""What a run came to: one table for people, one JSON object for programs, in MLflow and in Prefect's pages."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.scores import Results, read_generations
from tasks.benchmarks import Scores
from tasks.data import Data
from tasks.lineage.store import Artifact
from tasks.promotion import Judged, Promotion, Registered
from tasks.run import Run

LABELS = {"base": "base", "warm_start": "warm start", "policy": "policy", "champion": "champion"}


@dataclass(frozen=True)
class Outcome:
    """The whole result of a run, as JSON values."""

    value: Mapping[str, Any]

    @property
    def headings(self) -> list[str]:
        return ["metric", *(LABELS[label] for label in self.value["models"])]

    @property
    def rows(self) -> list[list[str]]:
        """The table: a metric per row, a model per column."""
        return [
            [metric, *(_number(values.get(label)) for label in self.value["models"])]
            for metric, values in self.value["scores"].items()
        ]


def table_of(results: Mapping[str, Results]) -> dict[str, dict[str, float]]:
    """Metric → model label → value, in the order in which things were asked."""
    table: dict[str, dict[str, float]] = {}
    for label, result in results.items():
        for name, score in result.scores.items():
            table.setdefault(name, {})[label] = score.value
    return table


def publish(
    run: Run,
    path: Path,
    data: Data,
    models: Mapping[str, Artifact],
    scores: Scores,
    judged: Judged,
    registered: Registered,
    promotion: Promotion,
) -> Outcome:
    """Log the outcome to MLflow, show it in Prefect's pages, keep it in ``reports``, and return it."""
    weights = {label: artifact.digest for label, artifact in models.items()}
    table = table_of(scores.results)
    champion = promotion.champion
    value = {
        "experiment": run.name,
        "experiment_digest": str(run.digest),
        "file": str(path),
        "mlflow_run_id": run.tracking.run_id,
        "tracking_uri": run.workspace.tracking_uri,
        "steps": [
            *({"step": s.step, "key": str(s.key), "cached": s.cached, "seconds": s.seconds} for s in run.done),
            {"step": "register", "cached": registered.cached},
            {"step": "promote", "cached": promotion.cached},
        ],
        "models": list(scores.results),
        "weights": {label: str(digest) for label, digest in weights.items()},
        "scores": {name: {label: _json(v) for label, v in values.items()} for name, values in table.items()},
        "decision": {"digest": str(judged.digest), **judged.decision.as_json()},
        "version": {"model": registered.version.model, "version": registered.version.number},
        "champion": {"model": champion.model, "version": champion.number} if champion else None,
        "note": promotion.note,
    }
    outcome = Outcome(value)
    _to_mlflow(run, path, data, scores, outcome)
    _to_prefect(run, outcome)
    report = run.workspace.reports / f"{run.name}.json"
    report.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    return outcome


def _to_mlflow(run: Run, path: Path, data: Data, scores: Scores, outcome: Outcome) -> None:
    tracking, run_id = run.tracking, run.tracking.run_id
    numbers = {
        f"{label}/{name}": value
        for name, values in outcome.value["scores"].items()
        for label, value in values.items()
        if value is not None
    }
    tracking.metrics(run_id, numbers)
    client = tracking.client
    for key in ("decision", "note", "version", "champion"):
        client.set_tag(run_id, f"alignmill.{key}", json.dumps(outcome.value[key])[:5000])
    if all(step.cached for step in run.done) and not tracking.goes_on:
        return  # the files of an unchanged run are those of the run that made them
    client.log_text(run_id, path.read_text(encoding="utf-8"), "experiment.yaml")
    client.log_dict(run_id, dict(outcome.value), "outcome.json")
    client.log_text(run_id, markdown(outcome), "outcome.md")
    client.log_table(run_id, answers(scores), "answers.json")
    client.log_artifacts(run_id, str(data.validation["report"].path), "validation")
    docs = data.validation.extra.get("docs")
    if docs and Path(docs).is_dir():
        client.log_artifacts(run_id, docs, "data-docs")


def answers(scores: Scores, limit: int = 64) -> dict[str, list[str]]:
    """The models' answers to the same held-out prompts, side by side; prompts by record id (their text stays put)."""
    by_label = {
        label: {row["id"]: row["text"] for row in read_generations(asked["samples"].path)}
        for label, asked in scores.folders.items()
    }
    items = list(next(iter(by_label.values())))[:limit]
    return {
        "prompt": items,
        **{LABELS[label]: [texts.get(item, "") for item in items] for label, texts in by_label.items()},
    }


def _to_prefect(run: Run, outcome: Outcome) -> None:
    from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

    slug = re.sub(r"[^a-z0-9]+", "-", run.name.lower())
    create_markdown_artifact(markdown(outcome), key=f"outcome-{slug}", description=outcome.value["note"])
    rows = [dict(zip(outcome.headings, row, strict=True)) for row in outcome.rows]
    create_table_artifact(rows, key=f"scores-{slug}", description="scores per model")
    uri = run.workspace.tracking_uri
    if uri.startswith("http"):
        link = f"{uri}/#/experiments/{run.tracking.experiment_id}/runs/{run.tracking.run_id}"
        create_link_artifact(link, key=f"mlflow-{slug}", link_text="the run in MLflow")


def markdown(outcome: Outcome) -> str:
    """The outcome as a page: note, reasons, table."""
    value = outcome.value
    head = f"# {value['experiment']}\n\n{value['note']}.\n\n"
    reasons = "".join(f"- {reason}\n" for reason in value["decision"]["reasons"])
    lines = [outcome.headings, ["---"] + ["---:"] * (len(outcome.headings) - 1), *outcome.rows]
    return head + reasons + "\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _json(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None
