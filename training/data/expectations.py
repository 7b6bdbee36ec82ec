"""Validation: the judgement over the profile, the quarantine, and what is kept.

Our own pass names every failing record; Great Expectations judges the same profile by the same rules (see
``contract``). The two must count the same, which every run asserts. ``check`` is the pass without Great Expectations.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.data.contract import contract
from training.data.profile import PARTS, Profile, profile, rules
from training.data.snapshot import read_snapshot, write_table
from training.data.split import Selected, write_selection
from training.settings import Holdout, Refused, ValidationSettings

_EXCERPT = 80
_MAIL = re.compile(r"\S*@\S*")


@dataclass(frozen=True)
class PartReport:
    """Counts of one part. ``rows == kept + quarantined``; ``rules`` counts the rows that break each rule."""

    rows: int
    kept: int
    quarantined: int
    kept_train: int
    kept_holdout: int
    pairs_train: int
    pairs_holdout: int
    rules: dict[str, int]


@dataclass(frozen=True)
class Report:
    """The outcome of validation. ``refusals`` say why training may not start; empty means that it may."""

    parts: dict[str, PartReport]
    warnings: tuple[str, ...]
    refusals: tuple[str, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts.values())

    @property
    def kept(self) -> int:
        return sum(part.kept for part in self.parts.values())

    @property
    def quarantined(self) -> int:
        return sum(part.quarantined for part in self.parts.values())

    def as_json(self) -> dict[str, Any]:
        """A JSON object without any text of the records."""
        counts = {"rows": self.rows, "kept": self.kept, "quarantined": self.quarantined}
        return counts | {
            "parts": {name: asdict(part) for name, part in self.parts.items()},
            "warnings": list(self.warnings),
            "refusals": list(self.refusals),
        }

    def raise_if_refused(self) -> None:
        """Raises Refused with every reason at once."""
        if self.refusals:
            raise Refused("\n".join(self.refusals))


def check(parts: Mapping[str, Path], settings: ValidationSettings, holdout: Holdout) -> Report:
    """What ``validate`` would report, without Great Expectations and without writing anything. Never raises Refused."""
    return _report(profile(parts, settings, holdout), settings, holdout)


def validate(parts: Mapping[str, Path], settings: ValidationSettings, holdout: Holdout, out: Path) -> Report:
    """Validate the snapshots ``parts`` and store under ``out`` what is kept, what is not and why, and Data Docs.

    Writes ``report/report.json``, ``report/quarantine.parquet``, ``docs/index.html`` and, unless refused,
    ``preferences/selection.parquet`` (parts preferences and holdout) and ``sft/selection.parquet`` (where there is an
    sft part). Raises Refused, after the report is written, where a 'stop' rule is broken, too many rows are faulty,
    too few pairs remain, or a set is empty.
    """
    found = profile(parts, settings, holdout)
    report = _report(found, settings, holdout)
    write_quarantine(found, parts, out / "report" / "quarantine.parquet")
    text = json.dumps(report.as_json(), indent=2, ensure_ascii=False, sort_keys=True)
    (out / "report" / "report.json").write_text(text + "\n", encoding="utf-8")
    counted = contract(found, settings, out / "docs")
    ours = {name: int(failing.sum()) for name, failing in found.failing.items()}
    if counted != ours:
        raise RuntimeError(f"Great Expectations counts {counted}, the profile {ours}: report this as a defect")
    report.raise_if_refused()
    kept = list(_kept(found))
    write_selection([item for item in kept if item.part != "sft"], out / "preferences" / "selection.parquet")
    if "sft" in parts:
        write_selection([item for item in kept if item.part == "sft"], out / "sft" / "selection.parquet")
    return report


# ------------------------------------------------------------------------------------------------ judgement


def _report(found: Profile, settings: ValidationSettings, holdout: Holdout) -> Report:
    table, kept = found.table, ~found.quarantined
    train, held = (table["split"] == "train").to_numpy(), (table["split"] == "holdout").to_numpy()
    pairs = table["pairs"].fillna(0).to_numpy()
    parts: dict[str, PartReport] = {}
    refusals: list[str] = []
    notes: list[str] = []
    for rule in rules(settings):
        failing, action = found.failing[rule.name], getattr(settings, rule.name)
        if action != "quarantine" and failing.any():
            first = table.iloc[int(failing.argmax())]
            where = f"first at {first['source']}:{first['line']}"
            text = f"{rule.name}: {int(failing.sum())} record(s), {where}. {rule.sentence}"
            if action == "stop":
                refusals.append(f"{text} Correct them, or set validation.{rule.name} to 'quarantine'")
            else:
                notes.append(text)
    for part in (name for name in PARTS if (table["part"] == name).any()):
        here = (table["part"] == part).to_numpy()
        counts = {name: int((failing & here).sum()) for name, failing in found.failing.items()}
        rows, aside = int(here.sum()), int((here & found.quarantined).sum())
        learn, test = here & kept & train, here & kept & held
        parts[part] = PartReport(
            rows=rows,
            kept=int((here & kept).sum()),
            quarantined=aside,
            kept_train=int(learn.sum()),
            kept_holdout=int(test.sum()),
            pairs_train=int(pairs[learn].sum()),
            pairs_holdout=int(pairs[test].sum()),
            rules=counts,
        )
        assert parts[part].rows == parts[part].kept + parts[part].quarantined, f"rows of {part} went missing"
        faulty = int((here & found.faulty).sum())
        broken = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        if faulty > settings.max_quarantined * rows:
            limit = f"{faulty / rows:.1%}; at most {settings.max_quarantined:.1%} are allowed"
            refusals.append(
                f"{part}: {faulty} of {rows} rows are faulty ({limit}): {broken}. "
                "Correct the data, or raise validation.max_quarantined"
            )
        if part == "sft" and not parts[part].kept:
            refusals.append(f"sft: none of {rows} rows is left after validation: {broken}. Correct data.sft")
    learnt = parts["preferences"].pairs_train if "preferences" in parts else 0
    if learnt < settings.min_records:
        refusals.append(
            f"preferences: {learnt} pair(s) to train on; at least {settings.min_records} (validation.min_records) are "
            "needed. Give more data, or hold out less"
        )
    if not sum(part.pairs_holdout for part in parts.values()):
        way = (
            f"share {holdout.share} of the prompts"
            if holdout.share is not None
            else "the files of data.holdout.sources"
        )
        refusals.append(f"holdout: no pair is held out ({way}). Raise data.holdout.share, or give data.holdout.sources")
    return Report(parts, tuple(notes), tuple(refusals))


def _kept(found: Profile) -> Iterator[Selected]:
    columns = [found.table[name].tolist() for name in ("part", "row", "id", "split")]
    for aside, part, row, identity, split in zip(found.quarantined.tolist(), *columns, strict=True):
        if not aside:
            yield Selected(part, row, identity, split)


# ------------------------------------------------------------------------------------------------ quarantine


def write_quarantine(found: Profile, parts: Mapping[str, Path], path: Path) -> None:
    """Store a row per quarantined record: id, part, source, line, rules (all it breaks), reason, masked excerpt."""
    import pyarrow as pa

    names = ("id", "part", "source", "line", "rules", "reason", "excerpt")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    table = found.table
    broken = [[name for name, failing in found.failing.items() if failing[i]] for i in range(len(table))]
    for part, directory in parts.items():
        wanted = {int(table["row"][i]): i for i in found.quarantined.nonzero()[0] if table["part"][i] == part}
        for number, row in enumerate(read_snapshot(directory) if wanted else ()):
            if number in wanted:
                payload = json.loads(row.payload)
                text = (
                    payload["raw"] if row.reason is not None else "".join(m["content"] for m in payload["prompt"][-1:])
                )
                rule = ", ".join(broken[wanted[number]])
                where = (row.id, part, row.provenance.source, row.provenance.line)
                for name, value in zip(names, (*where, rule, row.reason, excerpt(text)), strict=True):
                    columns[name].append(value)
    schema = pa.schema([(name, pa.int64() if name == "line" else pa.string()) for name in names])
    write_table(pa.table(columns, schema=schema), path, text="excerpt")


def excerpt(text: str) -> str:
    """At most 80 characters of the beginning; digits and whatever has an '@' masked, control characters as spaces."""
    start = text[: 5 * _EXCERPT]
    if len(text) > len(start):
        start = start.rpartition(" ")[0]  # a mail address may have been cut before its '@'
    start = re.sub(r"\d", "#", _MAIL.sub("<e-mail>", start))
    start = " ".join("".join(c if c.isprintable() else " " for c in start).split())
    return start if len(start) <= _EXCERPT else start[: _EXCERPT - 1] + "…"
