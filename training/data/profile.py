"""The profile: facts of every row, what relations over the whole set add to them, and which rows break which rule.

A fact is a number (or null where it makes no sense, as the pairs of an SFT row); a rule is a bound on one fact. So the same rules
can be read by a person, applied here to every row, and handed to Great Expectations. The profile holds no text. Columns are read
from the stored facts when they are asked for, so that memory stays at a few bytes a row.
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.facts.base import Maker
from training.data.facts.contamination import Contamination
from training.data.facts.keys import Edges, Keys
from training.data.facts.language import Language
from training.data.facts.near import Near
from training.data.facts.people import People
from training.data.facts.policy import Policy, licences_for
from training.data.facts.shape import Shape
from training.data.facts.shortcuts import Shortcuts
from training.data.facts.text import Text
from training.data.facts.tokens import Tokens
from training.data.factstore import BenchmarkItems, Order, Preferred, SegmentFacts, Table, make_facts, stored_facts
from training.data.near import near_duplicates
from training.data.pool import ordered_map
from training.data.relations import Prompts, contradictions, in_split, occurrences, prompts_in_holdout
from training.data.rules import action_of, rules
from training.data.settings import Holdout, ValidationSettings
from training.data.stored import segments
from training.digest import digest_file

if TYPE_CHECKING:
    import numpy as np

_FEW = 8192  # rows: for so few no process is started, which takes longer than the work
PARTS = ("preferences", "sft", "holdout")


@dataclass(frozen=True)
class Context:
    """What validation is given beside data and settings. Only ``processes`` and ``cache`` cannot change the outcome.

    ``cache``: where facts are kept (None: nowhere). ``tokenizer``: a folder with a tokenizer, its digest, and how many tokens a
    row of each part may have. ``benchmarks``: JSON Lines of {benchmark, item, text}. ``erased``: JSON Lines of {id} or
    {subject}: what must not come back. ``today``: an ISO date, for consent that expires (None: the clock's). ``last``: the
    histograms of the last snapshot of this experiment.
    """

    processes: int = 1
    cache: Path | None = None
    tokenizer: Path | None = None
    tokenizer_digest: str = ""
    max_tokens: Mapping[str, int] = field(default_factory=dict)
    benchmarks: Path | None = None
    erased: Path | None = None
    today: str | None = None
    last: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Profile:
    """The rows of all parts in stored order, preferences first, then sft, then holdout.

    ``parts``: where each part's rows are; ``derived``: facts that relations over the whole set found; ``train``, ``held``:
    the split (neither where a line is no record). ``failing``: rule → whether each row breaks it. ``quarantined``: whether
    each row is put aside, for whichever rules. ``faulty``: the same, without rows that only have a held-out prompt, which are
    nobody's fault.
    """

    context: Context
    segments: tuple[SegmentFacts, ...]
    derived: "Mapping[str, np.ndarray[Any, Any]]"
    train: "np.ndarray[Any, Any]"
    held: "np.ndarray[Any, Any]"
    failing: "Mapping[str, np.ndarray[Any, Any]]"
    quarantined: "np.ndarray[Any, Any]"
    faulty: "np.ndarray[Any, Any]"

    @property
    def rows(self) -> int:
        return len(self.quarantined)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Where each segment's rows are."""
        return tuple(_slices(self.segments))

    @cached_property
    def parts(self) -> dict[str, slice]:
        found: dict[str, slice] = {}
        for segment, here in zip(self.segments, self.slices, strict=True):
            found[segment.part] = slice(found.get(segment.part, here).start, here.stop)
        return found

    def column(self, name: str) -> "np.ndarray[Any, Any]":
        """A fact of every row (float64; NaN is null, as everywhere where nobody made it) or a hash of it."""
        return self.derived[name] if name in self.derived else column_of(self.segments, name)

    def part_column(self, part: str, name: str) -> "np.ndarray[Any, Any]":
        """A fact of every row of one part."""
        if name in self.derived:
            return self.derived[name][self.parts[part]]
        return column_of([segment for segment in self.segments if segment.part == part], name)

    def place(self, row: int) -> tuple[str, int]:
        """The source and the line of a row."""
        number = next(i for i, here in enumerate(self.slices) if here.start <= row < here.stop)
        columns = segment_columns(self.segments[number].segment, ("source", "line"))
        inside = row - self.slices[number].start
        return columns.column("source")[inside].as_py(), columns.column("line")[inside].as_py()


def segment_columns(segment: Path, names: Sequence[str]) -> Any:
    """Columns of a stored segment as an Arrow table."""
    import pyarrow.parquet as pq

    return pq.read_table(segment, columns=list(names), use_threads=False)


def rows_of(segment: Path) -> int:
    """How many rows a stored segment has."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(segment).num_rows)


def column_of(segments: Sequence[SegmentFacts], name: str) -> "np.ndarray[Any, Any]":
    """One column of several segments, one after the other; NaN where no maker made it."""
    import numpy as np

    return np.concatenate([segment.column(name) for segment in segments])


def _slices(segments: Sequence[SegmentFacts]) -> Iterator[slice]:
    first = 0
    for segment in segments:
        yield slice(first, first + segment.rows)
        first += segment.rows


# ------------------------------------------------------------------------------------------------ making


def profile(
    parts: Mapping[str, Path], settings: ValidationSettings, holdout: Holdout, context: Context | None = None
) -> Profile:
    """Profile the snapshots ``parts`` ('preferences', and where there are any 'sft' and 'holdout') and apply the rules.

    Raises ValueError on an unknown part and where 'holdout' is given without files of its own, or the reverse.
    """
    unknown = set(parts) - set(PARTS)
    if unknown or "preferences" not in parts or ("holdout" in parts) != bool(holdout.sources):
        raise ValueError(f"parts {sorted(parts)} don't fit: preferences, sft if any, holdout if it has its own sources")
    context = context or Context()
    scratch = _scratch(context.cache)
    try:
        folder = context.cache or scratch
        orders: list[Order] = []
        for part in (name for name in PARTS if name in parts):
            asked = makers(settings, context, part), tables(context, part)
            orders += [Order(part, segment, *asked, folder) for segment in segments(parts[part])]
        rows = sum(rows_of(order.segment) for order in orders)
        facts = _facts(orders, context.processes if rows > _FEW else 1)
        found = _judged(facts, settings, holdout, context, scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    if context.cache is None:
        weakref.finalize(found, shutil.rmtree, scratch, ignore_errors=True)
    else:
        shutil.rmtree(scratch, ignore_errors=True)
    return found


def _scratch(cache: Path | None) -> Path:
    """A new folder for what is only needed now, on the disk of the cache; those of processes that were killed are removed."""
    if cache is None:
        return Path(tempfile.mkdtemp(prefix="alignmill-facts-"))
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob("scratch-*-*"):
        if not _alive(left.name.split("-")[1]):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"scratch-{os.getpid()}-", dir=cache))


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError):  # it is another user's, or no process's number
        pass
    return True


def _facts(orders: Sequence[Order], processes: int) -> tuple[SegmentFacts, ...]:
    """The facts of every segment. Those that are there are only checked, which needs no worker."""
    with ThreadPoolExecutor(processes) as threads:
        found = list(threads.map(stored_facts, orders))
    waiting = [segment.order for segment in found if segment.made]
    with closing(ordered_map(make_facts, waiting, processes)) as results:
        made = iter(results)
        return tuple(next(made) if segment.made else segment for segment in found)


def makers(settings: ValidationSettings, context: Context, part: str) -> tuple[Maker, ...]:
    """The makers of facts for a part; those that have nothing to work with are left out, and their facts are null."""
    today = context.today or datetime.now(UTC).date().isoformat()
    erased = (digest_file(context.erased).value, str(context.erased)) if context.erased else ("", None)
    found: list[Maker] = [
        Keys(),
        Shape(),
        Text(),
        People(),
        Near(settings.near_duplicate_from),
        Policy(licences_for(settings), today, *erased),
        Language(),
    ]
    if context.tokenizer is not None and part in context.max_tokens:
        found.append(Tokens(str(context.tokenizer), context.tokenizer_digest, context.max_tokens[part]))
    if part != "sft":
        found.append(Shortcuts())
    if context.benchmarks is not None:
        found.append(contamination(context.benchmarks))
    return tuple(found)


def tables(context: Context, part: str) -> tuple[Table, ...]:
    """What is found of a part beside facts of every row."""
    found: list[Table] = [] if part == "sft" else [Preferred()]
    if context.benchmarks is not None:
        found.append(BenchmarkItems(contamination(context.benchmarks)))
    return tuple(found)


def contamination(texts: Path) -> Contamination:
    """The maker of contamination by the items of a file of benchmark texts."""
    return Contamination(str(texts), digest_file(texts).value)


def _judged(
    facts: tuple[SegmentFacts, ...], settings: ValidationSettings, holdout: Holdout, context: Context, scratch: Path
) -> Profile:
    """The rules over the facts. One column of all rows is held at a time, beside what relations gave and booleans."""
    import numpy as np

    derived, train, held = relate(facts, settings, holdout, scratch)
    quarantined, faulty = np.zeros(len(train), bool), np.zeros(len(train), bool)
    found = Profile(context, facts, derived, train, held, {}, quarantined, faulty)
    failing = {}
    for rule in rules(settings):
        failing[rule.name] = rule.bounds.broken(found.column(rule.fact))
        if action_of(settings, rule.name).action != "warn":
            quarantined |= failing[rule.name]
            if rule.name != "in_holdout":
                faulty |= failing[rule.name]
    return replace(found, failing=failing)


def relate(
    facts: tuple[SegmentFacts, ...], settings: ValidationSettings, holdout: Holdout, scratch: Path
) -> "tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """What rows are to other rows: the facts of that, and which rows are for training and which are held out.

    A record without a prompt (plain text) stands for itself: its own id takes the place of the prompt's digest.
    """
    import numpy as np

    names = ("occurrence", "near", "contradictions", "prompt_in_holdout", "contaminated")
    columns: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in names}
    prompts: dict[str, Prompts] = {}
    for part in dict.fromkeys(segment.part for segment in facts):
        here = [segment for segment in facts if segment.part == part]
        record = column_of(here, "unreadable") == 0
        ids = column_of(here, "id_hi"), column_of(here, "id_lo")
        columns["occurrence"].append(np.where(record, occurrences(*ids), np.nan).astype("float32"))
        near = near_duplicates(_reader(here), ids[0], Near(settings.near_duplicate_from), scratch)
        columns["near"].append(np.where(record, near, np.nan).astype("float32"))
        columns["contradictions"].append(np.where(record, _contradictions(here), np.nan).astype("float32"))
        alone = np.isnan(column_of(here, "question_characters"))
        hi, lo = (
            np.where(alone, own, column_of(here, name))
            for own, name in zip(ids, ("prompt_hi", "prompt_lo"), strict=True)
        )
        prompts[part] = Prompts(hi, lo, record)
    columns["prompt_in_holdout"] = [
        values.astype("float32") for values in prompts_in_holdout(prompts, holdout.share).values()
    ]
    held = np.concatenate([in_split(rows, part, holdout.share) for part, rows in prompts.items()])
    train = np.concatenate([rows.record for rows in prompts.values()]) & ~held
    # Nothing is learnt from what is held out, so no benchmark suffers by it.
    columns["contaminated"] = [np.where(held, np.nan, column_of(facts, "contaminated"))]
    return {name: np.concatenate(values) for name, values in columns.items()}, train, held


def _reader(here: Sequence[SegmentFacts]) -> "Callable[[str], Iterable[np.ndarray[Any, Any]]]":
    return lambda name: (segment.column(name) for segment in here)


def _contradictions(here: Sequence[SegmentFacts]) -> "np.ndarray[Any, Any]":
    """How many preferences of each row of a part another row has the other way round; NaN for SFT rows."""
    import numpy as np

    rows = sum(segment.rows for segment in here)
    if here[0].part == "sft":
        return np.full(rows, np.nan)
    tables = [segment.table("edges") for segment in here]
    starts = np.cumsum([0, *(segment.rows for segment in here)])
    row = np.concatenate([table["row"] + start for table, start in zip(tables, starts, strict=False)])
    keys = (
        np.concatenate([table[name] for table in tables]) for name in ("edge_hi", "edge_lo", "reverse_hi", "reverse_lo")
    )
    return contradictions(rows, Edges(row.astype("int64"), *keys))
