"""The data as the steps see them: the snapshots and, once they are validated, which of their rows are kept."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lineage import merkle
from tasks.lineage.step import Made, StepResult, Work
from tasks.lineage.store import Artifact
from tasks.run import Run, StepRun
from training.data.filedigests import FileDigests
from training.data.settings import DataSettings, Source
from training.digest import Digest, digest_file, digest_json
from training.strict import Refused

if TYPE_CHECKING:
    from training.data.segment_cache import SegmentCache


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


def source_digests(sources: tuple[Source, ...], root: Path, remembered: FileDigests | None = None) -> dict[str, Digest]:
    """Each source's bytes: a file's digest, or the digest of the (name, digest) of all files of a folder, glob or hub data set.

    A file that ``remembered`` knows and that was not touched since is not read. Raises Refused where one cannot be read.
    """
    from training.data.files import expand

    digests = remembered or FileDigests(None)
    found: dict[str, Digest] = {}
    for name, source in zip(_told_apart([source.name for source in sources]), sources, strict=True):
        files = expand(source, root)
        try:
            each = [[file.name, str(digests.of(file.path))] for file in files]
        except OSError as error:
            raise Refused(
                f"data: {source.name} cannot be read ({error.strerror}: {error.filename}); name a file, a folder or a glob, "
                "relative to the experiment file"
            ) from error
        alone = len(each) == 1 and each[0][0] == source.path
        found[name] = Digest.parse(each[0][1]) if alone else digest_json(each)
    return found


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names of sources; where several have one (two splits of a hub data set), the later ones with their number."""
    return [name if name not in names[:i] else f"{name} ({i + 1})" for i, name in enumerate(names)]


def segment_cache(run: Any) -> "SegmentCache":
    """Where segments of files that were read before are kept for every run in this workspace; a cache and no part of any
    record. Whoever only looks adds nothing to it."""
    from training.data.segment_cache import SegmentCache

    return SegmentCache(Path(run.workspace.home, "cache", "segments"), isinstance(run, Run))


def snapshot_data(run: Run, settings: DataSettings) -> Snapshots:
    """A content-addressed snapshot of every part of the data; its identity is the Merkle root over its records."""
    steps = {name: _snapshot(run, name, sources) for name, sources in parts_of(settings).items()}
    roots = {name: Digest.parse(step.facts["root"]) for name, step in steps.items()}
    for name, step in steps.items():
        run.tracking.dataset(run.tracking.run_id, name, roots[name], ", ".join(step.facts["sources"]), name)
    return Snapshots({name: step["snapshot"] for name, step in steps.items()}, roots, tuple(steps.values()))


def snapshot_step(run: Any, name: str, sources: tuple[Source, ...]) -> Any:
    settings = [source.model_dump(mode="json") for source in sources]
    inputs = source_digests(sources, run.root, segment_cache(run).digests)
    return run.step(f"snapshot-{name}", settings, inputs, ("training.data.snapshot",), ("pyarrow", "orjson"))


def _snapshot(run: Run, name: str, sources: tuple[Source, ...]) -> StepResult:
    def work(work: Work, step: StepRun) -> Made:
        from training.data.snapshot import write_snapshot

        out = run.workspace.store.scratch() / "snapshot"
        facts = write_snapshot(sources, run.root, out, segment_cache(run), run.profile.threads)
        if source_digests(sources, run.root, segment_cache(run).digests) != step.step.inputs:
            raise Refused(
                f"data.{name}: the data changed while they were read. Run again when they have been written in full"
            )
        return Made(
            {"snapshot": ("snapshot", out)},
            {
                "root": str(merkle.root(facts.leaves())),
                "rows": facts.rows,
                "unreadable": facts.unreadable,
                "sources": {
                    name: {"form": s.form, "files": s.files, "rows": s.rows, "unreadable": s.unreadable}
                    for name, s in zip(_told_apart([s.path for s in facts.sources]), facts.sources, strict=True)
                },
            },
        )

    return run.perform(snapshot_step(run, name, sources), work)


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
