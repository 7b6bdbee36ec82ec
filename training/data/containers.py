"""A file's container and its compression, recognised by content and never by name: ``bodies`` opens what it finds.

JSON lines, a JSON list, CSV, Parquet and Arrow (file or stream), each plain or in gzip or zstd. Everything is streamed;
Parquet and Arrow files that are compressed from outside are unpacked into a temporary file. A file may expand to
``MAX_RATIO`` times its size, and to ``MAX_FREE`` bytes in any case; one that expands further is no data but a bomb.
"""

import gzip
import os
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from training.data import rows as limits
from training.data.columnar import ARROW_FILE, ARROW_STREAM, PARQUET, arrow_rows
from training.data.csvs import csv_rows, delimiter_of
from training.data.lines import Position, is_list, json_items, json_lines
from training.data.rows import Body, Names
from training.strict import Refused

MAX_RATIO = 200  # bytes out for a byte of the file
MAX_FREE = 128 * 2**20  # bytes out that any file may have
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_FOREIGN = {
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"PK\x03\x04": "a zip file",
    b"7z\xbc\xaf": "a 7z file",
    b"SQLite format 3": "an SQLite file",
    b"FEA1": "an old Feather file",
    b"%PDF-": "a PDF file",
    GZIP: "compressed twice",
    ZSTD: "compressed twice",
}
_ALLOWED = "Allowed: JSONL, JSON, CSV, Parquet, Arrow, plain, gzip or zstd"


@dataclass
class Contents:
    """What a file turned out to be. ``end`` is known of JSON lines alone, when all bodies have been taken."""

    container: str = ""
    end: Position = field(default_factory=Position)


def bodies(path: Path, name: str, names: Names, contents: Contents, offset: int = 0) -> Iterator[Body]:
    """The bodies of the file at ``path``, which messages call ``name``; ``contents`` is filled in on the way.

    With ``offset`` (bytes, of the file as it is stored) only the JSON lines behind it are read; ``contents.end`` then says
    from which line on. Faults of the file or its compression raise Refused.
    """
    try:
        with open(path, "rb") as file:
            yield from _bodies(file, name, names, contents, offset)
    except EOFError:
        raise Refused(f"{name}: the gzip file is cut off. Copy it again, in full") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Refused(f"{name}: the gzip file is damaged ({error}). Copy it again") from None
    except OSError as error:
        raise Refused(f"{name}: reading failed: {error}. Check the file (is it complete?)") from None


def _bodies(file: BinaryIO, name: str, names: Names, contents: Contents, offset: int) -> Iterator[Body]:
    magic = file.read(16)
    file.seek(offset)
    size = os.fstat(file.fileno()).st_size - offset
    if offset and size <= 0:  # nothing was appended
        contents.container, contents.end.offset = "jsonl", offset
        return
    most = max(MAX_FREE, MAX_RATIO * size)
    stream: Any = file
    if magic.startswith(GZIP):
        stream = _Bounded(_Gzip(file), name, most)
    elif magic.startswith(ZSTD):
        stream = _Bounded(_zstd(file), name, most)
    head = _fill(stream, limits.READ)
    if head.startswith((PARQUET, ARROW_FILE, ARROW_STREAM)) and not offset:
        contents.container = "parquet" if head.startswith(PARQUET) else "arrow"
        if stream is file:
            file.seek(0)
            yield from arrow_rows(name, file, head, names, most)
        else:
            with _spilled(name, head, stream) as plain:
                yield from arrow_rows(name, plain, head, names, most)
        return
    _check_text(name, head)
    if not offset:
        head = head.removeprefix(b"\xef\xbb\xbf")
        contents.container = _container(head)
        if contents.container == "json":
            yield from json_items(name, stream, head)
            return
        if contents.container == "csv" and (delimiter := delimiter_of(name, head, names)):
            yield from csv_rows(name, stream, head, delimiter, names)
            return
    contents.container = "jsonl"
    yield from json_lines(stream, head, contents.end)
    contents.end.offset = file.tell()


def _container(head: bytes) -> str:
    """What text is, by its beginning; CSV only where its header turns out to have known columns."""
    if is_list(head):
        return "json"
    return "jsonl" if head.lstrip()[:1] in (b"{", b"[") else "csv"


def _check_text(name: str, head: bytes) -> None:
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise Refused(f"{name}: this is {what}. {_ALLOWED}")
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        raise Refused(f"{name}: the text is UTF-16 or UTF-32. Save it as UTF-8")
    if head.count(0) * 20 > len(head):
        raise Refused(f"{name}: NUL bytes: a binary file, or text that isn't UTF-8. Save it as UTF-8 text")


# ------------------------------------------------------------------------------------------------ streams


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


class _Gzip:
    """The content of a gzip file with one member or more; twice as fast as ``gzip.GzipFile`` on large reads.

    Raises EOFError where the file ends within a member, and zlib.error or BadGzipFile where it is damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._member: Any = zlib.decompressobj(wbits=31)
        self._input = b""

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; none at the end."""
        while True:
            if self._member.eof:
                rest = (self._member.unused_data + self._file.read(limits.READ)).lstrip(b"\0")  # padding, as of tapes
                while not rest and (part := self._file.read(limits.READ)):
                    rest = part.lstrip(b"\0")
                if not rest:
                    return b""
                if not GZIP.startswith(rest[:2]):
                    raise gzip.BadGzipFile("there are bytes behind its end that are no gzip")
                self._member, self._input = zlib.decompressobj(wbits=31), rest
            self._input = self._input or self._file.read(limits.READ // 4)
            found: bytes = self._member.decompress(self._input, size)
            if not (found or self._input or self._member.eof):
                raise EOFError
            self._input = self._member.unconsumed_tail
            if found:
                return found


class _Bounded:
    """A stream that refuses to expand to more than ``most`` bytes."""

    def __init__(self, stream: Any, name: str, most: int) -> None:
        self._stream, self._name, self._most, self._passed = stream, name, most, 0

    def read(self, size: int) -> bytes:
        part: bytes = self._stream.read(size)
        self._passed += len(part)
        if self._passed > self._most:
            raise Refused(
                f"{self._name}: expands to more than {self._most / 2**20:,.0f} MiB, over {MAX_RATIO} times its size, which no "
                "honest data do. Unpack it and look, or give the plain file"
            )
        return part


def _spilled(name: str, head: bytes, stream: Any) -> Any:
    """The whole content in a temporary file, since Parquet is read from its end."""
    plain = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        plain.write(head)
        while part := stream.read(limits.READ):
            plain.write(part)
        plain.seek(0)
    except BaseException:
        plain.close()
        raise
    return plain
