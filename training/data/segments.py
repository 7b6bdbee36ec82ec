"""Writing one segment: at most 65,536 rows of one file as Parquet, and their Merkle leaves in the same order.

The bytes of a segment depend on the rows alone. Text stands in the column ``payload`` and in what the data declare of
their rows, and nowhere else: statistics, which would repeat it, are kept of numbers only.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.leaves import leaf
from training.data.records import Provenance
from training.data.sources import Chunk, Line, Unreadable, parse_chunk
from training.data.stored import COLUMNS, DECLARED, SEGMENT, leaves_of, parquet_of, parquet_options
from training.digest import canonical_json, digest_file

if TYPE_CHECKING:
    import pyarrow as pa

GROUP = 8_192  # rows of a row group: what is held as columns at a time
_declared: Callable[[Provenance], tuple[str | None, ...]] = attrgetter(*DECLARED)


@dataclass(frozen=True)
class Segment:
    """What a segment holds. ``fault``: the first line that is no record and why; ``parquet`` and ``leaves``: SHA-256 (hex)
    of its two files."""

    rows: int
    unreadable: int
    fault: str | None
    parquet: str
    leaves: str


@dataclass(frozen=True)
class Work:
    """A segment to be written: the lines of ``chunk``, which are in ``form``, as ``stem``.parquet and ``stem``.leaves.

    ``number`` tells the caller which file it belongs to.
    """

    number: int
    chunk: Chunk
    form: str
    stem: Path


def write_segment(work: Work) -> tuple[int, Path, Segment]:
    """Parse the chunk and store it; runs in a worker process. A chunk without any row leaves no file."""
    import pyarrow.parquet as pq

    rows = unreadable = 0
    fault = None
    lines = parse_chunk(work.chunk)
    with (
        pq.ParquetWriter(parquet_of(work.stem), _schema(), **parquet_options(_schema(), "payload")) as file,
        open(leaves_of(work.stem), "wb") as leaves,
    ):
        while (group := _Group.of(islice(lines, GROUP), work.form)).lines:
            file.write_table(group.table())
            leaves.write(b"".join(group.leaves))
            rows, unreadable, fault = rows + len(group.lines), unreadable + group.unreadable, fault or group.fault
    if not rows:
        parquet_of(work.stem).unlink()
        leaves_of(work.stem).unlink()
        return work.number, work.stem, Segment(0, 0, None, "", "")
    if rows > SEGMENT:
        raise AssertionError(f"a chunk holds {rows} rows; at most {SEGMENT} are allowed")
    parquet, leaf_file = (digest_file(path).value for path in (parquet_of(work.stem), leaves_of(work.stem)))
    return work.number, work.stem, Segment(rows, unreadable, fault, parquet, leaf_file)


@dataclass
class _Group:
    """Rows as columns. Of a line nothing but its text and its numbers is held."""

    form: str
    ids: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    declared: list[tuple[str | None, ...]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    leaves: list[bytes] = field(default_factory=list)
    unreadable: int = 0
    fault: str | None = None

    @classmethod
    def of(cls, lines: Iterable[Line], form: str) -> "_Group":
        group = cls(form)
        for line in lines:
            where, content = line.provenance, line.content
            if isinstance(content, Unreadable):
                payload, weight, reason = canonical_json({"raw": content.excerpt}), 1.0, content.reason
                group.unreadable += 1
                group.fault = group.fault or f"line {where.line}: {reason}"
            else:
                payload, weight, reason = content.payload_bytes, content.weight, None
            group.ids.append(content.id)
            group.sources.append(where.source)
            group.lines.append(where.line)
            group.declared.append(_declared(where))
            group.weights.append(weight)
            group.payloads.append(payload)
            group.reasons.append(reason)
            group.leaves.append(leaf(content.id, where, weight))
        return group

    def table(self) -> "pa.Table":
        import pyarrow as pa

        columns: dict[str, Any] = {
            "id": self.ids,
            "source": self.sources,
            "line": self.lines,
            "form": [self.form] * len(self.lines),
            "weight": self.weights,
            "payload": pa.array(self.payloads, pa.large_binary()).cast(pa.large_string()),
            "reason": self.reasons,
        }
        columns |= dict(zip(DECLARED, map(list, zip(*self.declared, strict=True)), strict=True))
        return pa.table({name: columns[name] for name in COLUMNS}, schema=_schema())


def _schema() -> "pa.Schema":
    import pyarrow as pa

    kinds = {"line": pa.int64(), "weight": pa.float64(), "payload": pa.large_string()}
    null = {"reason", *DECLARED}
    return pa.schema([pa.field(name, kinds.get(name, pa.string()), nullable=name in null) for name in COLUMNS])
