"""The contract: the rules over the facts as one Great Expectations suite, judged by chunks of a segment's size and merged.

Great Expectations counts on its own, so that validation can hold its counts against ours. It is imported only where a segment
has to be judged or a page drawn. A chunk's counts are kept, by the digest of its facts and of the suite. Data Docs are drawn
from the merged result; they open offline and call nobody.
"""

import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.factstore import SegmentFacts
from training.data.pool import ordered_map
from training.data.profile import Profile, column_of
from training.data.rules import Rule, rules
from training.data.settings import ValidationSettings
from training.data.stored import SEGMENT
from training.digest import canonical_json, digest_json

if TYPE_CHECKING:
    import numpy as np

    from training.data.expectations import Report

_FEW = 4  # chunks: for so few no process is started, which would import Great Expectations once more (4 s)


@dataclass(frozen=True)
class Counts:
    """What Great Expectations found for one rule: rows, rows where the fact is null, rows that break the rule."""

    rows: int = 0
    missing: int = 0
    unexpected: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.rows + other.rows, self.missing + other.missing, self.unexpected + other.unexpected)


@dataclass(frozen=True)
class _Chunk:
    """Consecutive segments of a part that are judged together, and those of their facts that relations over the whole set
    found."""

    segments: tuple[SegmentFacts, ...]
    derived: "Mapping[str, np.ndarray[Any, Any]]"
    rules: tuple[Rule, ...]
    cache: Path | None

    @property
    def part(self) -> str:
        return self.segments[0].part

    def columns(self) -> "dict[str, np.ndarray[Any, Any]]":
        """The fact of every rule, under the rule's name."""
        return {
            rule.name: self.derived[rule.fact] if rule.fact in self.derived else column_of(self.segments, rule.fact)
            for rule in self.rules
        }


def contract(found: Profile, settings: ValidationSettings, report: "Report", docs: Path) -> dict[tuple[str, str], int]:
    """Judge the facts by the suite, draw Data Docs into ``docs``, and count the failing rows per (part, rule)."""
    from training.data.docs import write_docs

    asked = rules(settings)
    processes = 1 if found.rows < _FEW * SEGMENT else found.context.processes
    counted = {(part, rule.name): Counts() for part in found.parts for rule in asked}
    with closing(ordered_map(judge_chunk, _chunks(found, asked), processes)) as results:
        for part, counts in results:
            for name, count in counts.items():
                counted[part, name] += count
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_docs(counted, settings, report, docs)
    return {key: count.unexpected for key, count in counted.items()}


def _chunks(found: Profile, asked: tuple[Rule, ...]) -> Iterator[_Chunk]:
    """Segments in order, as many to a chunk as have the rows of one full segment: many small files are few chunks.

    Law: what is added at the end of a part leaves the chunks before as they are, but the last one.
    """
    waiting: list[int] = []
    rows = 0
    for number, segment in enumerate(found.segments):
        if waiting and (rows + segment.rows > SEGMENT or found.segments[waiting[0]].part != segment.part):
            yield _chunk(found, waiting, asked)
            waiting, rows = [], 0
        waiting.append(number)
        rows += segment.rows
    yield _chunk(found, waiting, asked)


def _chunk(found: Profile, numbers: list[int], asked: tuple[Rule, ...]) -> _Chunk:
    here = slice(found.slices[numbers[0]].start, found.slices[numbers[-1]].stop)
    derived = {name: values[here].astype("float64") for name, values in found.derived.items()}
    return _Chunk(tuple(found.segments[number] for number in numbers), derived, asked, found.context.cache)


def judge_chunk(chunk: _Chunk) -> tuple[str, dict[str, Counts]]:
    """The part of a chunk, and its counts per rule: kept ones, or what Great Expectations finds now."""
    columns = chunk.columns()
    path = None
    if chunk.cache is not None:
        content = hashlib.sha256(canonical_json([[r.name, r.bounds.minimum, r.bounds.maximum] for r in chunk.rules]))
        content.update(_version().encode())
        for name, values in columns.items():
            content.update(f"{name} {len(values)} {values.dtype}".encode())
            content.update(values.tobytes())
        path = chunk.cache / "contract" / f"{content.hexdigest()}.json"
        if (kept := _kept(path)) is not None:
            return chunk.part, kept
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies, at import and while judging
        counts = _judged(columns, chunk.rules)
    if path is not None:
        value = {name: [count.rows, count.missing, count.unexpected] for name, count in counts.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{uuid.uuid4().hex}")
        partial.write_text(json.dumps({"counts": value, "digest": str(digest_json(value))}), encoding="utf-8")
        os.replace(partial, path)
    return chunk.part, counts


def _kept(path: Path) -> dict[str, Counts] | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(path.read_bytes())
        if str(digest_json(stored["counts"])) == stored["digest"]:
            return {name: Counts(*values) for name, values in stored["counts"].items()}
    return None


def _version() -> str:
    from importlib.metadata import version

    return version("great_expectations")


# ------------------------------------------------------------------------------------------------ Great Expectations


@cache
def _session() -> tuple[Any, Any]:
    """An ephemeral context that says nothing to anybody, and a batch definition for frames handed over."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the package is imported
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        analytics_enabled=False,
        progress_bars=ProgressBarsConfig(globally=False),
    )
    context = gx.get_context(mode="ephemeral", project_config=config)
    asset = context.data_sources.add_pandas("snapshots").add_dataframe_asset("facts")
    return context, asset.add_batch_definition_whole_dataframe("rows")


def validated(frame: Any, expectations: list[Any]) -> list[Any]:
    """The results of Great Expectations for a frame, in the order of ``expectations``."""
    import great_expectations as gx

    _, definition = _session()
    batch = definition.get_batch(batch_parameters={"dataframe": frame})
    suite = gx.ExpectationSuite(name="facts", expectations=expectations)
    result = batch.validate(suite, result_format={"result_format": "BASIC", "partial_unexpected_count": 0})
    assert len(result.results) == len(expectations)
    by_place = {item.expectation_config.meta["place"]: item for item in result.results}
    return [by_place[expectation.meta["place"]] for expectation in expectations]


def _judged(columns: "Mapping[str, np.ndarray[Any, Any]]", asked: tuple[Rule, ...]) -> dict[str, Counts]:
    import pandas as pd

    _session()
    from great_expectations.expectations import ExpectColumnValuesToBeBetween

    expectations = [
        ExpectColumnValuesToBeBetween(
            column=rule.name,
            min_value=rule.bounds.minimum,
            max_value=rule.bounds.maximum,
            meta={"place": place},
        )
        for place, rule in enumerate(asked)
    ]
    results = validated(pd.DataFrame(dict(columns)), expectations)
    counts = {}
    for rule, item in zip(asked, results, strict=True):
        if item.exception_info and item.exception_info.get("raised_exception"):
            raise RuntimeError(f"Great Expectations failed at {rule.name}: {item.exception_info}")
        told = item.result
        counts[rule.name] = Counts(told["element_count"], told.get("missing_count", 0), told["unexpected_count"])
    return counts
