"""CSV with a header, as bodies: comma, semicolon or tab, quoted cells over several lines, one row at a time.

A cell is text. In the columns of lists and numbers it is read as JSON, and so is a list of messages in a column of text.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from training.data import rows as limits
from training.data.decode import decode
from training.data.forms import recognise
from training.data.rows import Body, Names, Row, check_columns, no_form, too_long
from training.strict import Refused

_JSON = (
    *("completions", "responses", "scores", "ranks", "labels", "models", "messages", "conversations"),
    *("weight", "score_chosen", "score_rejected"),
)
_MESSAGES = ("prompt", "chosen", "rejected", "completion")  # text, or messages as JSON
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@dataclass(frozen=True)
class CsvRows:
    """Whole rows as raw text below a header that is known; ``first`` is the line of the file where they begin."""

    first: int
    data: bytes
    columns: tuple[str, ...]
    delimiter: str
    names: Names

    def rows(self) -> Iterator[Row]:
        """A row for each that isn't empty. Line numbers count physical lines."""
        lines = iter(self.data.split(b"\n"))
        for line, raw, cells, fault in _records(lines, self.delimiter, self.first):
            if fault is not None:
                yield Row(line, None, raw, fault)
            elif cells is None or (not any(cells) and len(cells) < 2):
                continue
            elif len(raw) > limits.MAX_LINE:
                yield too_long(line, raw)
            elif len(cells) != len(self.columns):
                yield Row(line, None, raw, f"{len(cells)} cells under a header of {len(self.columns)}")
            else:
                yield self._row(line, raw, dict(zip(self.columns, cells, strict=True)))

    def _row(self, line: int, raw: bytes, cells: dict[str, str]) -> Row:
        theirs = self.names.renamed
        row: dict[str, Any] = dict(cells)
        try:
            raw.decode("utf-8")
            for name in _JSON:
                if (cell := cells.get(theirs.get(name, name))) is not None:
                    row[theirs.get(name, name)] = decode(cell.encode("utf-8")) if cell.strip() else None
            for name in _MESSAGES:
                if cells.get(theirs.get(name, name), "")[:2] == "[{":
                    row[theirs.get(name, name)] = _messages(cells[theirs.get(name, name)])
            label = theirs.get("label", "label")
            if label in cells:
                row[label] = _FLAGS.get(cells[label].strip().lower(), cells[label] or None)
        except UnicodeDecodeError as error:
            return Row(line, None, raw, f"invalid UTF-8 at byte {error.start}")
        except ValueError as error:
            return Row(line, None, raw, str(error))
        return Row(line, row, raw)


def _messages(cell: str) -> Any:
    """A cell as a list of messages where it is one in JSON, else the text that it is."""
    try:
        value = decode(cell.encode("utf-8"))
    except ValueError:
        return cell
    return value if all(isinstance(item, dict) and {"role", "content"} <= item.keys() for item in value) else cell


def _records(
    lines: Iterator[bytes], delimiter: str, first: int
) -> Iterator[tuple[int, bytes, list[str] | None, str | None]]:
    """(line where it begins, raw text, cells, fault) of each record, header included; ``lines`` without newlines.

    Raises EOFError where a quote is never closed.
    """
    used: list[bytes] = []

    def physical() -> Iterator[str]:
        for raw in lines:
            used.append(raw)
            yield raw.decode("utf-8", "surrogateescape") + "\n"

    csv.field_size_limit(limits.MAX_LINE)
    reader = csv.reader(physical(), delimiter=delimiter, strict=True)
    while True:
        line = first + reader.line_num
        used.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise EOFError(f"a quote opened in line {line} is never closed") from None
            yield line, b"\n".join(used), None, f"broken CSV: {error}"
        else:
            yield line, b"\n".join(used), cells, None


def csv_rows(name: str, stream: Any, head: bytes, delimiter: str, names: Names) -> Iterator[Body]:
    """Bodies of whole rows. Raises Refused on a header that is broken or of no known form, and on a quote left open."""
    columns: tuple[str, ...] | None = None
    pending: list[bytes] = []
    first, count, size = 1, 0, 0
    try:
        for line, raw, cells, fault in _records(_physical(name, stream, head), delimiter, 1):
            if columns is None:
                if fault is not None or cells is None:
                    raise Refused(f"{name}: the CSV header in line {line} is broken ({fault}). Correct it")
                if any(cells) or len(cells) > 1:
                    columns = _header(name, cells, names)
                first = line + raw.count(b"\n") + 1
                continue
            lines = raw.count(b"\n") + 1
            if pending and (count + lines > limits.CHUNK_ROWS or size + len(raw) > limits.CHUNK_BYTES):
                yield CsvRows(first, b"\n".join(pending), columns, delimiter, names)
                first, count, size, pending = line, 0, 0, []
            pending.append(raw)
            count, size = count + lines, size + len(raw) + 1
    except EOFError as error:
        raise Refused(f"{name}: {error}. Close it") from None
    if columns is not None and any(raw.strip() for raw in pending):
        yield CsvRows(first, b"\n".join(pending), columns, delimiter, names)


def _header(name: str, cells: list[str], names: Names) -> tuple[str, ...]:
    columns = [cell.strip() for cell in cells]
    check_columns(name, columns, names)
    return tuple(columns)


def _physical(name: str, stream: Any, head: bytes) -> Iterator[bytes]:
    """The lines of the file without their newlines. Raises Refused on one that is too long to hold."""
    number, pending, part = 1, b"", head
    while part:
        *whole, rest = part.split(b"\n")
        for piece in whole:
            yield pending + piece
            number, pending = number + 1, b""
        pending += rest
        if len(pending) > limits.MAX_LINE:
            raise Refused(
                f"{name}: line {number} is longer than {limits.MAX_LINE // 2**20} MiB. Shorten it, or write JSON lines"
            )
        part = stream.read(limits.READ)
    if pending:
        yield pending


def delimiter_of(name: str, head: bytes, names: Names) -> str | None:
    """The delimiter of a CSV header with known columns; None where lines of JSON follow. Raises Refused otherwise."""
    lines = head.split(b"\n", limits.SAMPLE)[: limits.SAMPLE]
    header = next((line for line in lines if line.strip()), b"").decode("utf-8", "replace")
    choices = {delimiter: _cells(header, delimiter) for delimiter in ",;\t"}
    for delimiter, columns in choices.items():
        if recognise(names.of(column.strip() for column in columns)):
            return delimiter
    if any(line.strip()[:1] == b"{" for line in lines) or not header:
        return None
    if "\ufffd" in header:
        raise Refused(f"{name}: the first line is no UTF-8 text. Save the file as UTF-8")
    columns = max(choices.values(), key=len)
    if len(head) == limits.READ and len(columns) > limits.MAX_COLUMNS:
        check_columns(name, columns, names)
    raise no_form(name, columns)


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\r")], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return [line]
