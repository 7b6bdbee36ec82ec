"""Artifacts are written whole or not at all, kept once, and verified before they are read again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.lineage.closure import ROOT
from tasks.lineage.store import Artifact, Damaged, Store, write_atomic, write_json
from training.digest import Manifest, digest_bytes


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, text: str = "some text") -> Artifact:
    folder = store.scratch()
    (folder / "sub").mkdir()
    (folder / "a.txt").write_text(text)
    (folder / "sub" / "b.bin").write_bytes(bytes(range(9)))
    return store.put("thing", folder)


def flip(path: Path, keep_time: bool) -> None:
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    with open(path, "r+b") as file:  # in place: the inode stays
        file.write(data)
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def test_an_artifact_is_named_by_the_digest_of_its_manifest(store: Store) -> None:
    artifact = put(store)
    assert artifact.path == store.root / "artifacts" / "thing" / artifact.digest.value
    assert Manifest.of(artifact.path).digest == artifact.digest
    assert (artifact.path / "a.txt").read_text() == "some text"
    assert store.artifact("thing", artifact.digest) == artifact
    store.verify(artifact)
    store.verify(artifact, full=True)


def test_the_same_bytes_are_kept_once(store: Store) -> None:
    first = put(store)
    inode = (first.path / "a.txt").stat().st_ino
    second = put(store)
    assert first == second and (first.path / "a.txt").stat().st_ino == inode
    assert len(list((store.root / "artifacts" / "thing").iterdir())) == 1
    assert list((store.root / "tmp").iterdir()) == []
    assert put(store, "other").digest != first.digest


def test_a_flipped_byte_with_the_same_size_and_time_is_found_by_the_full_check(store: Store) -> None:
    artifact = put(store)
    flip(artifact.path / "a.txt", keep_time=True)
    store.verify(artifact)  # the cheap check cannot see it
    with pytest.raises(Damaged) as raised:
        store.verify(artifact, full=True)
    message = str(raised.value)
    path, recorded, found = artifact.path / "a.txt", digest_bytes(b"some text"), digest_bytes(b"rome text")
    assert message == f"thing {artifact.digest} has changed: {path}: recorded {recorded}, found {found}"


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda path: flip(path / "a.txt", keep_time=False), "a.txt"),
        (lambda path: (path / "a.txt").write_text("some text and more"), "a.txt"),
        (lambda path: (path / "a.txt").unlink(), "found no such file"),
        (lambda path: (path / "new").write_text(""), "recorded no such file"),
        (lambda path: (path / "a.txt").rename(path / "z.txt"), "z.txt: recorded no such file"),
        (lambda path: (path / "link").symlink_to(path / "a.txt"), "link or a special file"),
    ],
    ids=["time", "size", "removed", "added", "renamed", "link"],
)
def test_what_the_cheap_check_can_see_it_reports(store: Store, change: object, named: str) -> None:
    artifact = put(store)
    change(artifact.path)  # type: ignore[operator]
    with pytest.raises(Damaged, match=named):
        store.verify(artifact)


def test_a_touched_file_with_the_same_bytes_is_whole(store: Store) -> None:
    artifact = put(store)
    os.utime(artifact.path / "a.txt", (1, 1))
    store.verify(artifact)


def test_a_lost_or_torn_index_costs_one_full_check(store: Store) -> None:
    artifact = put(store)
    index = store.root / "index" / "thing" / f"{artifact.digest.value}.json"
    for tear in (index.unlink, lambda: index.write_text('{"stats": [')):
        tear()
        store.verify(artifact)
        assert index.read_text().endswith("}")
    index.unlink()
    flip(artifact.path / "a.txt", keep_time=True)
    with pytest.raises(Damaged):
        store.verify(artifact)


def test_a_missing_artifact_is_damage_and_says_where(store: Store) -> None:
    artifact = store.artifact("thing", digest_bytes(b""))
    with pytest.raises(Damaged, match="is missing at "):
        store.verify(artifact)
    assert Damaged.exit_code == 3


@pytest.mark.parametrize("keep_time", [True, False])
def test_a_damaged_artifact_is_replaced_when_its_bytes_are_put_again(store: Store, keep_time: bool) -> None:
    artifact = put(store)
    flip(artifact.path / "a.txt", keep_time)
    assert put(store) == artifact
    store.verify(artifact, full=True)
    (aside,) = (store.root / "damaged").iterdir()  # evidence is kept
    assert (aside / "a.txt").read_text() == "rome text"


def test_a_damaged_artifact_is_moved_aside_and_not_deleted(store: Store) -> None:
    artifact = put(store)
    aside = store.discard(artifact)
    assert not artifact.path.exists() and (aside / "a.txt").read_text() == "some text"


def test_a_folder_with_a_link_is_not_stored(store: Store) -> None:
    folder = store.scratch()
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="link"):
        store.put("thing", folder)
    assert not (store.root / "artifacts").exists()


KILLED_WHILE_IT_WRITES = """
import sys, time
from pathlib import Path
from tasks.lineage.store import Store
store = Store(Path(sys.argv[1]))
folder = store.scratch()
(folder / "sub").mkdir()
(folder / "a.txt").write_text("some te")
Path(sys.argv[2]).touch()
time.sleep(60)
"""


def test_what_a_killed_process_left_is_never_picked_up(store: Store, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = subprocess.Popen([sys.executable, "-c", KILLED_WHILE_IT_WRITES, store.root, ready], cwd=ROOT)
    while not ready.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = (store.root / "tmp").iterdir()
    assert not (store.root / "artifacts").exists()
    artifact = put(store)
    store.verify(artifact, full=True)
    assert store.scratch() != left and left.exists()


# ------------------------------------------------------------------------------------------------ single files


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_atomic(path, b"old")
    inode = path.stat().st_ino
    write_json(path, {"b": 1, "a": 2.0})
    assert path.read_bytes() == b'{"a":2,"b":1}' and path.stat().st_ino != inode
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_write_that_fails_leaves_the_old_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]
