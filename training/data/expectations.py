"""Validation: the judgement over the profile, what is kept, and what is not and why.

Our own pass names every failing record; Great Expectations judges the same facts by the same rules (see ``contract``). The two
must count the same, which every run asserts. ``check`` is the pass without Great Expectations and without writing.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.contract import contract
from training.data.measures import Measured, measure, rated_alone
from training.data.profile import Context, Profile, profile, segment_columns
from training.data.quarantine import write_quarantine
from training.data.rules import Rule, action_of, rules
from training.data.settings import Holdout, ValidationSettings
from training.data.split import write_selection_columns
from training.strict import Refused

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Broken:
    """How a rule came out in a part: ``count`` rows (``share`` of its rows) break it; ``at_most`` may, before ``action``
    stops the run (stop, quarantine) or tells (warn). ``within`` says that no more do."""

    action: str
    count: int
    share: float
    at_most: float

    @property
    def within(self) -> bool:
        return self.share <= self.at_most


@dataclass(frozen=True)
class PartReport:
    """Counts of one part. ``rows == kept + quarantined``; ``rules`` counts the rows that break each rule, and ``judged``
    says what follows from it. ``rated_*`` counts labelled completions of records without a pair. ``faulty`` counts quarantined
    rows but those that only have a held-out prompt."""

    rows: int
    kept: int
    quarantined: int
    kept_train: int
    kept_holdout: int
    pairs_train: int
    pairs_holdout: int
    rated_train: int
    rated_holdout: int
    faulty: int
    rules: dict[str, int]
    judged: dict[str, Broken]

    @property
    def faulty_share(self) -> float:
        return self.faulty / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class Report:
    """The outcome of validation. ``refusals`` say why training may not start; empty means that it may.

    ``held_out``: pairs that are held out, or labelled completions where both labels are. ``benchmarks``: how many of each
    benchmark's items stand in the training text. ``histograms``: what the next snapshot is compared with.
    """

    parts: dict[str, PartReport]
    warnings: tuple[str, ...]
    refusals: tuple[str, ...]
    held_out: int
    measures: tuple[Measured, ...] = ()
    benchmarks: Mapping[str, Any] | None = None
    histograms: Mapping[str, Any] | None = None

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts.values())

    @property
    def kept(self) -> int:
        return sum(part.kept for part in self.parts.values())

    @property
    def learnt(self) -> int:
        """Pairs and labelled completions that are left to train on."""
        return self.parts["preferences"].pairs_train + self.parts["preferences"].rated_train

    @property
    def quarantined(self) -> int:
        return sum(part.quarantined for part in self.parts.values())

    def as_json(self) -> dict[str, Any]:
        """A JSON object without any text of the records."""
        counts = {"rows": self.rows, "kept": self.kept, "quarantined": self.quarantined}
        return counts | {
            "parts": {name: asdict(part) for name, part in self.parts.items()},
            "measures": [asdict(measured) for measured in self.measures],
            "benchmarks": dict(self.benchmarks) if self.benchmarks is not None else None,
            "histograms": dict(self.histograms) if self.histograms is not None else None,
            "warnings": list(self.warnings),
            "refusals": list(self.refusals),
        }

    def raise_if_refused(self) -> None:
        """Raises Refused with every reason at once."""
        if self.refusals:
            raise Refused("\n".join(self.refusals))


def check(
    parts: Mapping[str, Path], settings: ValidationSettings, holdout: Holdout, context: Context | None = None
) -> Report:
    """What ``validate`` would report, without Great Expectations and without writing anything. Never raises Refused."""
    return judge(profile(parts, settings, holdout, context or Context()), settings, holdout)


def validate(
    parts: Mapping[str, Path],
    settings: ValidationSettings,
    holdout: Holdout,
    out: Path,
    context: Context | None = None,
) -> Report:
    """Validate the snapshots ``parts`` and store under ``out`` what is kept, what is not and why, and Data Docs.

    Writes ``report/report.json``, ``report/quarantine.parquet``, ``docs/index.html`` and, unless refused,
    ``preferences/selection.parquet`` (parts preferences and holdout) and ``sft/selection.parquet`` (where there is an
    sft part). Raises Refused, after the report is written, where a rule or a measure says stop, more rows are faulty than
    are allowed, too little remains, or a set is empty.
    """
    found = profile(parts, settings, holdout, context or Context())
    report = judge(found, settings, holdout)
    write_quarantine(found, out / "report" / "quarantine.parquet")
    text = json.dumps(report.as_json(), indent=2, ensure_ascii=False, sort_keys=True)
    (out / "report" / "report.json").write_text(text + "\n", encoding="utf-8")
    counted = contract(found, settings, report, out / "docs")
    ours = {(part, name): count for part, told in report.parts.items() for name, count in told.rules.items()}
    if counted != ours:
        apart = {key: (counted.get(key), ours.get(key)) for key in counted | ours if counted.get(key) != ours.get(key)}
        raise RuntimeError(f"Great Expectations and the profile count differently: {apart}; report this as a defect")
    report.raise_if_refused()
    write_selections(found, out)
    return report


def write_selections(found: Profile, out: Path) -> None:
    """Store which rows are kept: those of preferences and holdout together, those of sft by themselves."""
    for name, parts in (("preferences", ("preferences", "holdout")), ("sft", ("sft",))):
        if name in found.parts:
            _write_selection(found, parts, out / name / "selection.parquet")


def _write_selection(found: Profile, parts: tuple[str, ...], path: Path) -> None:
    import numpy as np
    import pyarrow as pa

    kept = ~found.quarantined
    columns: dict[str, list[Any]] = {"part": [], "row": [], "id": [], "split": []}
    for segment, here in zip(found.segments, found.slices, strict=True):
        if segment.part not in parts:
            continue
        rows = np.flatnonzero(kept[here])
        ids = segment_columns(segment.segment, ("id",)).column("id").combine_chunks()
        columns["id"].append(ids.take(pa.array(rows)))
        columns["row"].append(pa.array(rows + here.start - found.parts[segment.part].start))
        columns["part"].append(_repeated([segment.part], np.zeros(len(rows), "int32")))
        columns["split"].append(_repeated(["train", "holdout"], found.held[here][rows].astype("int32")))
    part, row, ids, split = (pa.chunked_array(chunks) for chunks in columns.values())
    write_selection_columns(part, row, ids, split, path)


def _repeated(words: list[str], numbers: "np.ndarray[Any, Any]") -> Any:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(numbers), pa.array(words)).cast(pa.string())


# ------------------------------------------------------------------------------------------------ judgement


def judge(found: Profile, settings: ValidationSettings, holdout: Holdout) -> Report:
    """The report on a profile."""
    parts = {name: _part(found, settings, name) for name in found.parts}
    measured = measure(found, settings)
    pairs = sum(part.pairs_holdout for part in parts.values())
    rated = sum(part.rated_holdout for part in parts.values()) if measured.both_labels_held else 0
    refusals: list[str] = []
    notes: list[str] = []
    for rule in rules(settings):
        for name, part in parts.items():
            _rule(found, rule, name, part, refusals, notes)
    for item in measured.items:
        if not item.within:
            (refusals if item.action == "stop" else notes).append(_measure(item))
    if rated and not pairs:
        notes.append(
            "holdout: labelled completions are held out and no pair; of them there is holdout/desirable_auc for the gate, and no "
            "holdout/preference_accuracy"
        )
    report = Report(
        parts,
        tuple(notes),
        (),
        pairs or rated,
        measured.items,
        measured.benchmarks,
        measured.histograms,
    )
    for name, part in parts.items():
        refusals += _too_faulty(settings, name, part)
    refusals += _too_little(report, settings, holdout)
    return replace(report, refusals=tuple(refusals))


def _part(found: Profile, settings: ValidationSettings, name: str) -> PartReport:
    import numpy as np

    here = found.parts[name]
    aside = found.quarantined[here]
    learn, test = ~aside & found.train[here], ~aside & found.held[here]
    pairs, rated = np.nan_to_num(found.part_column(name, "pairs")), rated_alone(found, name)
    counts = {rule: int(failing[here].sum()) for rule, failing in found.failing.items()}
    rows = len(aside)
    judged = {}
    for rule, count in counts.items():
        action = action_of(settings, rule)
        judged[rule] = Broken(action.action, count, count / rows if rows else 0.0, action.at_most)
    part = PartReport(
        rows=rows,
        kept=int((~aside).sum()),
        quarantined=int(aside.sum()),
        kept_train=int(learn.sum()),
        kept_holdout=int(test.sum()),
        pairs_train=int(pairs[learn].sum()),
        pairs_holdout=int(pairs[test].sum()),
        rated_train=int(rated[learn].sum()),
        rated_holdout=int(rated[test].sum()),
        faulty=int(found.faulty[here].sum()),
        rules=counts,
        judged=judged,
    )
    assert part.rows == part.kept + part.quarantined, f"rows of {name} went missing"
    assert part.kept == part.kept_train + part.kept_holdout, f"kept rows of {name} belong to no split"
    return part


def _rule(found: Profile, rule: Rule, name: str, part: PartReport, refusals: list[str], notes: list[str]) -> None:
    """What a broken rule leads to in one part, as a sentence with numbers, a place and the next move."""
    broken = part.judged[rule.name]
    if broken.within:
        return
    source, line = found.place(found.parts[name].start + int(found.failing[rule.name][found.parts[name]].argmax()))
    allowed = f" (at most {percent(broken.at_most)} is allowed)" if broken.at_most else ""
    text = (
        f"{name}: {rule.name}: {broken.count:,} of {part.rows:,} rows, {percent(broken.share)}{allowed}, "
        f"first at {source}:{line}. {rule.sentence}"
    )
    move = {
        "stop": f" {rule.remedy}, or set validation.{rule.name} to 'quarantine'",
        "quarantine": f" {rule.remedy}, or raise validation.{rule.name}.at_most",
        "warn": "",
    }[broken.action]
    (notes if broken.action == "warn" else refusals).append(text + move)


def _measure(measured: Measured) -> str:
    text = f"{measured.of}: {measured.name}: {measured.value:.3g} (allowed: {measured.allowed}). {measured.sentence}"
    if measured.action == "stop":
        text += f" Correct the data, change the bound, or set validation.{measured.name} to 'warn'"
    return text


def _too_faulty(settings: ValidationSettings, name: str, part: PartReport) -> list[str]:
    broken = ", ".join(f"{rule} {count}" for rule, count in part.rules.items() if count)
    found = []
    if part.faulty_share > settings.max_quarantined:
        limit = f"{percent(part.faulty_share)}; at most {percent(settings.max_quarantined)} is allowed"
        found.append(
            f"{name}: {part.faulty} of {part.rows} rows are faulty ({limit}): {broken}. "
            "Correct the data, or raise validation.max_quarantined"
        )
    if name == "sft" and not part.kept:
        found.append(f"sft: none of {part.rows} rows is left after validation: {broken}. Correct data.sft")
    return found


def _too_little(report: Report, settings: ValidationSettings, holdout: Holdout) -> list[str]:
    refusals = []
    if report.learnt < settings.min_records:
        refusals.append(
            f"preferences: {report.learnt} pair(s) and labelled completion(s) to train on; at least "
            f"{settings.min_records} (validation.min_records) are needed. Give more data, or hold out less"
        )
    if not report.held_out:
        way = (
            f"share {holdout.share} of the prompts"
            if holdout.share is not None
            else "the files of data.holdout.sources"
        )
        refusals.append(
            f"holdout: neither a pair nor labelled completions of both labels are held out ({way}). "
            "Raise data.holdout.share, or give data.holdout.sources"
        )
    return refusals


def percent(share: float) -> str:
    """A share for people: 0.05 → 5%, 0.0004 → 0.04%."""
    return f"{share * 100:.3g}%"
