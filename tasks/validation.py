"""Validation as a step: what it reads beside the data, what it is compared with, and what it leaves."""

import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluation.settings import BenchmarkSettings
from tasks.benchmarks import benchmark_digest, include_folder
from tasks.data import Data, Snapshots
from tasks.lineage.step import Made, Step, StepResult, Work
from tasks.lineage.store import Artifact
from tasks.run import DATA_PACKAGES, Run, StepRun
from training.data.settings import DataSettings, ValidationSettings
from training.digest import Digest, digest_file, digest_json
from training.models import local_folder
from training.settings import ModelSettings
from training.strict import Refused

TEXTS = "texts.jsonl"  # as evaluation.texts names its file
_ANY_DAY = "2000-01-01"  # where nothing expires, every day gives the same facts, and they are kept
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class Prepared:
    """The validation step and the context in which the data are judged."""

    step: Step
    context: Any  # training.data.profile.Context


# ------------------------------------------------------------------------------------------------ benchmark texts


def texts_step(run: Any, settings: BenchmarkSettings) -> Step:
    include = include_folder(settings, run.root)
    inputs = {name: benchmark_digest(name, include) for name in settings.names}
    step: Step = run.step("texts", list(settings.names), inputs, ("evaluation.texts",), ("lm_eval", "datasets"))
    return step


def write_texts(run: Run, settings: BenchmarkSettings) -> StepResult | None:
    """The texts of all items of the benchmarks, which must not stand in the training data; None without benchmarks."""
    if not settings.names:
        return None
    include = include_folder(settings, run.root)

    def work(work: Work, step: StepRun) -> Made:
        from evaluation.catalogue import find_benchmark

        out = run.workspace.store.scratch() / "texts"
        online = any(find_benchmark(name, include).remote for name in settings.names)
        payload = texts_job(settings, include, out)
        facts = step.job("evaluation.texts", payload, run.profile.minutes.benchmarks, online)
        return Made({"texts": ("benchmark-texts", out)}, facts)

    return run.perform(texts_step(run, settings), work, "benchmark texts")


def texts_job(settings: BenchmarkSettings, include: Path | None, out: Path) -> dict[str, Any]:
    """What the job ``evaluation.texts`` reads."""
    return {"names": list(settings.names), "include": str(include) if include else None, "output": str(out)}


# ------------------------------------------------------------------------------------------------ validation


def prepare(
    run: Any,
    settings: ValidationSettings,
    data: DataSettings,
    parts: Mapping[str, Path],
    roots: Mapping[str, Digest],
    texts: Path | None,
    model: ModelSettings,
    max_tokens: Mapping[str, int],
) -> Prepared:
    """What validation reads, and its step: what can change the outcome is a setting or an input, and nothing else is.

    ``texts``: the file of benchmark texts. The tokenizer of a local base model counts tokens; a new model has none yet. Today's
    date counts only where a row says when its consent expires.
    """
    from training.data.profile import Context

    read: dict[str, Any] = {**settings.model_dump(mode="json"), "holdout_share": data.holdout.share}
    inputs = dict(roots)
    given: dict[str, Any] = {"processes": run.profile.threads, "cache": run.workspace.home / "cache" / "facts"}
    tokenizer = tokenizer_files(model, run.root)
    if tokenizer:
        digest = digest_json({path.name: str(digest_file(path)) for path in tokenizer})
        inputs["tokenizer"], read["max_tokens"] = digest, dict(max_tokens)
        given |= {"tokenizer": tokenizer[0].parent, "tokenizer_digest": str(digest), "max_tokens": dict(max_tokens)}
    if texts is not None:
        inputs["benchmark texts"] = digest_file(texts)
        given["benchmarks"] = texts
    erased = run.workspace.home / "erased.jsonl"
    if erased.is_file():
        inputs["erased"] = digest_file(erased)
        given["erased"] = erased
    given["today"] = _ANY_DAY
    if any_expiry(parts):
        given["today"] = read["today"] = datetime.now(UTC).date().isoformat()
    last = last_histograms(run.workspace.home, run.name, roots)
    if last is not None:
        inputs["last histograms"] = digest_json(last)
        given["last"] = last
    step = run.step("validate", read, inputs, ("training.data.expectations",), DATA_PACKAGES)
    return Prepared(step, Context(**given))


