"""Several losses from one warm start: which of them can be trained, and what they came to as one table.

The table is a metric per row and a model per column, with standard errors where they are known; below the scores stand
facts of the training itself. It goes to MLflow, to Prefect's pages and into the workspace's ``reports``.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.heldout import BENCHMARK
from evaluation.scores import Score, finite
from tasks.benchmarks import Scores
from tasks.curves import Curves
from tasks.data import Data
from tasks.jobs import JobFailed
from tasks.lineage.step import StepResult
from tasks.lineage.store import Artifact
from tasks.models import preference_step
from tasks.plots import Shown, draw_comparison
from tasks.refusals import refusal, training_records
from tasks.run import Run
from training.settings import PreferenceSettings
from training.strict import Refused

WARM_START = "warm_start"
# Rows of the table below the scores: (name, key in ``training``, how a number is written).
_TRAINING = (
    ("steps", "steps", "{:,.0f}"),
    ("final loss (its own scale)", "final_loss", "{:.3f}"),
    ("seconds", "seconds", "{:.1f}"),
    ("tokens per second", "tokens_per_second", "{:,.0f}"),
    ("share of the FLOP floor reached", "flop_share", "{:.0%}"),
    ("reference: computed", "reference_computed", "{:,.0f}"),
    ("reference: from the cache", "reference_cached", "{:,.0f}"),
)


class NoneTrained(Refused):
    """Every candidate was refused."""


class CandidateFailed(RuntimeError):
    """Every candidate that was not refused ended with a fault."""


@dataclass
class Policies:
    """What became of the candidates: trained ones by label, and why the others were refused or failed."""

    settings: Mapping[str, PreferenceSettings]
    trained: dict[str, StepResult] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def models(self) -> dict[str, Artifact]:
        return {label: step["model"] for label, step in self.trained.items()}


def sort_out(run: Run, candidates: Mapping[str, PreferenceSettings], warm_start: StepResult, data: Data) -> Policies:
    """Ask of every candidate, before any is trained, whether these data will do. Raises NoneTrained where none is left.

    A candidate that was trained before has been asked then.
    """
    policies = Policies(candidates)
    inputs = warm_start["model"].digest, data.pair_inputs(), data.example_inputs()
    for label, settings in candidates.items():
        if run.find(preference_step(run, settings, *inputs)) is None:
            why = refusal(settings, training_records(data))
            if why:
                policies.refused[label] = why
                run.console.warn(f"{label} is left out: {why}")
    if len(policies.refused) == len(candidates):
        raise NoneTrained(_reasons(policies.refused))
    return policies


def train_candidates(
    run: Run, policies: Policies, warm_start: StepResult, data: Data, train: Callable[..., StepResult]
) -> Policies:
    """Train every candidate that was not refused; one that fails stops no other one.

    ``train`` is ``optimize_preferences``, plain or as a Prefect task. Raises NoneTrained or CandidateFailed where none
    could be trained, with the reasons; OSError (a full disk) at once.
    """
    for label, settings in policies.settings.items():
        if label in policies.refused:
            continue
        try:
            policies.trained[label] = train(run, settings, warm_start, data, label)
        except Refused as error:  # what only tokens can tell, such as rows that are equal after the cut
            policies.refused[label] = str(error)
            run.console.warn(f"{label} is left out: {error}")
        except JobFailed as error:
            policies.failed[label] = str(error)
            run.console.warn(f"{label} has failed: {error}")
    if not policies.trained:
        told = _reasons(policies.refused | policies.failed)
        raise CandidateFailed(told) if policies.failed else NoneTrained(told)
    return policies


def _reasons(reasons: Mapping[str, str]) -> str:
    return "no candidate could be trained\n" + "\n".join(f"  {label}: {why}" for label, why in reasons.items())


# ------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Comparison:
    """The whole result of a comparison, as JSON values."""

    value: Mapping[str, Any]

    @property
    def headings(self) -> list[str]:
        return [
            "metric",
            *(label.replace("_", " ") if label == WARM_START else label for label in self.value["models"]),
        ]

    @property
    def rows(self) -> list[list[str]]:
        """The table: a metric per row, a model per column; then what training took."""
        models = self.value["models"]
        rows = [[name, *(_score(by.get(label)) for label in models)] for name, by in self.value["scores"].items()]
        training = self.value["training"]
        for name, key, form in _TRAINING:
            found = {label: facts[key] for label, facts in training.items() if facts.get(key) is not None}
            if found:
                rows.append([name, *(form.format(found[m]) if m in found else "–" for m in models)])
        return rows

    def csv(self) -> str:
        """A row per metric, and two columns per model: value and standard error; full precision."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        models = self.value["models"]
        writer.writerow(["metric", *(name for label in models for name in (label, f"{label} stderr"))])
        for name, by in self.value["scores"].items():
            cells = (by.get(label) or {"value": None, "stderr": None} for label in models)
            writer.writerow([name, *(part for cell in cells for part in (cell["value"], cell["stderr"]))])
        for _, key, _ in _TRAINING:
            facts = (self.value["training"].get(label, {}).get(key) for label in models)
            writer.writerow([f"training/{key}", *(part for value in facts for part in (value, None))])
        return text.getvalue()

    def markdown(self) -> str:
        lines = [self.headings, ["---"] + ["---:"] * (len(self.headings) - 1), *self.rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        left_out = "".join(
            f"- {label}: {why}\n" for key in ("refused", "failed") for label, why in self.value[key].items()
        )
        return f"# {self.value['experiment']}\n\n{self.value['note']}.\n\n{left_out}\n{table}\n"


def _score(cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell["value"] is None:
        return "–"
    return f"{cell['value']:.3f}" + (f" ±{cell['stderr']:.3f}" if cell["stderr"] is not None else "")


def training_facts(step: StepResult, settings: PreferenceSettings) -> dict[str, Any]:
    """What a table tells of one preference step, trained now or long ago. Unknown is None."""
    told = Curves.read(step["curves"].path)
    seen = {name: step.extra.get(name) for name in ("tokens_per_second", "pairs_per_second", "flop_share")}
    seen |= {name: step.extra.get(name) for name in ("reference_computed", "reference_cached")}
    return {
        "loss": settings.loss.name,
        "settings": settings.model_dump(mode="json"),
        "steps": len(told.steps),
        "final_loss": told.final("loss"),
        "seconds": step.seconds,
        **seen,
        "cached": step.cached,
        "key": str(step.key),
        "mlflow_run_id": step.extra.get("mlflow_run_id"),
    }


def publish_comparison(run: Run, path: Path, warm_start: StepResult, policies: Policies, scores: Scores) -> Comparison:
    """Log the table and its picture to MLflow, show the table in Prefect's pages, keep both in ``reports``."""
    models = {WARM_START: warm_start["model"], **policies.models}
    labels = {step.key: label for label, step in policies.trained.items()}
    by_metric: dict[str, dict[str, Any]] = {}
    for label, result in scores.results.items():
        for name, score in result.scores.items():
            by_metric.setdefault(name, {})[label] = _cell(score)
    left_out = [
        f"{len(them)} {word}" for word, them in (("refused", policies.refused), ("failed", policies.failed)) if them
    ]
    note = f"compared {', '.join(policies.trained)}" + (f" ({', '.join(left_out)})" if left_out else "")
    reports = {form: str(run.workspace.reports / f"{run.name}-compare.{form}") for form in ("json", "csv", "png")}
    comparison = Comparison(
        {
            "experiment": run.name,
            "experiment_digest": str(run.digest),
            "file": str(path),
            "mlflow_run_id": run.tracking.run_id,
            "tracking_uri": run.workspace.tracking_uri,
            "steps": [
                {"step": s.step, "key": str(s.key), "cached": s.cached, "seconds": s.seconds}
                | ({"candidate": labels[s.key]} if s.key in labels else {})
                for s in run.done
            ],
            "models": list(models),
            "weights": {label: str(artifact.digest) for label, artifact in models.items()},
            "scores": by_metric,
            "training": {
                label: training_facts(step, policies.settings[label]) for label, step in policies.trained.items()
            },
            "refused": policies.refused,
            "failed": policies.failed,
            "reports": reports,
            "note": note,
        }
    )
    draw_comparison(
        _shown(policies, scores), Path(reports["png"]), f"{run.name}: losses from one warm start", _pairs(scores)
    )
    Path(reports["json"]).write_text(json.dumps(comparison.value, indent=2) + "\n", encoding="utf-8")
    Path(reports["csv"]).write_text(comparison.csv(), encoding="utf-8")
    _to_mlflow(run, path, comparison)
    _to_prefect(run, comparison)
    return comparison


def _cell(score: Score) -> dict[str, Any]:
    return {
        "value": finite(score.value),
        "stderr": None if score.stderr is None else finite(score.stderr),
        "n": score.n,
    }


def _shown(policies: Policies, scores: Scores) -> list[Shown]:
    def value(label: str, metric: str) -> tuple[float, float | None] | None:
        score = scores.results[label].scores.get(f"{BENCHMARK}/{metric}")
        return None if score is None or finite(score.value) is None else (score.value, score.stderr)

    curves = {label: Curves.read(step["curves"].path) for label, step in policies.trained.items()}
    return [
        Shown(label.replace("_", " ") if label == WARM_START else label, value(label, "margin"),
              value(label, "preference_accuracy"), curves.get(label))
        for label in scores.results
    ]  # fmt: skip


def _pairs(scores: Scores) -> int:
    judged = (result.scores.get(f"{BENCHMARK}/margin") for result in scores.results.values())
    return max((score.n for score in judged if score is not None), default=0)


def _to_mlflow(run: Run, path: Path, comparison: Comparison) -> None:
    tracking, run_id, value = run.tracking, run.tracking.run_id, comparison.value
    numbers = {
        f"{label}/{name}": cell["value"]
        for name, by in value["scores"].items()
        for label, cell in by.items()
        if cell["value"] is not None
    }
    for label, facts in value["training"].items():
        numbers |= {f"{label}/training/{key}": facts[key] for _, key, _ in _TRAINING if facts.get(key) is not None}
    tracking.metrics(run_id, numbers)
    client = tracking.client
    client.set_tag(run_id, "alignmill.note", json.dumps(value["note"])[:5000])
    client.log_text(run_id, path.read_text(encoding="utf-8"), "experiment.yaml")
    client.log_text(run_id, comparison.markdown(), "comparison.md")
    for report in value["reports"].values():
        client.log_artifact(run_id, report, "comparison")


def _to_prefect(run: Run, comparison: Comparison) -> None:
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    slug = re.sub(r"[^a-z0-9]+", "-", run.name.lower())
    create_markdown_artifact(comparison.markdown(), key=f"comparison-{slug}", description=comparison.value["note"])
    rows = [dict(zip(comparison.headings, row, strict=True)) for row in comparison.rows]
    create_table_artifact(rows, key=f"compared-{slug}", description="scores per candidate")
