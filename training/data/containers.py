"""Containers: JSONL, a JSON list, CSV and Parquet, plain or in gzip or zstd, recognised by content and never by name.

``read_rows`` turns a file's bytes into a ``Row`` for every line (or element, or row) that holds anything. A row that
can't be decoded says why; what concerns the whole file raises ``Refused``. JSONL and CSV are streamed; a JSON list and
a compressed Parquet file are held in memory.
"""

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from training.data.records import COLUMNS, FORMS, recognise
from training.settings import Refused, Source

MAX_LINE = 32 * 2**20  # bytes; a longer line is unreadable
MAX_WHOLE = 2**30  # bytes; a JSON list or compressed Parquet file beyond it is refused, since it is held in memory
SAMPLE = 200  # rows that decide a file's form
CHUNK = 2**20
EXCERPT = 400  # bytes that are shown of a row that is no record
_FOREIGN = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
    b"SQLite format 3": "SQLite",
    b"ARROW1": "Arrow",
}


@dataclass(frozen=True)
class Row:
    """A line as raw bytes and, where it could be decoded, as an object; ``fault`` says why not."""

    line: int
    raw: bytes
    value: Any = None
    fault: str | None = None
    digest: str | None = None  # of lines too long to hold


def read_rows(source: Source, path: Path) -> Iterator[Row]:
    """The rows of the file at ``path``. Faults of the file or its compression become one ``Refused``."""
    try:
        yield from _rows(source, path)
    except EOFError:
        raise Refused(f"{source.path}: the gzip file is cut off. Copy it again, in full") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Refused(f"{source.path}: the gzip file is damaged ({error}). Copy it again") from None
    except OSError as error:
        raise Refused(f"{source.path}: reading failed: {error}. Check the file (is it complete?)") from None


def _rows(source: Source, path: Path) -> Iterator[Row]:
    with open(path, "rb") as file:
        magic = file.read(16)
        file.seek(0)
        if magic.startswith(b"PAR1"):
            yield from _parquet(source, file)
            return
        if magic.startswith(b"\x1f\x8b"):
            stream: Any = gzip.GzipFile(fileobj=file)
        elif magic.startswith(b"\x28\xb5\x2f\xfd"):
            stream = _zstd(file)
        else:
            stream = file
        head = _fill(stream, CHUNK)
        if head.startswith(b"PAR1"):
            yield from _parquet(source, io.BytesIO(_whole(source, head, stream)))
            return
        _text(source, head)
        head = head.removeprefix(b"\xef\xbb\xbf")
        chunks = chain([head], iter(lambda: stream.read(CHUNK), b""))
        if head.lstrip()[:1] == b"[":
            yield from _json(source, _whole(source, head, stream))
        elif head.lstrip()[:1] != b"{" and (delimiter := _delimiter(source, head)):
            yield from _csv(source, chunks, delimiter)
        else:
            yield from _jsonl(chunks)


def _fill(stream: Any, size: int) -> bytes:
    """Exactly ``size`` bytes, or all there are: decompressors may return less than asked for."""
    parts: list[bytes] = []
    while size > 0 and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _zstd(file: BinaryIO) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")


def _text(source: Source, head: bytes) -> None:
    for magic, name in _FOREIGN.items():
        if head.startswith(magic):
            raise Refused(
                f"{source.path}: this is a {name} file. Allowed: JSONL, JSON, CSV, Parquet, plain, gzip or zstd"
            )
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        raise Refused(f"{source.path}: the text is UTF-16 or UTF-32. Save it as UTF-8")
    if head.count(0) * 20 > len(head):
        raise Refused(f"{source.path}: NUL bytes: a binary file, or text that isn't UTF-8. Save it as UTF-8 text")


def _whole(source: Source, head: bytes, stream: Any) -> bytes:
    rest = _fill(stream, MAX_WHOLE)
    if len(head) + len(rest) > MAX_WHOLE:
        raise Refused(f"{source.path}: more than 1 GiB in one JSON list or compressed Parquet. Write it as JSON lines")
    return head + rest


def _split(chunks: Iterable[bytes]) -> Iterator[Row]:
    """Physical lines without their newline; of a line longer than MAX_LINE only the digest and the beginning."""
    number, pending, digest = 1, b"", None
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            yield _line(number, pending, piece, digest)
            number, pending, digest = number + 1, b"", None
        if digest is not None:
            digest.update(rest)
        else:
            pending += rest
            if len(pending) > MAX_LINE:
                digest, pending = hashlib.sha256(pending), pending[:EXCERPT]
    if pending or digest is not None:
        yield _line(number, pending, b"", digest)


def _line(number: int, pending: bytes, piece: bytes, digest: Any) -> Row:
    if digest is None:
        return Row(number, pending + piece)
    digest.update(piece)
    return Row(number, pending, fault=f"longer than {MAX_LINE // 2**20} MiB", digest=digest.hexdigest())


def _jsonl(chunks: Iterable[bytes]) -> Iterator[Row]:
    for row in _split(chunks):
        raw = row.raw.removesuffix(b"\r")
        if row.fault is not None:
            yield row
        elif raw.strip(b" \t\r"):  # an empty line holds no record
            try:
                yield Row(row.line, raw, _decode(raw))
            except (ValueError, RecursionError) as error:
                yield Row(row.line, raw, fault=_fault(error))


