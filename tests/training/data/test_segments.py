"""Leaves, the cache of segments, grown files, and what is damaged: a snapshot never depends on what was kept."""

import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.lineage.closure import ROOT, closure
from training.data import filedigests, leaves, segment_cache, snapshot
from training.data import rows as limits
from training.data.filedigests import FileDigests
from training.data.leaves import leaf, leaf_content
from training.data.records import Provenance
from training.data.segment_cache import READERS, SegmentCache
from training.data.settings import Source
from training.data.snapshot import SnapshotFacts, write_snapshot
from training.data.sources import open_file
from training.digest import Digest, canonical_json, digest_file
from training.strict import Refused

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PLACE = st.builds(Provenance, TEXT, st.integers(1, 2**53), *[st.none() | TEXT] * 7)


@given(TEXT | st.text("0123456789abcdef", min_size=64, max_size=64), PLACE, st.just(1.0) | st.floats(1e-9, 1e9))
def test_a_leaf_covers_the_canonical_json(id: str, place: Provenance, weight: float) -> None:
    content = {"id": id, "provenance": place.payload()} | ({} if weight == 1 else {"weight": weight})
    assert leaf_content(id, place, weight) == canonical_json(content)
    assert leaf(id, place, weight) == hashlib.sha256(b"\0" + canonical_json(content)).digest()


def test_a_leaf_is_computed_by_hand() -> None:
    place = Provenance("a.jsonl", 7, None, "Zoë", expires="2030-01-01")
    covered = (
        '{"id":"00","provenance":{"expires":"2030-01-01","licence":null,"line":7,"source":"a.jsonl","subject":"Zoë"}}'
    )
    assert leaf_content("00", place) == covered.encode()
    assert leaf_content("00", place, 0.5) == covered[:-1].encode() + b',"weight":0.5}'


def test_what_stands_around_the_line_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves._around_line.cache_clear()
    for line in range(100):
        leaf_content("00", Provenance("a file", line, "MIT"))
    assert leaves._around_line.cache_info().misses == 1


# ------------------------------------------------------------------------------------------------ the cache


