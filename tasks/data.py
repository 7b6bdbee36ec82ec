"""Snapshot and validation: what is learnt from, by digest, and what is not, by reason."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.lineage import merkle
from tasks.lineage.step import Made, StepResult, Work
from tasks.lineage.store import Artifact
from tasks.run import DATA_PACKAGES, Run, StepRun
from training.digest import Digest, digest_file, digest_json
from training.settings import DataSettings, Refused, Source, ValidationSettings


@dataclass(frozen=True)
class Snapshots:
    """A snapshot per part (preferences, sft, holdout); ``roots`` are their identities."""

    parts: Mapping[str, Artifact]
    roots: Mapping[str, Digest]
    steps: tuple[StepResult, ...]

    @property
    def cached(self) -> bool:
        return all(step.cached for step in self.steps)


@dataclass(frozen=True)
class Data:
    """Validated data: the snapshots and which of their rows are kept, per kind of record."""

    snapshots: Snapshots
    validation: StepResult

    @property
    def cached(self) -> bool:
        return self.validation.cached

    def pairs(self) -> dict[str, Any]:
        """Where a job finds preference pairs."""
        return {
            "parts": {name: str(a.path) for name, a in self.snapshots.parts.items() if name != "sft"},
            "selection": str(self.validation["preferences"].path / "selection.parquet"),
        }

    def pair_inputs(self) -> dict[str, Digest]:
        roots = {f"snapshot {name}": root for name, root in self.snapshots.roots.items() if name != "sft"}
        return {**roots, "selection": self.validation["preferences"].digest}

    def examples(self) -> dict[str, Any]:
        """Where a job finds SFT rows: SFT records, or the best completions of the preferences."""
        if "sft" not in self.snapshots.parts:
            return {**self.pairs(), "kind": "preferences"}
        return {
            "parts": {"sft": str(self.snapshots.parts["sft"].path)},
            "selection": str(self.validation["sft"].path / "selection.parquet"),
            "kind": "sft",
        }

    def example_inputs(self) -> dict[str, Digest]:
        if "sft" not in self.snapshots.parts:
            return self.pair_inputs()
        return {"snapshot sft": self.snapshots.roots["sft"], "sft selection": self.validation["sft"].digest}


def parts_of(settings: DataSettings) -> dict[str, tuple[Source, ...]]:
    """The sources of every part that the experiment has."""
    parts = {"preferences": settings.preferences, "sft": settings.sft, "holdout": settings.holdout.sources}
    return {name: sources for name, sources in parts.items() if sources}


def source_digests(sources: tuple[Source, ...], root: Path) -> dict[str, Digest]:
    """Each source file's bytes. Raises Refused where one cannot be read."""
    found = {}
    for source in sources:
        try:
            found[source.path] = digest_file(root / source.path)
        except OSError as error:
            raise Refused(
                f"data: {root / source.path} cannot be read ({error.strerror}); name a JSONL, JSON, CSV or Parquet file "
                "(plain, .gz or .zst), relative to the experiment file"
            ) from error
    return found


def snapshot_data(run: Run, settings: DataSettings) -> Snapshots:
    """A content-addressed snapshot of every part of the data; its identity is the Merkle root over its records."""
    steps = {name: _snapshot(run, name, sources) for name, sources in parts_of(settings).items()}
    roots = {name: Digest.parse(step.facts["root"]) for name, step in steps.items()}
    for name, step in steps.items():
        run.tracking.dataset(run.tracking.run_id, name, roots[name], ", ".join(step.facts["sources"]), name)
    return Snapshots({name: step["snapshot"] for name, step in steps.items()}, roots, tuple(steps.values()))


def snapshot_step(run: Any, name: str, sources: tuple[Source, ...]) -> Any:
    settings = [source.model_dump(mode="json") for source in sources]
    inputs = source_digests(sources, run.root)
    return run.step(f"snapshot-{name}", settings, inputs, ("training.data.snapshot",), ("pyarrow",))


def _snapshot(run: Run, name: str, sources: tuple[Source, ...]) -> StepResult:
    def work(work: Work, step: StepRun) -> Made:
        from training.data.snapshot import write_snapshot

        out = run.workspace.store.scratch() / "snapshot"
        facts = write_snapshot(sources, run.root, out)
        return Made(
            {"snapshot": ("snapshot", out)},
            {
                "root": str(merkle.root(facts.leaves())),
                "rows": facts.rows,
                "unreadable": facts.unreadable,
                "sources": {
                    s.path: {"form": s.form, "rows": s.rows, "unreadable": s.unreadable} for s in facts.sources
                },
            },
        )

    return run.perform(snapshot_step(run, name, sources), work)


def validation_step(run: Any, settings: ValidationSettings, data: DataSettings, roots: Mapping[str, Digest]) -> Any:
    share = {"holdout_share": data.holdout.share}
    return run.step(
        "validate", {**settings.model_dump(mode="json"), **share}, roots, ("training.data.expectations",), DATA_PACKAGES
    )


def validate_data(run: Run, settings: ValidationSettings, data: DataSettings, snapshots: Snapshots) -> Data:
    """Great Expectations over a flat profile of every record; what breaks a rule is quarantined with its reason.

    Raises Refused where a rule says stop, too much is quarantined, or nothing is left.
    """

    def work(work: Work, step: StepRun) -> Made:
        from training.data.expectations import validate

        out = run.workspace.store.scratch()
        parts = {name: artifact.path for name, artifact in snapshots.parts.items()}
        try:
            report = validate(parts, settings, data.holdout, out)
        except Refused as refusal:
            kept = run.workspace.reports / f"validation-{step.step.key.short}"
            _move(out, kept)
            raise Refused(f"{refusal}\nreport and Data Docs: {kept}") from refusal
        # Data Docs carry the time of their making, so they stand beside the record and not in it.
        docs = run.workspace.reports / f"data-docs-{step.step.key.short}"
        _move(out / "docs", docs)
        outputs = {"report": ("validation-report", out / "report")}
        outputs |= {name: ("selection", out / name) for name in ("preferences", "sft") if (out / name).is_dir()}
        facts = report.as_json()
        counts = {
            f"{part}_{key}": values[key]
            for part, values in facts["parts"].items()
            for key in ("rows", "kept", "quarantined")
        }
        return Made(outputs, {**facts, **counts}, {"docs": str(docs)})

    result = run.perform(validation_step(run, settings, data, snapshots.roots), work)
    for warning in result.facts.get("warnings", ()):
        run.console.warn(str(warning))
    return Data(snapshots, result)


def holdout_prompts(data: Data, path: Path) -> Digest:
    """Write the held-out prompts as JSON Lines of {id, messages}, each prompt once; return their digest."""
    from training.data.split import load_records

    where = data.pairs()
    parts = {name: Path(folder) for name, folder in where["parts"].items()}
    seen: set[Digest] = set()
    lines = []
    for record in load_records(parts, Path(where["selection"]), "holdout"):
        messages = [{"role": message.role, "content": message.content} for message in record.prompt]
        digest = digest_json(messages)
        if digest not in seen:
            seen.add(digest)
            lines.append(json.dumps({"id": record.id, "messages": messages}))
    # By digest and not by order: files often keep one topic after the other, and only the first few are used.
    lines.sort(key=lambda line: json.loads(line)["id"])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return digest_file(path)


def _move(source: Path, target: Path) -> None:
    import shutil

    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)