def _decode(raw: bytes | str) -> Any:
    text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) != len(items):
        raise ValueError("broken JSON: one object has the same key twice")
    return found


def _constant(name: str) -> float:
    raise ValueError(f"broken JSON: {name} is no JSON number")


def _fault(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg} at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"invalid UTF-8 at byte {error.start}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _json(source: Source, data: bytes) -> Iterator[Row]:
    try:
        items = _decode(data)
    except (ValueError, RecursionError) as error:
        rows = list(islice(_jsonl([data]), SAMPLE))
        if any(isinstance(row.value, dict) for row in rows):  # JSON lines of which the first is broken
            yield from _jsonl([data])
            return
        raise Refused(f"{source.path}: {_fault(error)}. Correct the list, or write JSON lines") from None
    for number, item in enumerate(items if isinstance(items, list) else [items], start=1):
        yield Row(number, _bytes(item), item)


def _bytes(item: Any) -> bytes:
    """A stable spelling of a decoded row, for the digest of one that is no record."""
    try:
        return json.dumps(item, sort_keys=True, default=repr).encode("ascii")
    except (ValueError, TypeError, RecursionError):
        return repr(type(item)).encode("ascii", "backslashreplace")


def no_form(source: Source, columns: Iterable[str]) -> str:
    """The refusal of columns that are of no known form."""
    found = ", ".join(repr(column[:40]) for column in islice(columns, 12)) or "none"
    known = "; ".join(f"{form} ({', '.join(needed)})" for form, needed in FORMS.items())
    return f"{source.path}: no known form in the columns {found}. Known forms: {known}. Rename the columns"


def _delimiter(source: Source, head: bytes) -> str | None:
    """The delimiter of a CSV header with known columns; None where lines of JSON follow. Raises Refused otherwise."""
    lines = head.split(b"\n", SAMPLE)[:SAMPLE]
    header = next((line for line in lines if line.strip()), b"").decode("utf-8", "replace")
    choices: dict[str, list[str]] = {delimiter: _header(header, delimiter) for delimiter in ",;\t"}
    for delimiter, columns in choices.items():
        if recognise(column.strip() for column in columns):
            return delimiter
    if any(line.strip()[:1] == b"{" for line in lines) or not header:
        return None
    if "\ufffd" in header:
        raise Refused(f"{source.path}: the first line is no UTF-8 text. Save the file as UTF-8")
    raise Refused(no_form(source, max(choices.values(), key=lambda columns: len(list(columns)))))


def _header(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\r")], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return [line]


def _csv(source: Source, chunks: Iterable[bytes], delimiter: str) -> Iterator[Row]:
    used: list[bytes] = []

    def physical() -> Iterator[str]:
        for row in _split(chunks):
            if row.fault is not None:
                raise Refused(f"{source.path}: line {row.line} is {row.fault}. Shorten it, or write JSON lines")
            used.append(row.raw)
            yield row.raw.decode("utf-8", "surrogateescape") + "\n"

    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(physical(), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    while True:
        line = reader.line_num + 1
        used.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise Refused(f"{source.path}: a quote opened in line {line} is never closed. Close it") from None
            if columns is None:
                raise Refused(f"{source.path}: the CSV header in line {line} is broken ({error}). Correct it") from None
            yield Row(line, b"\n".join(used), fault=f"broken CSV: {error}")
            continue
        raw = b"\n".join(used)
        if not any(cells) and len(cells) < 2:
            continue  # an empty line holds no record
        if columns is None:
            columns = [cell.strip() for cell in cells]
            if len(set(columns)) != len(columns):
                raise Refused(f"{source.path}: the header names a column twice. Rename one")
        elif len(cells) != len(columns):
            yield Row(line, raw, fault=f"{len(cells)} cells under a header of {len(columns)}")
        else:
            yield _cells(line, raw, dict(zip(columns, cells, strict=True)))


def _cells(line: int, raw: bytes, row: dict[str, Any]) -> Row:
    try:
        raw.decode("utf-8")
        for column in ("completions", "messages", "weight"):
            if row.get(column):
                row[column] = _decode(row[column])
            elif column == "weight":
                row[column] = None
    except (ValueError, RecursionError) as error:
        return Row(line, raw, row, fault=_fault(error))
    return Row(line, raw, row)


def _parquet(source: Source, file: BinaryIO) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        if not recognise(names):
            raise Refused(no_form(source, names))
        number = 0
        for batch in table.iter_batches(1024, columns=[name for name in names if name in COLUMNS], use_threads=False):
            for i, value in enumerate(_values(batch)):
                number += 1
                fault = None if value is not None else f"invalid UTF-8 in row {i + 1} of its batch"
                yield Row(number, _bytes(value), value, fault)
    except Refused:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise Refused(f"{source.path}: the Parquet file is damaged ({error}). Write it again") from None


def _values(batch: Any) -> Iterator[Mapping[str, Any] | None]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None
