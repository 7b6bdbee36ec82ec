"""The facts of every segment, made in worker processes and kept per maker.

A segment's facts stand in one Parquet file per maker (numbers and hashes; no text), named after everything that they depend
on: the segment's bytes, the part, the maker's key, our sources and the libraries. A maker whose key has changed makes its own
columns again and no others. Beside each file stands its digest: what does not match it is made again. The folder may be
deleted at any time, and whoever erases a record deletes it: the masked excerpts of the quarantine stand there too.
"""

import gc
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from training.data.facts.base import Batch, Maker
from training.data.facts.contamination import Contamination
from training.data.facts.keys import edges
from training.data.facts.policy import Policy
from training.data.records import Provenance, Record
from training.digest import digest_file, digest_json

if TYPE_CHECKING:
    import numpy as np

BATCH = 4096  # rows
_LIBRARIES = ("numpy", "rensa", "phonenumbers", "python-stdnum", "py3langid", "tokenizers")
_WHERE = ("source", "line", "licence", "subject", "consent", "legal_basis", "purpose", "expires", "collected_at")


class Table(Protocol):
    """Makes a table of facts that are not one a row: ``rows`` of each batch, one after the other.

    ``key`` as for a Maker; ``first``: the number of the batch's first row in its segment.
    """

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def key(self) -> str: ...

    def rows(self, batch: Batch, first: int) -> "Mapping[str, np.ndarray[Any, Any]]": ...


@dataclass(frozen=True)
class Preferred:
    """The edges of the rows: what they prefer to what."""

    name: str = "edges"
    columns: tuple[str, ...] = ("row", "edge_hi", "edge_lo", "reverse_hi", "reverse_lo")
    key: str = ""

    def rows(self, batch: Batch, first: int) -> "Mapping[str, np.ndarray[Any, Any]]":
        found = edges(batch)
        return vars(found) | {"row": found.row + first}


@dataclass(frozen=True)
class BenchmarkItems:
    """Every benchmark item of which something stands in a row, with the share of it."""

    maker: Contamination
    name: str = "items"
    columns: tuple[str, ...] = ("row", "item", "share")

    @property
    def key(self) -> str:
        return self.maker.key

    def rows(self, batch: Batch, first: int) -> "Mapping[str, np.ndarray[Any, Any]]":
        found = self.maker.found(batch)
        return {"row": found.row + first, "item": found.item, "share": found.share}


@dataclass(frozen=True)
class Order:
    """What a worker is asked for: the facts of one segment of ``part`` by ``makers`` and ``tables``, under ``folder``."""

    part: str
    segment: Path
    makers: tuple[Maker, ...]
    tables: tuple[Table, ...]
    folder: Path


@dataclass(frozen=True)
class SegmentFacts:
    """The facts of a segment: ``rows``, and for each maker's or table's file its name, path and columns."""

    order: Order
    rows: int
    files: tuple[tuple[str, Path, tuple[str, ...]], ...]
    made: tuple[str, ...]  # names of the makers and tables that had to work

    @property
    def part(self) -> str:
        return self.order.part

    @property
    def segment(self) -> Path:
        return self.order.segment

    @property
    def folder(self) -> Path:
        """Where everything about a segment of these bytes is kept."""
        return self.files[0][1].parent

    def has(self, column: str) -> bool:
        """Whether some maker made this fact of every row."""
        return self._file(column) is not None

    def column(self, name: str) -> "np.ndarray[Any, Any]":
        """A fact of every row: float64 (NaN is null; all of it where no maker made it) or hashes."""
        import numpy as np

        path = self._file(name)
        return np.full(self.rows, np.nan) if path is None else self._read(path, name)

    def table(self, name: str) -> "dict[str, np.ndarray[Any, Any]]":
        """A table's columns. Raises KeyError where it wasn't asked for."""
        found = {of: (path, columns) for of, path, columns in self.files}
        path, columns = found[name]
        return {column: self._read(path, column) for column in columns}

    def _file(self, column: str) -> Path | None:
        makers = {maker.name for maker in self.order.makers}
        return next((path for name, path, columns in self.files if name in makers and column in columns), None)

    def _read(self, path: Path, name: str) -> "np.ndarray[Any, Any]":
        try:
            return _read(path, name)
        except OSError:  # deleted meanwhile, which may be done at any time
            make_facts(self.order)
            return _read(path, name)


def stored_facts(order: Order) -> SegmentFacts:
    """The facts of a segment as far as they are there and whole; ``made`` names the makers and tables that have to work."""
    import pyarrow.parquet as pq

    folder = order.folder / digest_file(order.segment).value[:32]
    asked: list[Maker | Table] = [*order.makers, *order.tables]
    paths = {item.name: folder / f"{order.part}-{item.name}-{_identity(item)}.parquet" for item in asked}
    missing = tuple(sorted(name for name, path in paths.items() if not verified(path)))
    rows = pq.read_metadata(order.segment).num_rows
    return SegmentFacts(
        order, rows, tuple((item.name, paths[item.name], tuple(item.columns)) for item in asked), missing
    )


