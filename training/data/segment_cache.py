"""Segments of files that were read before, by the content of the file, what is declared of it, and the code that read it.

``entries/<origin>/<key>.json`` says which segments a file of that content has; ``objects/`` holds them. Everything is
checked before it is used: an entry carries its own digest, and a segment's files are hashed in full after they were linked
into the snapshot. What is damaged or gone is read again from the source, so a cache may be deleted at any time, and a
snapshot never depends on it. A segment's file is shared (hard-linked) with the snapshots made of it.

What stays: of a file (its path and what is declared of it) the two contents used last, and nothing that was not used for
30 days; a segment goes with the last entry that names it. Whoever erases a record from the snapshots deletes the cache.
"""

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from training.data.filedigests import FileDigests, digest_beginning, read_checked, write_checked
from training.data.files import File
from training.data.segments import Segment
from training.data.settings import Source
from training.data.sources import Position
from training.data.stored import SEGMENT, leaves_of, parquet_of
from training.digest import digest_file, digest_json

KEEP = 2  # contents of a file
UNUSED = 30 * 24 * 3600  # seconds
# The form of a file is recognised on its beginning. A file that is smaller than this is read again in full when it grows.
GROWS_FROM = 2 * 2**20, 1_000  # bytes, rows
TAILS = 256  # segments that a file may have beyond those of one reading, before it is read again in full

# The sources that decide what a segment holds; a test holds this list and their imports in agreement.
READERS = (
    *("columnar", "containers", "csvs", "declared", "decode", "forms", "leaves", "lines"),
    *("records", "rows", "segments", "settings", "sources", "stored", "values"),
)


@dataclass(frozen=True)
class Origin:
    """A file of the data: its place, how provenance names it, and the settings of its source."""

    file: File
    source: Source

    @property
    def declared(self) -> dict[str, Any]:
        return {**self.source.model_dump(mode="json", exclude={"path", "hub"}), "name": self.file.name}

    @property
    def folder(self) -> str:
        return digest_json([os.path.abspath(self.file.path), self.declared]).value[:32]

    def key(self, digest: str) -> str:
        return digest_json([reader_digest(), self.declared, digest]).value


@dataclass(frozen=True)
class Entry:
    """A file as it was read: its size in bytes and digest, its form, its segments, and where a reading may go on."""

    size: int
    digest: str
    form: str
    segments: tuple[Segment, ...]
    end: Position | None

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self.segments)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Entry":
        end = Position(**value["end"]) if value["end"] else None
        segments = tuple(Segment(**segment) for segment in value["segments"])
        return cls(**{**value, "segments": segments, "end": end})


@cache
def reader_digest() -> str:
    """The code and the packages that turn a file's bytes into segments."""
    here = Path(__file__).parent
    paths = [*(here / f"{name}.py" for name in READERS), here.parent / "digest.py", Path(__file__)]
    packages = {name: _version(name) for name in ("pyarrow", "orjson")}
    return digest_json([{path.name: str(digest_file(path)) for path in paths}, packages, python_version()]).value


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


