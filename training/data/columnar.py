"""Parquet, and Arrow's file and stream formats, as bodies: record batches with the columns that are read and no others."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from training.data import rows as limits
from training.data.rows import Body, Names, Row, check_columns
from training.strict import Refused

PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_BATCH = 1024  # rows that are decoded at a time
_FEW = 128  # as much where a row may take far more memory than it takes in the file


@dataclass(frozen=True)
class ArrowRows:
    """Record batches in Arrow's stream format; ``first`` is the number of their first row in the file."""

    first: int
    data: bytes

    def rows(self) -> Iterator[Row]:
        import pyarrow as pa

        number = self.first
        for batch in pa.ipc.open_stream(pa.BufferReader(self.data)):
            for at in range(0, batch.num_rows, _FEW):
                for row in _rows(batch.slice(at, _FEW), number):
                    yield row
                    number += 1


def _rows(batch: Any, first: int) -> Iterator[Row]:
    try:
        rows = [Row(first + i, _as_text(value)) for i, value in enumerate(batch.to_pylist())]
    except (ValueError, OverflowError):  # of some row: invalid UTF-8, a time that Python cannot hold
        rows = [_row(batch.slice(i, 1), first + i) for i in range(batch.num_rows)]
    yield from rows


def _row(batch: Any, number: int) -> Row:
    try:
        return Row(number, _as_text(batch.to_pylist()[0]))
    except UnicodeDecodeError:
        return Row(number, None, b"row %d" % number, "invalid UTF-8")
    except (ValueError, OverflowError) as error:
        return Row(number, None, b"row %d" % number, f"a value that cannot be read ({type(error).__name__})")


def _as_text(value: dict[str, Any]) -> dict[str, Any]:
    """Columns of bytes as the UTF-8 text that older writers mean by them. Raises UnicodeDecodeError."""
    for name, cell in value.items():
        if type(cell) is bytes:
            value[name] = cell.decode("utf-8")
    return value


def arrow_rows(name: str, file: BinaryIO, magic: bytes, names: Names, most: int) -> Iterator[Body]:
    """The rows of a Parquet or Arrow file as bodies. ``most``: bytes that the file may expand to.

    Raises Refused where the file is damaged, of no known form, or expands beyond all reason.
    """
    import pyarrow as pa

    reader = next(read for start, read in _READERS.items() if magic.startswith(start))
    first, count, size, expanded = 1, 0, 0, 0
    pending: list[Any] = []
    try:
        for batch in reader(name, file, names):
            for part in _parts(batch):
                expanded += part.nbytes
                if expanded > most:
                    raise Refused(
                        f"{name}: expands to more than {most / 2**20:,.0f} MiB, which no honest file does. Write it as "
                        "JSON lines"
                    )
                if pending and (count + part.num_rows > limits.CHUNK_ROWS or size + part.nbytes > limits.CHUNK_BYTES):
                    yield ArrowRows(first, _stream(pending))
                    first, count, size, pending = first + count, 0, 0, []
                pending.append(part)
                count, size = count + part.num_rows, size + part.nbytes
        if pending:
            yield ArrowRows(first, _stream(pending))
    except Refused:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        kind = "Parquet" if magic.startswith(PARQUET) else "Arrow"
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise Refused(f"{name}: the {kind} file is damaged ({reason}). Write it again") from None


def _parts(batch: Any) -> Iterator[Any]:
    """The batch in pieces that fit a body."""
    pieces = max(1, -(-batch.num_rows // limits.CHUNK_ROWS), -(-batch.nbytes // limits.CHUNK_BYTES))
    step = max(1, -(-batch.num_rows // pieces))
    for at in range(0, batch.num_rows, step):
        yield batch.slice(at, step)


def _stream(batches: list[Any]) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    # Every batch brings its dictionaries with it, and neither needs metadata of its writer.
    with pa.ipc.new_stream(sink, batches[0].schema.remove_metadata()) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(None))
    return bytes(sink.getvalue().to_pybytes())


def _parquet(name: str, file: BinaryIO, names: Names) -> Iterator[Any]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(
        file,
        buffer_size=limits.READ,
        pre_buffer=False,
        thrift_container_size_limit=10**6,
        arrow_extensions_enabled=False,
    )
    columns = table.schema_arrow.names
    check_columns(name, columns, names)
    rows = max(1, table.metadata.num_rows)
    size = sum(table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups))
    batch = _BATCH if _BATCH * size / rows < 4 * limits.CHUNK_BYTES and not _repeats(table.metadata) else _FEW
    yield from table.iter_batches(batch, columns=names.wanted(columns), use_threads=False)


def _repeats(metadata: Any) -> bool:
    """Whether values stand once in a dictionary, so that a row may take more memory than its share of the file."""
    return any(
        metadata.row_group(i).column(j).has_dictionary_page
        for i in range(min(metadata.num_row_groups, 1))
        for j in range(metadata.num_columns)
    )


def _arrow_stream(name: str, file: BinaryIO, names: Names) -> Iterator[Any]:
    import pyarrow as pa

    yield from _checked(name, pa.ipc.open_stream(file), names)


def _arrow_file(name: str, file: BinaryIO, names: Names) -> Iterator[Any]:
    import pyarrow as pa

    reader = pa.ipc.open_file(file)
    check_columns(name, reader.schema.names, names)
    columns = names.wanted(reader.schema.names)
    for i in range(reader.num_record_batches):
        batch = reader.get_batch(i).select(columns)
        batch.validate(full=True)
        yield batch


def _checked(name: str, reader: Any, names: Names) -> Iterator[Any]:
    check_columns(name, reader.schema.names, names)
    columns = names.wanted(reader.schema.names)
    for batch in reader:
        batch = batch.select(columns)
        batch.validate(full=True)  # what is read from a damaged file is not to be touched before
        yield batch


_READERS: Mapping[bytes, Any] = {PARQUET: _parquet, ARROW_FILE: _arrow_file, ARROW_STREAM: _arrow_stream}
