"""A snapshot: the records of an ordered list of sources as immutable segments, each with its Merkle leaves.

``segment-00000.parquet`` holds at most 65,536 rows, ``segment-00000.leaves`` their leaves (32 bytes each) in the same
order. Unreadable lines are rows too, so that rows in = rows kept + rows quarantined. The bytes of a segment depend on
the content alone. Text stands in the column ``payload`` and nowhere else (no statistics, which would repeat it).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.records import Provenance, Record
from training.data.sources import Line, Unreadable, read
from training.digest import canonical_json
from training.settings import Refused, Source

SEGMENT = 65_536  # rows
_BATCH = 1024
COLUMNS = ("id", "source", "line", "licence", "form", "weight", "payload", "reason")


@dataclass(frozen=True)
class Row:
    """One stored row: ``reason`` is None for a record, and says why a line is none."""

    id: str
    provenance: Provenance
    form: str
    payload: str
    reason: str | None = None
    weight: float = 1.0

    @property
    def record(self) -> Record:
        """Raises ValueError for an unreadable line."""
        if self.reason is not None:
            raise ValueError(f"{self.provenance.source}:{self.provenance.line} is unreadable: {self.reason}")
        return Record.from_payload(json.loads(self.payload))

    @property
    def leaf(self) -> bytes:
        """The row's Merkle leaf (32 bytes)."""
        return leaf(self.id, self.provenance, self.weight)


@dataclass(frozen=True)
class SourceFacts:
    """What came out of one source."""

    path: str
    form: str
    licence: str | None
    rows: int
    unreadable: int


@dataclass(frozen=True)
class SnapshotFacts:
    """What a snapshot holds. The Merkle root over ``leaves()`` is its identity."""

    directory: Path
    sources: tuple[SourceFacts, ...]
    segments: int

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @property
    def unreadable(self) -> int:
        return sum(source.unreadable for source in self.sources)

    def leaves(self) -> Iterator[bytes]:
        """All leaves in stored order."""
        return read_leaves(self.directory)


def leaf(id: str, provenance: Provenance, weight: float = 1.0) -> bytes:
    """RFC 6962 leaf hash of a record where it stands: SHA-256(0x00 || canonical JSON of {id, provenance}).

    A weight other than 1 stands there too, as ``weight``: it changes what is learnt and the id doesn't cover it.
    """
    content: dict[str, Any] = {"id": id, "provenance": provenance.payload()}
    if weight != 1.0:
        content["weight"] = weight
    return hashlib.sha256(b"\0" + canonical_json(content)).digest()


def write_snapshot(sources: Sequence[Source], root: Path, out: Path) -> SnapshotFacts:
    """Read ``sources`` (paths relative to ``root``) in order and store them under ``out``.

    Raises Refused on a source that cannot be read and on a file named twice; ``out`` then holds no segment.
    """
    twice = {source.path for source in sources if [other.path for other in sources].count(source.path) > 1}
    if twice:
        raise Refused(f"{', '.join(sorted(twice))}: named twice among the sources. Name every file once")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.glob("segment-*")):
        raise FileExistsError(f"{out} already holds a snapshot, and a snapshot is immutable")
    facts: list[SourceFacts] = []
    try:
        segments = 0
        pending: list[Row] = []
        for source in sources:
            reading = read(source, root)
            rows = unreadable = 0
            for line in reading.lines:
                rows += 1
                unreadable += isinstance(line.content, Unreadable)
                pending.append(_row(line, reading.form))
                if len(pending) == SEGMENT:
                    _write(out, segments, pending)
                    segments, pending = segments + 1, []
            facts.append(SourceFacts(source.path, reading.form, source.licence, rows, unreadable))
        if pending:
            _write(out, segments, pending)
            segments += 1
    except BaseException:
        for path in out.glob("segment-*"):
            path.unlink()
        raise
    return SnapshotFacts(out, tuple(facts), segments)


def read_snapshot(directory: Path, columns: Sequence[str] = COLUMNS) -> Iterator[Row]:
    """The rows in stored order. Columns left out read as empty text (None for licence and reason).

    Raises FileNotFoundError where ``directory`` holds no segment.
    """
    import pyarrow.parquet as pq

    for path in _segments(directory):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH, columns=list(columns), use_threads=False):
                for row in batch.to_pylist():
                    yield Row(
                        row.get("id", ""),
                        Provenance(row.get("source", ""), row.get("line", 0), row.get("licence")),
                        row.get("form", ""),
                        row.get("payload", ""),
                        row.get("reason"),
                        row.get("weight", 1.0),
                    )


def read_leaves(directory: Path) -> Iterator[bytes]:
    """The stored leaves (32 bytes each) in stored order."""
    for path in _segments(directory):
        data = path.with_suffix(".leaves").read_bytes()
        yield from (data[i : i + 32] for i in range(0, len(data), 32))


def _segments(directory: Path) -> list[Path]:
    found = sorted(directory.glob("segment-*.parquet"))
    if not found:
        raise FileNotFoundError(f"{directory} holds no snapshot: no segment-*.parquet was found")
    return found


def _row(line: Line, form: str) -> Row:
    content = line.content
    if isinstance(content, Unreadable):
        payload = canonical_json({"raw": content.excerpt}).decode("utf-8")
        return Row(content.id, line.provenance, form, payload, content.reason)
    payload = canonical_json(content.payload()).decode("utf-8")
    return Row(content.id, line.provenance, form, payload, weight=content.weight)


def _write(out: Path, number: int, rows: list[Row]) -> None:
    import pyarrow as pa

    fields = [("id", pa.string(), False), ("source", pa.string(), False), ("line", pa.int64(), False)]
    fields += [("licence", pa.string(), True), ("form", pa.string(), False)]
    fields += [("weight", pa.float64(), False)]
    fields += [("payload", pa.large_string(), False), ("reason", pa.string(), True)]
    columns: dict[str, list[Any]] = {
        "id": [row.id for row in rows],
        "source": [row.provenance.source for row in rows],
        "line": [row.provenance.line for row in rows],
        "licence": [row.provenance.licence for row in rows],
        "form": [row.form for row in rows],
        "weight": [row.weight for row in rows],
        "payload": [row.payload for row in rows],
        "reason": [row.reason for row in rows],
    }
    schema = pa.schema([pa.field(name, kind, nullable=nullable) for name, kind, nullable in fields])
    write_table(pa.table(columns, schema=schema), out / f"segment-{number:05d}.parquet", text="payload")
    (out / f"segment-{number:05d}.leaves").write_bytes(b"".join(row.leaf for row in rows))


def write_table(table: Any, path: Path, text: str | None = None) -> None:
    """Parquet whose bytes depend on the table alone; no statistics of the column ``text``, which would repeat it."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    plain = [name for name in table.column_names if name != text]
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=3,
        use_dictionary=plain,
        write_statistics=plain,
        version="2.6",
    )