class SegmentCache:
    """The cache in ``folder``; with None, or with ``writable`` off, nothing is kept."""

    def __init__(self, folder: Path | None, writable: bool = True) -> None:
        self.folder = folder
        self.writable = writable and folder is not None
        self.digests = FileDigests(folder and folder / "digests", self.writable)

    # -------------------------------------------------------------------------------------------- looking up

    def find(self, origin: Origin, digest: str) -> Entry | None:
        """The entry of a file that has exactly this content."""
        if self.folder is None:
            return None
        place = self._entry(origin, digest)
        entry = _entry(place)
        if entry is not None and self.writable:
            with suppress(OSError):
                os.utime(place)
        return entry

    def grown(self, origin: Origin, size: int) -> Entry | None:
        """The longest entry of which this file, of ``size`` bytes, is a continuation that may be read from its end."""
        if self.folder is None:
            return None
        path = origin.file.path
        for entry in sorted(self._entries(origin), key=lambda entry: -entry.size):
            if entry.end is None or not entry.size < size or not self._entry(origin, entry.digest).exists():
                continue  # it has another shape, or was read by other code
            if entry.size < GROWS_FROM[0] or entry.rows < GROWS_FROM[1] or _scattered(entry):
                continue
            if digest_beginning(path, entry.size).value == entry.digest:
                return entry
        return None

    def _entry(self, origin: Origin, digest: str) -> Path:
        assert self.folder is not None
        return self.folder / "entries" / origin.folder / f"{origin.key(digest)}.json"

    def _entries(self, origin: Origin) -> Iterator[Entry]:
        assert self.folder is not None
        for path in (self.folder / "entries" / origin.folder).glob("*.json"):
            if (entry := _entry(path)) is not None:
                yield entry

    # -------------------------------------------------------------------------------------------- segments

    def link(self, segment: Segment, stem: Path) -> bool:
        """Put a kept segment at ``stem``; False, and nothing there, where it is gone or its bytes have changed."""
        assert self.folder is not None
        pairs = ((parquet_of, segment.parquet), (leaves_of, segment.leaves))
        try:
            for name, digest in pairs:
                _link(name(self._object(segment)), name(stem))
                # Hashed here, where nobody else can take it away any more.
                if digest_file(name(stem)).value != digest:
                    raise OSError(f"{name(stem)} has changed")
        except OSError:
            for name, _ in pairs:
                name(stem).unlink(missing_ok=True)
            return False
        return True

    def keep(self, segment: Segment, stem: Path) -> None:
        """Keep the segment at ``stem``. What is kept under its name already is replaced: it may be damaged."""
        if not self.writable:
            return
        for name in (parquet_of, leaves_of):
            target = name(self._object(segment))
            partial = target.with_name(f".{uuid.uuid4().hex}.partial")
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(name(stem), partial)
                partial.replace(target)
            except OSError:
                return
            finally:
                with suppress(OSError):
                    partial.unlink()

    def store(self, origin: Origin, entry: Entry) -> None:
        """Remember which segments a file of this content has, and forget all but the two contents used last."""
        if not self.writable:
            return
        place = self._entry(origin, entry.digest)
        write_checked(place, entry.as_json())
        for path in _newest_first(place.parent)[KEEP:]:
            path.unlink(missing_ok=True)

    def _object(self, segment: Segment) -> Path:
        assert self.folder is not None
        name = digest_json([segment.parquet, segment.leaves]).value
        return self.folder / "objects" / name[:2] / name

    # -------------------------------------------------------------------------------------------- what stays

    @contextmanager
    def used(self) -> Iterator[None]:
        """While the cache is used; what nobody needs any more is dropped at the end, unless another process uses it too."""
        if self.folder is None or not self.writable:
            yield
            return
        descriptor = _lock(self.folder / "lock")
        try:
            yield
            if descriptor is not None:
                with suppress(OSError):  # somebody else uses it, or it was deleted
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._sweep()
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _sweep(self) -> None:
        assert self.folder is not None
        old = time.time() - UNUSED
        named: set[Path] = set()
        for path in [*self.folder.glob("entries/*/*.json"), *self.folder.glob("digests/*.json")]:
            if path.stat().st_mtime < old:
                path.unlink(missing_ok=True)
            elif path.parent.name != "digests" and (entry := _entry(path)) is not None:
                named |= {name(self._object(s)) for s in entry.segments for name in (parquet_of, leaves_of)}
        for path in [*self.folder.glob("objects/*/*"), *self.folder.glob("objects/*/.*.partial")]:
            if path not in named:
                path.unlink(missing_ok=True)
        for path in [*self.folder.glob("entries/*/.*.partial"), *self.folder.glob("digests/.*.partial")]:
            path.unlink(missing_ok=True)
        for path in self.folder.glob("entries/*"):
            with suppress(OSError):
                path.rmdir()  # only where it is empty


def _entry(path: Path) -> Entry | None:
    value = read_checked(path)
    try:
        return None if value is None else Entry.from_json(value)
    except (TypeError, KeyError, AttributeError):  # written by other code
        return None


def _scattered(entry: Entry) -> bool:
    return len(entry.segments) - entry.rows // SEGMENT > TAILS


def _newest_first(folder: Path) -> list[Path]:
    found = []
    for path in folder.glob("*.json"):
        with suppress(OSError):
            found.append((-path.stat().st_mtime_ns, path.name, path))
    return [path for _, _, path in sorted(found)]


def _lock(path: Path) -> int | None:
    """A shared lock that ends with this process; None where the file system has none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return descriptor
    except OSError:
        os.close(descriptor)
        return None


def _link(source: Path, target: Path) -> None:
    """A hard link; a copy where the file system has none between the two."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
