"""Which data are there: the digests that a snapshot's step key is made of, and what is wrong with the files."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from tasks.data import segment_cache, snapshot_step, source_digests
from tasks.lineage.step import Step
from tasks.preflight import data_problems
from tasks.run import Context
from tasks.workspace import Workspace
from training.data import filedigests
from training.data.filedigests import FileDigests
from training.data.settings import DataSettings, Hub, Source
from training.digest import digest_bytes, digest_json
from training.settings import Profile
from training.strict import Refused


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for name in "ab":
        (tmp_path / "data" / f"{name}.jsonl").write_text(name)
    return tmp_path


def digest(*paths: str, root: Path) -> list[str]:
    return [str(value) for value in source_digests(tuple(Source(path=path) for path in paths), root).values()]


def test_a_file_has_the_digest_of_its_bytes_and_a_folder_that_of_its_list(root: Path) -> None:
    a, b = (f"sha256:{hashlib.sha256(name).hexdigest()}" for name in (b"a", b"b"))
    assert digest("data/a.jsonl", root=root) == [a]
    whole = str(digest_json([["data/a.jsonl", a], ["data/b.jsonl", b]]))
    assert digest("data", "data/*.jsonl", root=root) == [whole, whole]
    assert digest("data/[a]*", root=root) == [str(digest_json([["data/a.jsonl", a]]))]


def test_a_file_more_or_another_name_gives_another_digest(root: Path) -> None:
    seen = {*digest("data", root=root)}
    (root / "data" / "c.jsonl").write_text("c")
    seen |= {*digest("data", root=root)}
    (root / "data" / "c.jsonl").rename(root / "data" / "d.jsonl")
    seen |= {*digest("data", root=root)}
    (root / "data" / "a.jsonl").write_text("A")
    assert len(seen | {*digest("data", root=root)}) == 4


def test_two_sources_of_one_name_are_both_there(root: Path) -> None:
    assert len(source_digests((Source(path="data"), Source(path="data", licence="MIT")), root)) == 2


def test_files_that_were_not_touched_are_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remembered = FileDigests(root / "kept")
    monkeypatch.setattr(filedigests, "_RACY", -1)
    first = source_digests((Source(path="data"),), root, remembered)
    monkeypatch.setattr(filedigests, "digest_file", lambda path: digest_bytes(b"read again"))
    assert source_digests((Source(path="data"),), root, remembered) == first
    (root / "data" / "a.jsonl").write_text("x")
    assert source_digests((Source(path="data"),), root, remembered) != first


def test_five_hundred_files_are_looked_up_fast(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(500):
        (root / "data" / f"{number}.jsonl").write_text(str(number))
    monkeypatch.setattr(filedigests, "_RACY", -1)
    remembered = FileDigests(root / "kept")
    first = source_digests((Source(path="data"),), root, remembered)
    began = time.process_time()
    assert source_digests((Source(path="data"),), root, remembered) == first
    assert time.process_time() - began < 1  # measured: 0.05 s


def test_what_does_not_exist_is_refused(root: Path) -> None:
    with pytest.raises(Refused, match="nothing: there is no such file"):
        digest("nothing", root=root)


def test_whoever_only_looks_leaves_the_workspace_as_it_is(root: Path) -> None:
    """``check`` looks with a Context that is no Run."""
    look = Context("name", digest_bytes(b""), 1, root, Profile(), Workspace(root / "home"))
    step = snapshot_step(look, "preferences", (Source(path="data"),))
    assert isinstance(step, Step) and list(step.inputs) == ["data"]
    assert not segment_cache(look).writable and not (root / "home").exists()


def test_all_that_is_wrong_with_the_files_is_said_at_once(root: Path) -> None:
    (root / "empty").mkdir()
    os.mkfifo(root / "pipe")
    paths = ("data/a.jsonl", "data", "data/**", "data/x.jsonl", "data/*.csv", "empty", "pipe")
    hub = Source(hub=Hub(name="some/data", revision="0" * 40))
    data = DataSettings(preferences=tuple(Source(path=path) for path in paths), sft=(hub,))
    missing, pattern, empty, pipe = data_problems(root, data)
    assert "x.jsonl does not exist; beside it are a.jsonl, b.jsonl; paths are relative" in missing
    assert "data/*.csv: no file matches" in pattern and "empty: no data file is there" in empty
    assert "pipe: this is a special file" in pipe
    assert all(problem.startswith("data: ") for problem in (missing, pattern, empty, pipe))
