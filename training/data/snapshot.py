"""A snapshot: the records of an ordered list of sources as immutable segments, each with its Merkle leaves.

``segment-00000.parquet`` holds rows of one file, ``segment-00000.leaves`` their leaves (32 bytes each) in the same order.
Unreadable lines are rows too, so that rows in = rows kept + rows quarantined. Identity is the Merkle root over all leaves:
how many processes wrote it, and whether segments came from a cache, makes no difference.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from training.data.filedigests import SIZE, recent, stamp
from training.data.files import File, expand
from training.data.leaves import leaf
from training.data.pool import ordered_map
from training.data.segment_cache import Entry, Origin, SegmentCache
from training.data.segments import Segment, Work, write_segment
from training.data.settings import Source
from training.data.sources import Opened, Position, nothing_read, open_file
from training.data.stored import (
    COLUMNS,
    Row,
    leaves_of,
    parquet_of,
    read_leaves,
    read_segment,
    read_snapshot,
    segments,
    write_table,
)
from training.digest import digest_file
from training.strict import Refused

__all__ = [
    "COLUMNS",
    "Row",
    "SnapshotFacts",
    "SourceFacts",
    "leaf",
    "read_leaves",
    "read_segment",
    "read_snapshot",
    "segments",
    "write_snapshot",
    "write_table",
]


@dataclass(frozen=True)
class SourceFacts:
    """What came out of one source: its name, the form (or forms) of its files, rows and lines that are no record."""

    path: str
    form: str
    licence: str | None
    rows: int
    unreadable: int
    files: int = 1


@dataclass(frozen=True)
class SnapshotFacts:
    """What a snapshot holds. The Merkle root over ``leaves()`` is its identity.

    ``cached``: rows that came from segments of an earlier reading; it depends on the cache and is no fact about the data.
    """

    directory: Path
    sources: tuple[SourceFacts, ...]
    segments: int
    cached: int = 0

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @property
    def unreadable(self) -> int:
        return sum(source.unreadable for source in self.sources)

    def leaves(self) -> Iterator[bytes]:
        """All leaves in stored order."""
        return read_leaves(self.directory)


def write_snapshot(
    sources: Sequence[Source],
    root: Path,
    out: Path,
    cache: Path | SegmentCache | None = None,
    processes: int = 1,
) -> SnapshotFacts:
    """Read ``sources`` (paths relative to ``root``) in order and store them under ``out``.

    Files that were read before come from ``cache`` (a folder; see ``segment_cache``). Law: the leaves in order are those of
    a snapshot written by one process without a cache. Raises Refused on a source that cannot be read and on a file named
    twice; ``out`` then holds no segment.
    """
    kept = cache if isinstance(cache, SegmentCache) else SegmentCache(cache)
    readings = [_Reading(Origin(file, source), out, i) for i, (source, file) in enumerate(_files(sources, root))]
    out.mkdir(parents=True, exist_ok=True)
    if any(out.glob("segment-*")):
        raise FileExistsError(f"{out} already holds a snapshot, and a snapshot is immutable")
    try:
        with kept.used():
            for reading in readings:
                reading.begin(kept)
            _read([reading for reading in readings if not reading.complete], kept, processes)
        facts = tuple(_facts(source, [r for r in readings if r.origin.source is source]) for source in sources)
        stems = [stem for reading in readings for stem in reading.stems]
        for number, stem in enumerate(stems):
            for name in (parquet_of, leaves_of):
                name(stem).rename(name(out / f"segment-{number:05d}"))
    except BaseException:
        for path in [*out.glob("segment-*"), *out.glob(".reading-*")]:
            path.unlink()
        raise
    return SnapshotFacts(out, facts, len(stems), sum(reading.cached for reading in readings))


def _files(sources: Sequence[Source], root: Path) -> list[tuple[Source, File]]:
    found = [(source, file) for source in sources for file in expand(source, root)]
    counts = Counter(key for _, file in found for key in {file.name, file.path.resolve()})
    twice = {file.name for _, file in found if max(counts[file.name], counts[file.path.resolve()]) > 1}
    if twice:
        raise Refused(f"{', '.join(sorted(twice))}: named twice among the sources. Name every file once")
    return found


def _facts(source: Source, readings: "list[_Reading]") -> SourceFacts:
    forms = ", ".join(sorted({reading.form for reading in readings if reading.rows}))
    rows, unreadable = sum(r.rows for r in readings), sum(r.unreadable for r in readings)
    if not rows:
        raise Refused(f"{source.name}: there is no record in it. Give at least one")
    return SourceFacts(source.name, forms, source.licence, rows, unreadable, len(readings))


# ------------------------------------------------------------------------------------------------ reading


@dataclass
class _Reading:
    """File number ``number`` on its way into the snapshot: ``segments`` that stand at ``stems``, in order."""

    origin: Origin
    out: Path
    number: int
    form: str = ""
    segments: list[Segment] = field(default_factory=list)
    stems: list[Path] = field(default_factory=list)
    digest: str = ""  # of the file, where there is a cache
    stamp: tuple[int, ...] = ()
    resume: Position | None = None  # where the reading begins
    opened: Opened | None = None
    end: Position | None = None  # where a later one may go on
    complete: bool = False
    cached: int = 0  # rows that came from the cache

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self.segments)

    @property
    def unreadable(self) -> int:
        return sum(segment.unreadable for segment in self.segments)

    def stem(self, number: int) -> Path:
        """Where segment ``number`` of this file stands until all are there."""
        return self.out / f".reading-{self.number:06d}-{number:06d}"

    def begin(self, kept: SegmentCache) -> None:
        """Take from the cache what is there: the whole file, or its beginning."""
        path = self.origin.file.path
        with suppress(OSError):  # whoever opens the file says what is wrong with it
            self.stamp = stamp(path)
            if kept.folder is None:
                return
            self.digest = kept.digests.of(path).value
            entry = kept.find(self.origin, self.digest)
            if entry is not None:
                self.complete = self._take(entry, kept)
            elif (entry := kept.grown(self.origin, self.stamp[SIZE])) is not None and self._take(entry, kept):
                self.resume = entry.end

    def _take(self, entry: Entry, kept: SegmentCache) -> bool:
        for segment in entry.segments:
            stem = self.stem(len(self.stems))
            if not kept.link(segment, stem):
                self._drop()
                return False
            self.segments.append(segment)
            self.stems.append(stem)
        self.form, self.cached = entry.form, entry.rows
        return True

    def _drop(self) -> None:
        """Forget what was taken from the cache: the whole file is read."""
        for stem in self.stems:
            parquet_of(stem).unlink()
            leaves_of(stem).unlink()
        self.segments, self.stems, self.resume, self.cached = [], [], None, 0

    def work(self) -> Iterator[Work]:
        """The segments that are still to be written. Raises Refused where the file changes meanwhile."""
        self.opened = opened = self._open()
        self.form = opened.form
        for number, chunk in enumerate(opened.chunks(), len(self.stems)):
            yield Work(self.number, chunk, self.form, self.stem(number))
        self.end = opened.end
        self._unchanged()

    def _open(self) -> Opened:
        source, file = self.origin.source, self.origin.file
        if self.resume is not None:
            try:
                return open_file(source, file, self.resume, self.form)
            except Refused:  # alone, the new lines look like something else: let the whole file say what it is
                self._drop()
        return open_file(source, file)

    def _unchanged(self) -> None:
        path, same = self.origin.file.path, False
        with suppress(OSError):
            same = stamp(path) == self.stamp
            if same and self.digest and recent(self.stamp):
                same = digest_file(path).value == self.digest
        if not same:
            raise Refused(
                f"{self.origin.file.name}: the file changed while it was read. Run again when it has been written in full"
            )

    def finish(self, kept: SegmentCache) -> None:
        """All segments are written. Raises Refused where not one line could be read."""
        opened, self.opened = self.opened, None
        if opened is not None and self.rows == self.unreadable:
            raise nothing_read(opened, self.segments[0].fault or "" if self.segments else "every line is empty")
        if not self.digest:
            return
        for segment, stem in zip(self.segments, self.stems, strict=True):
            kept.keep(segment, stem)
        kept.store(self.origin, Entry(self.stamp[SIZE], self.digest, self.form, tuple(self.segments), self.end))


def _read(readings: Sequence[_Reading], kept: SegmentCache, processes: int) -> None:
    """Read what did not come from the cache. A file whose last segment is written is kept at once."""
    waiting = deque(readings)
    items = (work for reading in readings for work in reading.work())
    with closing(ordered_map(write_segment, items, processes)) as written:
        for number, stem, segment in written:
            while waiting[0].number != number:
                waiting.popleft().finish(kept)
            if segment.rows:
                waiting[0].segments.append(segment)
                waiting[0].stems.append(stem)
    for reading in waiting:
        reading.finish(kept)
