"""Scores and per-item values: what an evaluation leaves behind and what the gate reads.

A result folder holds ``scores.json``, ``items.jsonl`` and, where text was generated, ``generations.jsonl``. The same
results give the same bytes: keys and rows are sorted, nothing names a time, a path or a machine. A value that is not
finite is written as ``null`` (JSON knows no NaN) and read back as NaN, which no rule of the gate accepts.
"""

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

SCORES, ITEMS, GENERATIONS = "scores.json", "items.jsonl", "generations.jsonl"


@dataclass(frozen=True)
class Score:
    """One number about a model: ``value`` and its standard error (None where unknown) over ``n`` items."""

    benchmark: str
    metric: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        for part in (self.benchmark, self.metric):
            if not part or "/" in part or any(c.isspace() for c in part):
                raise ValueError(f"{part!r} cannot be part of a metric's name: no slash and no white space, please")

    @property
    def name(self) -> str:
        """``benchmark/metric``, as an experiment's gate writes it."""
        return f"{self.benchmark}/{self.metric}"

    def as_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "higher_is_better": self.higher_is_better,
            "metric": self.metric,
            "n": self.n,
            "stderr": None if self.stderr is None else finite(self.stderr),
            "value": finite(self.value),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Score":
        value = math.nan if row["value"] is None else float(row["value"])
        return cls(row["benchmark"], row["metric"], value, row["stderr"], row["n"], row["higher_is_better"])


@dataclass(frozen=True)
class ItemScore:
    """The value of one metric on one item. ``item`` names the document itself, so that two models pair up."""

    item: str
    value: float


@dataclass(frozen=True)
class Results:
    """All that is known of one model: scores by name, and per metric name the value of every item."""

    scores: Mapping[str, Score] = field(default_factory=dict)
    items: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, scores: Iterable[Score], items: Mapping[str, Sequence[ItemScore]] | None = None) -> "Results":
        """Raises ValueError where a metric, or an item of a metric, comes twice."""
        by_name: dict[str, Score] = {}
        for score in scores:
            if score.name in by_name:
                raise ValueError(f"{score.name} comes twice; a model has one value for a metric")
            by_name[score.name] = score
        tables = {name: {row.item: row.value for row in rows} for name, rows in (items or {}).items()}
        for name, rows in (items or {}).items():
            if len(tables[name]) != len(rows):
                raise ValueError(
                    f"{name}: {len(rows) - len(tables[name])} items come twice; items are told by their id"
                )
        return cls(by_name, tables)

    @classmethod
    def read(cls, folders: Iterable[Path]) -> "Results":
        """The union of several result folders. Raises ValueError where two of them hold the same metric."""
        scores: list[Score] = []
        items: dict[str, list[ItemScore]] = {}
        for folder in folders:
            scores += read_scores(folder)
            items |= read_items(folder)
        return cls.of(scores, items)


def finite(value: float) -> float | None:
    """``value`` as a plain float, or None where it is NaN or infinite and has no JSON."""
    return float(value) if math.isfinite(value) else None


def mean_score(
    benchmark: str, metric: str, rows: Sequence[ItemScore], higher_is_better: bool, value: float | None = None
) -> Score:
    """The mean of the items, or ``value`` where the metric is aggregated otherwise but has ``rows`` as its parts.

    Standard error: sample standard deviation over the square root of n (lm-eval's ``mean_stderr``); None below two.
    """
    values = [row.value for row in rows]
    spread = stdev(values) / math.sqrt(len(values)) if len(values) > 1 and all(map(math.isfinite, values)) else None
    mean = value if value is not None else fmean(values) if values else math.nan
    return Score(benchmark, metric, mean, spread, len(values), higher_is_better)


def write_results(
    folder: Path,
    scores: Iterable[Score],
    items: Mapping[str, Sequence[ItemScore]],
    generations: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a result folder in one move: it is there whole or not at all. ``items`` is keyed by ``Score.name``.

    Raises FileExistsError where ``folder`` exists: a result is never overwritten.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; a result is never overwritten, remove it or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    ordered = [score.as_json() for score in sorted(scores, key=lambda s: (s.benchmark, s.metric))]
    _write(draft / SCORES, [json.dumps(ordered, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)])
    rows = []
    for name in sorted(items):
        benchmark, _, metric = name.partition("/")
        for row in sorted(items[name], key=lambda r: r.item):
            rows.append({"benchmark": benchmark, "metric": metric, "item": row.item, "value": finite(row.value)})
    _write(draft / ITEMS, map(_line, rows))
    if generations:
        _write(draft / GENERATIONS, map(_line, generations))
    os.rename(draft, folder)


def read_scores(folder: Path) -> list[Score]:
    return [Score.from_json(row) for row in json.loads((folder / SCORES).read_text(encoding="utf-8"))]


def read_items(folder: Path) -> dict[str, list[ItemScore]]:
    """Per-item values by metric name."""
    tables: dict[str, list[ItemScore]] = {}
    for row in _rows(folder / ITEMS):
        value = math.nan if row["value"] is None else float(row["value"])
        tables.setdefault(f"{row['benchmark']}/{row['metric']}", []).append(ItemScore(row["item"], value))
    return tables


def read_generations(folder: Path) -> list[dict[str, Any]]:
    """The generated texts; none where the benchmark generates none or the texts were erased."""
    path = folder / GENERATIONS
    return _rows(path) if path.exists() else []


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _write(path: Path, lines: Iterable[str]) -> None:
    # A lone surrogate can come out of a tokenizer's byte fallback; it has no UTF-8 and becomes a question mark.
    with open(path, "w", encoding="utf-8", errors="replace", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def _rows(path: Path) -> list[dict[str, Any]]:
    # Lines end at "\n" alone: str.splitlines would also cut at U+2028 inside a text.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
