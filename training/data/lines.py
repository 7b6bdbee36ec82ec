"""JSON lines, and a JSON list, as bodies. Both are streamed: no more than a body is held at a time."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from training.data import rows as limits
from training.data.decode import decode
from training.data.rows import Body, LongLine, Row, too_long
from training.strict import Refused

_BLANK = b" \t\r"


def decoded(line: int, raw: bytes) -> Row:
    """One JSON document as a row."""
    if len(raw) > limits.MAX_LINE:
        return too_long(line, raw)
    try:
        return Row(line, decode(raw), raw)
    except ValueError as error:
        return Row(line, None, raw, str(error))


# ------------------------------------------------------------------------------------------------ JSON lines


@dataclass(frozen=True)
class JsonLines:
    """Whole lines, the first of which is number ``first`` of the file."""

    first: int
    data: bytes

    def rows(self) -> Iterator[Row]:
        """A row for each line that isn't empty."""
        for number, raw in enumerate(self.data.split(b"\n"), self.first):
            raw = raw.removesuffix(b"\r")
            if raw.strip(_BLANK):
                yield decoded(number, raw)


@dataclass
class Position:
    """Where a file of lines has been read to: the number of the next line, and where it will begin in the stored file."""

    line: int = 1
    ended: bool = True  # whether the last line had its newline
    offset: int | None = None  # bytes; known at the end


def json_lines(stream: Any, head: bytes, position: Position) -> Iterator[Body]:
    """Bodies of at most CHUNK_ROWS lines and CHUNK_BYTES bytes; where they are cut depends on the content alone."""
    buffer, more = bytearray(head), True
    searched = found = 0  # bytes of the buffer that have been searched, and newlines found there
    while more or buffer:
        found += buffer.count(b"\n", searched)
        searched = len(buffer)
        if more and found < limits.CHUNK_ROWS and len(buffer) <= limits.CHUNK_BYTES:
            part = stream.read(limits.READ)
            more = bool(part)
            buffer += part
            continue
        end = _cut(buffer)
        if end == 0:  # one line, longer than a body may be
            digest = hashlib.sha256(buffer)
            beginning, buffer = bytes(buffer[: limits.EXCERPT]), bytearray()
            while more and not buffer:
                part = stream.read(limits.READ)
                more = bool(part)
                line, newline, rest = part.partition(b"\n")
                digest.update(line)
                buffer += rest
                if newline:
                    break
            position.ended = more
            yield LongLine(position.line, digest.hexdigest(), beginning)
            position.line += 1
        else:
            data = bytes(buffer[:end])
            del buffer[:end]
            position.ended = data.endswith(b"\n")
            if data.strip():
                yield JsonLines(position.line, data)
            position.line += data.count(b"\n")
        searched = found = 0


def _cut(buffer: bytearray) -> int:
    """Bytes of the next body: whole lines, at most CHUNK_ROWS and CHUNK_BYTES; 0 where the first line is longer."""
    window = bytes(buffer[: limits.CHUNK_BYTES])
    if window.count(b"\n") >= limits.CHUNK_ROWS:
        import numpy as np

        return int(np.flatnonzero(np.frombuffer(window, np.uint8) == 10)[limits.CHUNK_ROWS - 1]) + 1
    if len(buffer) <= limits.CHUNK_BYTES:
        return len(buffer)
    return window.rfind(b"\n") + 1


# ------------------------------------------------------------------------------------------------ a JSON list


@dataclass(frozen=True)
class JsonItems:
    """Elements of a list, the first of which is number ``first``."""

    first: int
    items: tuple[bytes, ...]

    def rows(self) -> Iterator[Row]:
        for number, raw in enumerate(self.items, self.first):
            yield decoded(number, raw)


def is_list(head: bytes) -> bool:
    """Whether a file that begins so is a JSON list, and no JSON lines of which the first is broken."""
    if head.lstrip()[:1] != b"[":
        return False
    try:
        first = next(_elements("", head, None), None)
        if first is None:
            return True
        decode(first)
        return True
    except ValueError:
        others = [line for line in head.split(b"\n", limits.SAMPLE)[1 : limits.SAMPLE] if line.strip()]
        return 2 * sum(isinstance(decoded(0, line).value, dict) for line in others) <= len(others)


def json_items(name: str, stream: Any, head: bytes) -> Iterator[Body]:
    """The list's elements as bodies. Raises Refused where the list itself is broken or never ends."""
    items: list[bytes] = []
    first, size = 1, 0
    for item in _elements(name, head, stream):
        if items and (len(items) == limits.CHUNK_ROWS or size + len(item) > limits.CHUNK_BYTES):
            yield JsonItems(first, tuple(items))
            first, size, items = first + len(items), 0, []
        items.append(item)
        size += len(item)
    if items:
        yield JsonItems(first, tuple(items))


# Whole strings, and the brackets and commas outside of them; a quote alone opens a string that isn't all there yet.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)


def _elements(name: str, head: bytes, stream: Any) -> Iterator[bytes]:
    """The elements of the list in ``head`` and then in ``stream``, as they are written."""
    buffer = head.lstrip()
    start = at = 1  # where the element begins, and where to go on: behind the list's own bracket
    depth, count = 1, 0
    while depth:
        for token in _TOKEN.finditer(buffer, at):
            sign = token[0]
            if sign == b'"':
                at = token.start()
                break
            at = token.end()
            if sign in b"[{":
                depth += 1
            elif sign in b"]}":
                depth -= 1
            if (depth == 1 and sign == b",") or depth == 0:
                item = buffer[start : token.start()].strip()
                if item or count or sign == b",":
                    count += 1
                    yield item
                start = at
            if depth == 0:
                if sign != b"]":
                    raise Refused(f"{name}: broken JSON: the list is closed by a brace (element {count}). Correct it")
                break
        else:
            at = len(buffer)
        if depth == 0:
            break
        if len(buffer) - start > limits.CHUNK_BYTES:
            raise Refused(f"{name}: element {count + 1} of the list is too long to hold. Write JSON lines")
        part = b"" if stream is None else stream.read(max(limits.READ, len(buffer) - start))
        if not part:
            raise Refused(f"{name}: broken JSON: the list is never closed (element {count + 1}). Is the file complete?")
        buffer, at, start = buffer[start:] + part, at - start, 0
    rest = buffer[start:]
    while rest:
        if rest.strip():
            raise Refused(f"{name}: broken JSON: there is text behind the end of the list. Remove it")
        rest = b"" if stream is None else stream.read(limits.READ)