def rows(first: int, count: int, width: int = 0) -> str:
    return "".join(
        json.dumps({"prompt": f"q{i}", "chosen": f"yes {i} " + f"{i * 7919 % 10007} " * width, "rejected": "no"}) + "\n"
        for i in range(first, first + count)
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 5 rows; files of any size may grow."""
    monkeypatch.setattr(limits, "CHUNK_ROWS", 5)
    monkeypatch.setattr(segment_cache, "SEGMENT", 5)
    monkeypatch.setattr(segment_cache, "GROWS_FROM", (1, 1))


class Data:
    """A folder with files, a cache beside it, and snapshots made of it."""

    def __init__(self, root: Path, source: Source | None = None) -> None:
        self.root, self.source, self.count = root, source or Source(path="data", licence="MIT"), 0
        (root / "data").mkdir(parents=True)

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.root / "data" / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def make(self, cache: bool = True, processes: int = 1) -> SnapshotFacts:
        self.count += 1
        out = self.root / f"out-{self.count}"
        return write_snapshot([self.source], self.root, out, self.cache if cache else None, processes)

    def same(self, cached: int) -> SnapshotFacts:
        """The snapshot with the cache, which gives ``cached`` rows and the leaves and rows that are there without it."""
        found, fresh = self.make(), self.make(cache=False)
        assert found.cached == cached and list(found.leaves()) == list(fresh.leaves())
        assert found.sources == fresh.sources
        assert list(snapshot.read_snapshot(found.directory)) == list(snapshot.read_snapshot(fresh.directory))
        return found

    def objects(self) -> list[Path]:
        return sorted(self.cache.glob("objects/*/*"))


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path)


def test_what_was_read_is_linked_and_not_read_again(data: Data, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    data.write("a", rows(0, 12))
    data.write("b", rows(20, 3))
    first = data.make()
    opened: list[str] = []
    monkeypatch.setattr(snapshot, "open_file", lambda source, file, *more: opened.append(file.name))
    second = data.make(processes=2)
    assert (first.cached, second.cached, opened) == (0, 15, []) and second.segments == 4
    for path in first.directory.iterdir():
        twin = second.directory / path.name
        assert path.read_bytes() == twin.read_bytes() and path.stat().st_ino == twin.stat().st_ino


def test_only_a_new_file_is_read(data: Data, small: None) -> None:
    data.write("b", rows(0, 12))
    data.make()
    data.write("a", rows(100, 2))
    data.write("c", rows(200, 2))
    data.same(cached=12)


def test_a_file_under_another_name_or_with_other_declarations_is_read(data: Data, small: None) -> None:
    path = data.write("a", rows(0, 12))
    data.make()
    path.rename(path.with_name("b"))
    data.same(cached=0)
    data.source = Source(path="data", licence="CC0-1.0")
    data.same(cached=0)
    data.source = Source(path="data", licence="CC0-1.0", form="pairs")
    data.same(cached=0)


def test_other_code_reads_again(data: Data, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    data.write("a", rows(0, 12))
    data.make()
    monkeypatch.setattr(segment_cache, "reader_digest", lambda: "another")
    data.same(cached=0)


def test_the_sources_that_decide_what_a_segment_holds_are_all_named() -> None:
    which_files = {"files", "hub", "saved"}  # they say where files are; a file's name and content stand in the key
    found = {path.relative_to(ROOT).as_posix() for path in closure("training.data.segments")}
    read = {
        name.removeprefix("training/data/").removesuffix(".py") for name in found if name.startswith("training/data/")
    }
    assert read - which_files - {"__init__"} == set(READERS)
    others = {name for name in found if not name.startswith("training/data/")}
    assert others == {"training/__init__.py", "training/digest.py", "training/strict.py"}


def test_a_reader_that_only_looks_leaves_the_cache_as_it_is(data: Data, small: None) -> None:
    data.write("a", rows(0, 12))
    facts = write_snapshot([data.source], data.root, data.root / "out", SegmentCache(data.cache, writable=False))
    assert facts.cached == 0 and not data.cache.exists()
    data.make()
    before = {path: path.stat().st_mtime_ns for path in data.cache.rglob("*")}
    facts = write_snapshot([data.source], data.root, data.root / "more", SegmentCache(data.cache, writable=False))
    assert facts.cached == 12 and before == {path: path.stat().st_mtime_ns for path in data.cache.rglob("*")}


def test_a_copy_stands_in_where_there_are_no_hard_links(
    data: Data, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    data.write("a", rows(0, 12))
    data.make()
    second = data.same(cached=12)
    assert all(path.stat().st_nlink == 1 for path in second.directory.iterdir())


# ------------------------------------------------------------------------------------------------ grown files


def plain(text: str) -> bytes:
    return text.encode()


def gzipped(text: str) -> bytes:
    return gzip.compress(text.encode())


def zstd(text: str) -> bytes:
    return pa.compress(text.encode(), "zstd", asbytes=True)


@pytest.mark.parametrize("packed", [plain, gzipped, zstd])
@pytest.mark.parametrize("processes", [1, 2])
def test_of_a_grown_file_only_the_end_is_read(
    data: Data, small: None, monkeypatch: pytest.MonkeyPatch, packed: Callable[[str], bytes], processes: int
) -> None:
    path = data.write("a", packed(rows(0, 12)))
    data.make()
    seen: list[tuple[int, int]] = []

    def noted(source: Source, file: object, after: object = None, form: str | None = None) -> object:
        seen.append((after.offset, after.line))  # type: ignore[attr-defined]
        return open_file(source, file, after, form)  # type: ignore[arg-type]

    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(packed(rows(12, 4) + "{broken\n"))
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "open_file", noted)
        facts = data.make(processes=processes)
    assert seen == [(size, 13)] and (facts.cached, facts.rows, facts.unreadable) == (12, 17, 1)
    data.same(cached=17)
    with path.open("ab") as file:
        file.write(packed("\n" + rows(16, 1)))
    data.same(cached=17)


GROWTH = {
    "the last line had no newline": (rows(0, 12)[:-1].encode(), b"\n" + rows(12, 2).encode()),
    "the last line goes on": (rows(0, 11).encode() + b'{"prompt": "q", "chosen": ', b'"a", "rejected": "b"}\n'),
    "a list": (b"[" + rows(0, 12).replace("\n", ",")[:-1].encode() + b"]", b"\n"),
    "a table": (b"prompt,chosen,rejected\n" + b"a,b,c\n" * 12, b"d,e,f\n"),
    "gzip behind plain text": (rows(0, 12).encode(), gzipped(rows(12, 2))),
}


@pytest.mark.parametrize("way", GROWTH)
def test_what_cannot_be_read_from_its_end_is_read_in_full(data: Data, small: None, way: str) -> None:
    before, more = GROWTH[way]
    path = data.write("a", before)
    data.make()
    with path.open("ab") as file:
        file.write(more)
    data.same(cached=0)


def test_a_tail_that_alone_looks_like_something_else_is_read_with_the_whole(data: Data, small: None) -> None:
    path = data.write("a", rows(0, 12))
    data.make()
    with path.open("ab") as file:
        file.write(b"\xff\xfe\x00\n")  # alone: UTF-16 text, which is refused
    data.same(cached=0)


@pytest.mark.parametrize("tail", [b"plain text", b"\0\0\0\0"])
def test_what_follows_gzip_and_is_none_is_judged_as_without_the_cache(data: Data, small: None, tail: bytes) -> None:
    path = data.write("a", gzipped(rows(0, 12)))
    data.make()
    with path.open("ab") as file:
        file.write(tail)
    told = []
    for cache in (True, False):
        try:
            told.append(list(data.make(cache).leaves()))
        except Refused as refusal:
            told.append([str(refusal).encode()])
    assert told[0] == told[1]


def test_a_change_before_the_end_is_noticed(data: Data, small: None) -> None:
    path = data.write("a", rows(0, 12))
    data.make()
    data.write("a", path.read_text().replace("q3", "q4") + rows(12, 3))
    data.same(cached=0)


def test_a_small_file_is_read_in_full_since_its_form_may_change(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    line = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
    path = data.write("a", rows(0, 2))
    data.make()
    with path.open("a") as file:
        file.write(line * 9)
    facts = data.same(cached=0)
    assert facts.sources[0].form == "messages"


def test_the_bound_for_growing_files_lets_large_ones_grow(data: Data) -> None:
    path = data.write("a", rows(0, 1100, width=500))
    assert path.stat().st_size > segment_cache.GROWS_FROM[0]
    data.make()
    with path.open("a") as file:
        file.write(rows(1100, 2))
    facts = data.same(cached=1100)
    assert facts.segments == 2


def test_a_file_in_too_many_pieces_is_continued_from_an_earlier_night_or_read_in_full(
    data: Data, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_cache, "TAILS", 2)
    path = data.write("a", rows(0, 5))
    data.make()
    cached = []
    for night in range(5):
        with path.open("a") as file:
            file.write(rows(5 + night, 1))
        cached.append(data.make().cached)
    # After the third night there are 4 pieces, 3 more than 8 rows need: the night before it (7 rows) is continued, which
    # gives 4 pieces again, so that of the two contents that are kept neither may be continued.
    assert cached == [5, 6, 7, 7, 0]


# ------------------------------------------------------------------------------------------------ damage


def flip(path: Path, at: int) -> None:
    """Change one byte, and let size and modification time say nothing of it."""
    about = path.stat()
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.unlink()  # the file that a snapshot shares stays whole
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize("suffix", [".parquet", ".leaves"])
def test_a_flipped_byte_of_a_segment_is_found_and_mended(data: Data, small: None, suffix: str) -> None:
    data.write("a", rows(0, 12))
    data.make()
    for number, path in enumerate(path for path in data.objects() if path.suffix == suffix):
        flip(path, (number * 37) % path.stat().st_size)
        data.same(cached=0)
        data.same(cached=12)


def test_every_byte_of_an_entry_and_of_a_digest_may_be_wrong(data: Data) -> None:
    path = data.write("a", rows(0, 3))
    old = time.time_ns() - 10**10
    os.utime(path, ns=(old, old))
    data.make()
    expected = data.make(cache=False)
    for kept in [*data.cache.glob("entries/*/*.json"), *data.cache.glob("digests/*.json")]:
        good = kept.read_bytes()
        flipped = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, len(good), 3)]
        for bad in (*flipped, b"", good[:-5], b"[]", b"null", b"\xff", b"[" * 100_000):
            kept.write_bytes(bad)
            found = data.make()
            assert list(found.leaves()) == list(expected.leaves()) and found.sources == expected.sources


@pytest.mark.parametrize("what", ["objects/*/*.parquet", "objects/*/*.leaves", "entries/*/*.json", "digests/*.json"])
def test_anything_may_be_deleted(data: Data, small: None, what: str) -> None:
    data.write("a", rows(0, 12))
    data.make()
    for path in sorted(data.cache.glob(what))[:1]:
        path.unlink()
    data.same(cached=12 if what.startswith("digests") else 0)
    data.same(cached=12)


def test_a_cache_that_is_no_folder_or_cannot_be_written_is_none(data: Data, small: None) -> None:
    data.write("a", rows(0, 12))
    data.cache.write_text("a file")
    data.same(cached=0)


def test_a_segment_deleted_while_it_is_linked_is_read_again(
    data: Data, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.write("a", rows(0, 12))
    data.make()
    link, calls = segment_cache._link, 0

    def deleting(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            source.unlink()
        link(source, target)

    monkeypatch.setattr(segment_cache, "_link", deleting)
    data.same(cached=0)


# ------------------------------------------------------------------------------------------------ source files


def test_a_file_that_was_not_touched_is_not_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    digests = FileDigests(tmp_path / "kept")
    monkeypatch.setattr(filedigests, "_RACY", -1)
    first = digests.of(path)
    monkeypatch.setattr(filedigests, "digest_file", lambda path: Digest("sha256", "0" * 64))
    assert digests.of(path) == first


def test_a_file_that_was_just_written_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    FileDigests(tmp_path / "kept").of(path)
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("way", ["in place", "replaced"])
def test_a_file_of_equal_size_and_time_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(filedigests, "_RACY", -1)
    path, digests = tmp_path / "a", FileDigests(tmp_path / "kept")
    path.write_text("one")
    old = path.stat().st_mtime_ns
    digests.of(path)
    assert list((tmp_path / "kept").iterdir())
    time.sleep(0.05)  # the clock of the file system moves in steps of some milliseconds
    new = path if way == "in place" else tmp_path / "b"
    new.write_text("two")
    os.utime(new, ns=(old, old))
    new.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (3, old)
    assert digests.of(path) == digest_file(path)


def test_a_file_that_keeps_changing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("one")

    def growing(path: Path) -> Digest:
        with path.open("a") as file:
            file.write("more")
        return digest_file(path)

    monkeypatch.setattr(filedigests, "digest_file", growing)
    with pytest.raises(Refused, match="a: the file keeps changing"):
        FileDigests(None).of(path)


@pytest.mark.parametrize("cache", [True, False])
def test_a_file_that_changes_while_it_is_read_is_refused(
    data: Data, small: None, monkeypatch: pytest.MonkeyPatch, cache: bool
) -> None:
    path = data.write("a", rows(0, 12))

    def changing(source: Source, file: object, *more: object) -> object:
        opened = open_file(source, file, *more)  # type: ignore[arg-type]
        with path.open("a") as content:
            content.write(rows(12, 1))
        return opened

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "open_file", changing)
        with pytest.raises(Refused, match="data/a: the file changed while it was read"):
            data.make(cache)
    assert not list(data.root.glob("out-1/*"))
    data.same(cached=0)


# ------------------------------------------------------------------------------------------------ what stays


def test_of_a_file_the_two_contents_used_last_stay(data: Data, small: None) -> None:
    for version in range(4):
        data.write("a", rows(100 * version, 12))
        data.make()
        time.sleep(0.02)
    assert len(list(data.cache.glob("entries/*/*.json"))) == 2 and len(data.objects()) == 2 * 2 * 3
    data.write("a", rows(200, 12))
    data.same(cached=12)


def test_what_was_not_used_for_a_month_goes(data: Data, small: None) -> None:
    path = data.write("a", rows(0, 12))
    data.write("b", rows(50, 2))
    data.make()
    path.unlink()
    old = time.time() - segment_cache.UNUSED - 60
    for entry in data.cache.glob("entries/*/*.json"):
        os.utime(entry, (old, old))
    data.write("c", rows(60, 1))
    data.same(cached=2)
    assert len(list(data.cache.glob("entries/*"))) == 2 and len(data.objects()) == 2 * 2


def test_what_a_killed_run_left_goes(data: Data, small: None) -> None:
    data.write("a", rows(0, 12))
    data.make()
    folder = data.objects()[0].parent
    for left in (folder / ".x.partial", folder / f"{'0' * 64}.parquet"):
        left.write_text("left")
    data.make()
    assert len(data.objects()) == 6 and not list(data.cache.rglob("*.partial"))


def test_nothing_goes_while_somebody_else_uses_the_cache(data: Data, small: None) -> None:
    data.write("a", rows(0, 12))
    data.make()
    left = data.objects()[0].parent / f"{'0' * 64}.parquet"
    left.write_text("of a run that has not finished")
    with SegmentCache(data.cache).used():
        data.make()
        assert left.exists()
    assert not left.exists()
