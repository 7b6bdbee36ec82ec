"""What stands in a snapshot: its segments, their rows and their leaves. Nothing here knows how they were read.

``segment-00000.parquet`` holds rows of one file, ``segment-00000.leaves`` their leaves (32 bytes each) in the same order. Text
stands in the column ``payload`` and in what the data declare of their rows.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.leaves import leaf
from training.data.records import Provenance, Record

try:  # as in records: the values are the same
    import orjson
except ModuleNotFoundError:
    orjson = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import pyarrow as pa

SEGMENT = 65_536  # rows
DECLARED = ("licence", "subject", "consent", "legal_basis", "purpose", "expires", "collected_at")
COLUMNS = ("id", "source", "line", "licence", "form", "weight", "payload", "reason", *DECLARED[1:])
_BATCH = 1024


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
        return record_of(self.payload)

    @property
    def leaf(self) -> bytes:
        """The row's Merkle leaf (32 bytes)."""
        return leaf(self.id, self.provenance, self.weight)


def record_of(payload: str) -> Record:
    """The record that a stored payload holds."""
    return Record.from_payload(json.loads(payload) if orjson is None else orjson.loads(payload))


def segments(directory: Path) -> list[Path]:
    """The segments of a snapshot (their Parquet files) in order. Raises FileNotFoundError where there is none."""
    found = sorted(directory.glob("segment-*.parquet"), key=lambda path: (len(path.name), path.name))
    if not found:
        raise FileNotFoundError(f"{directory} holds no snapshot: no segment-*.parquet was found")
    return found


def read_snapshot(directory: Path, columns: Sequence[str] = COLUMNS) -> Iterator[Row]:
    """The rows in stored order. Columns left out read as empty text (None where there may be no value).

    Raises FileNotFoundError where ``directory`` holds no segment.
    """
    for path in segments(directory):
        yield from read_segment(path, columns)


def read_segment(path: Path, columns: Sequence[str] = COLUMNS) -> Iterator[Row]:
    """The rows of one segment, as ``read_snapshot`` gives them."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH, columns=list(columns), use_threads=False):
            yield from _rows(batch)


def _rows(batch: Any) -> Iterator[Row]:
    found = {name: batch.column(name).to_pylist() for name in batch.schema.names}
    missing = {"id": "", "source": "", "line": 0, "form": "", "payload": "", "weight": 1.0}

    def column(name: str) -> Iterable[Any]:
        return found[name] if name in found else repeat(missing.get(name), batch.num_rows)

    declared = zip(*map(column, ("source", "line", *DECLARED)), strict=True)
    contents = zip(*map(column, ("id", "form", "payload", "reason", "weight")), strict=True)
    for where, (id, form, payload, reason, weight) in zip(declared, contents, strict=True):
        yield Row(id, Provenance(*where), form, payload, reason, weight)


def read_leaves(directory: Path) -> Iterator[bytes]:
    """The stored leaves (32 bytes each) in stored order."""
    for path in segments(directory):
        data = leaves_of(path.with_suffix("")).read_bytes()
        yield from (data[i : i + 32] for i in range(0, len(data), 32))


def write_table(table: "pa.Table", path: Path, text: str | None = None) -> None:
    """Parquet whose bytes depend on the table alone; of the columns numbers have statistics, and no text has.

    ``text``: a column whose values hardly repeat.
    """
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, table.schema, **parquet_options(table.schema, text)) as file:
        file.write_table(table, row_group_size=SEGMENT)


def parquet_options(schema: "pa.Schema", text: str | None) -> dict[str, Any]:
    """How Parquet is written here."""
    import pyarrow as pa

    numbers = [field.name for field in schema if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)]
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": [name for name in schema.names if name not in ("id", text)],
        "write_statistics": numbers,
        "version": "2.6",
    }


def parquet_of(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.parquet")


def leaves_of(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.leaves")