def make_facts(order: Order) -> SegmentFacts:
    """Read or make the facts of a segment. Safe for several processes; every file appears whole or not at all."""
    found = stored_facts(order)
    if not found.made:
        return found
    found.folder.mkdir(parents=True, exist_ok=True)
    makers = [maker for maker in order.makers if maker.name in found.made]
    tables = [table for table in order.tables if table.name in found.made]
    columns: dict[tuple[str, str], list[np.ndarray[Any, Any]]] = {}
    first = 0
    texts = bool(tables) or not all(isinstance(maker, Policy) for maker in makers)
    with _no_collector():
        for batch in read_batches(order.segment, order.part, texts):
            for maker in makers:
                for name, values in maker(batch).items():
                    assert len(values) == len(batch), f"{maker.name} made {name} for other rows"
                    columns.setdefault((maker.name, name), []).append(values)
            for table in tables:
                for name, values in table.rows(batch, first).items():
                    columns.setdefault((table.name, name), []).append(values)
            first += len(batch)
    for of, path, names in found.files:
        if of in found.made:
            _write({name: columns[of, name] for name in names}, path)
    return found


@contextmanager
def _no_collector() -> Iterator[None]:
    """Without the search for cycles among objects: records have none, and it would take a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_batches(segment: Path, part: str, texts: bool = True) -> Iterator[Batch]:
    """The rows of a segment in stored order, some thousand at a time; without ``texts`` no row has a record."""
    import orjson
    import pyarrow.parquet as pq

    with pq.ParquetFile(segment) as file:
        present = [name for name in ("id", *_WHERE, "payload", "reason") if name in file.schema_arrow.names]
        if not texts:
            present.remove("payload")
        for table in file.iter_batches(BATCH, columns=present, use_threads=False):
            rows: dict[str, Sequence[Any]] = {name: table.column(name).to_pylist() for name in present}
            reasons = rows["reason"]
            payloads = [orjson.loads(text) for text in rows["payload"]] if texts else [{}] * len(reasons)
            records = [
                Record.from_payload(payload) if reason is None and texts else None
                for payload, reason in zip(payloads, reasons, strict=True)
            ]
            raw = [
                None if reason is None else str(payload.get("raw", ""))
                for payload, reason in zip(payloads, reasons, strict=True)
            ]
            nothing = [None] * len(reasons)
            where = list(map(Provenance, *(rows.get(name, nothing) for name in _WHERE)))
            yield Batch(part, 1 if part == "sft" else 2, rows["id"], records, where, reasons, raw)


def _identity(maker: Maker | Table) -> str:
    return digest_json({"key": maker.key, "code": code_digest(), "columns": list(maker.columns)}).value[:32]


@cache
def code_digest() -> str:
    """The digest of what makes facts: the package of makers, what it works with, and the libraries' versions."""
    folder = Path(__file__).parent
    beside = ("factstore", "near", "records", "relations", "split")
    sources = [*(folder / "facts").glob("*.py"), *(folder / f"{name}.py" for name in beside)]
    found = {path.name: digest_file(path).value for path in sorted(sources) if path.is_file()}
    return digest_json({"sources": found, "libraries": {name: _version(name) for name in _LIBRARIES}}).value


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


# ------------------------------------------------------------------------------------------------ files


def _beside(path: Path) -> Path:
    return path.with_suffix(".sha256")


def verified(path: Path) -> bool:
    """Whether a stored file is there and its bytes are those that were written."""
    try:
        return _beside(path).read_text(encoding="ascii", errors="replace") == digest_file(path).value
    except OSError:
        return False


def _write(columns: Mapping[str, list["np.ndarray[Any, Any]"]], path: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: _narrow(np.concatenate(parts)) if parts else np.zeros(0) for name, parts in columns.items()}
    table = pa.table({name: _arrow(values) for name, values in arrays.items()})
    partial = path.with_name(f".{uuid.uuid4().hex}")
    # Hashes neither repeat nor compress; everything else does both.
    plain = [name for name, values in arrays.items() if values.dtype.kind == "f"]
    pq.write_table(table, partial, compression="zstd", use_dictionary=plain, write_statistics=False)
    place(partial, path)


def place(partial: Path, path: Path) -> None:
    """Move a file that was written in full to where it is kept, and its digest beside it."""
    digest = digest_file(partial).value
    os.replace(partial, path)
    partial.write_text(digest, encoding="ascii")
    os.replace(partial, _beside(path))


def _narrow(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Numbers as float32 where nothing is lost by it, else as float64; hashes as they are."""
    import numpy as np

    if values.dtype.kind in "SV" or values.dtype == np.uint64:
        return values
    wide = values.astype("float64")
    with np.errstate(over="ignore"):
        narrow = wide.astype("float32")
    return narrow if np.array_equal(narrow, wide, equal_nan=True) else wide


def _arrow(values: "np.ndarray[Any, Any]") -> Any:
    import numpy as np
    import pyarrow as pa

    if values.dtype.kind not in "SV":
        return pa.array(values)
    width = values.dtype.itemsize
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, buffer])


def _read(path: Path, name: str) -> "np.ndarray[Any, Any]":
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:  # ``read_table`` takes three times as long around it
        column = file.read(columns=[name], use_threads=False).column(0).combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_fixed_size_binary(column.type):
        width = column.type.byte_width
        start = column.offset * width
        return np.frombuffer(column.buffers()[1], dtype=f"S{width}", count=len(column), offset=start)
    values = column.to_numpy(zero_copy_only=False)
    found: np.ndarray[Any, Any] = values if values.dtype == np.uint64 else values.astype("float64")
    return found