def tokenizer_files(model: ModelSettings, root: Path) -> list[Path]:
    """The tokenizer's files in a local base folder; none where there is no such folder or it has no tokenizer.json."""
    folder = None if model.new is not None else local_folder(model, root)
    if folder is None or not (folder / _TOKENIZER[0]).is_file():
        return []
    return [path for name in _TOKENIZER if (path := folder / name).is_file()]


def any_expiry(parts: Mapping[str, Path]) -> bool:
    """Whether some row says when its consent expires."""
    import pyarrow.parquet as pq

    from training.data.stored import segments

    columns = (
        pq.read_table(path, columns=["expires"], use_threads=False).column(0)
        for directory in parts.values()
        for path in segments(directory)
    )
    return any(column.null_count < len(column) for column in columns)


def validate_data(
    run: Run,
    settings: ValidationSettings,
    data: DataSettings,
    snapshots: Snapshots,
    texts: StepResult | None,
    model: ModelSettings,
    max_tokens: Mapping[str, int],
) -> Data:
    """Great Expectations over the facts of every record; what breaks a rule is quarantined with its reason.

    Raises Refused where a rule says stop, too much is quarantined, or nothing is left.
    """
    parts = {name: artifact.path for name, artifact in snapshots.parts.items()}
    file = texts["texts"].path / TEXTS if texts is not None else None
    prepared = prepare(run, settings, data, parts, snapshots.roots, file, model, max_tokens)

    def work(work: Work, step: StepRun) -> Made:
        from training.data.expectations import validate

        out = run.workspace.store.scratch()
        try:
            report = validate(parts, settings, data.holdout, out, prepared.context)
        except Refused as refusal:
            kept = run.workspace.reports / f"validation-{step.step.key.short}"
            _move(out, kept)
            raise Refused(f"{refusal}\nreport and Data Docs: {kept}") from refusal
        # Data Docs carry the time of their making, so they stand beside the record and not in it.
        docs = run.workspace.reports / f"data-docs-{step.step.key.short}"
        _move(out / "docs", docs)
        outputs: dict[str, tuple[str, Path] | Artifact] = {"report": ("validation-report", out / "report")}
        outputs |= {name: ("selection", out / name) for name in ("preferences", "sft") if (out / name).is_dir()}
        facts = report.as_json()
        counts = {
            f"{part}_{key}": values[key]
            for part, values in facts["parts"].items()
            for key in ("rows", "kept", "quarantined")
        }
        return Made(outputs, {**facts, **counts}, {"docs": str(docs)})

    result = run.perform(prepared.step, work)
    for warning in result.facts.get("warnings", ()):
        run.console.warn(str(warning))
    remember(run.workspace.home, run.name, snapshots.roots, result.facts.get("histograms"))
    return Data(snapshots, result)


def _move(source: Path, target: Path) -> None:
    import shutil

    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)


# ------------------------------------------------------------------------------------------------ the last snapshot


def last_histograms(home: Path, experiment: str, roots: Mapping[str, Digest]) -> dict[str, Any] | None:
    """The histograms of the snapshot that the experiment accepted before it first accepted this one; None for the first.

    Law: once a snapshot has been accepted, what it is compared with never changes, so that a rerun finds the same step.
    """
    last = None
    for entry in _history(home, experiment):
        if entry["roots"] == _named(roots):
            break
        last = entry["histograms"]
    return last


def remember(home: Path, experiment: str, roots: Mapping[str, Digest], histograms: Mapping[str, Any] | None) -> None:
    """Add an accepted snapshot to the experiment's history, unless it stands there."""
    entries = _history(home, experiment)
    if histograms is None or any(entry["roots"] == _named(roots) for entry in entries):
        return
    path = _history_file(home, experiment)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}")
    entries.append({"roots": _named(roots), "histograms": dict(histograms)})
    partial.write_text("".join(json.dumps(entry, sort_keys=True) + "\n" for entry in entries), encoding="utf-8")
    os.replace(partial, path)


def _named(roots: Mapping[str, Digest]) -> dict[str, str]:
    return {name: str(root) for name, root in sorted(roots.items())}


def _history_file(home: Path, experiment: str) -> Path:
    return home / "history" / f"{experiment}.jsonl"


def _history(home: Path, experiment: str) -> list[dict[str, Any]]:
    """The accepted snapshots, oldest first. A line that cannot be read is left out."""
    entries = []
    with suppress(FileNotFoundError):
        for line in _history_file(home, experiment).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                entries.append({"roots": dict(entry["roots"]), "histograms": dict(entry["histograms"])})
    return entries
