"""The files of a source: names, order, what is left out, and what is refused."""

import json
import os
import re
import socket
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from training.data import files
from training.data.files import expand
from training.data.records import Record
from training.data.settings import Source
from training.data.sources import read
from training.strict import Refused

ROW = json.dumps({"prompt": "q", "completion": "a"}) + "\n"


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(ROW)


def names(root: Path, path: str) -> list[str]:
    found = expand(Source(path=path), root)
    assert all(os.path.samefile(file.path, root / file.name) for file in found)
    return [file.name for file in found]


def refused(root: Path, path: str) -> str:
    with pytest.raises(Refused) as refusal:
        expand(Source(path=path), root)
    return str(refusal.value)


TREE = ("d/b.jsonl", "d/a.gz", "d/sub/c", "d/sub/deep/d.csv", "d/e.JSONL", "other.jsonl", "d/[x].jsonl")


def test_a_folder_is_all_its_files_sorted_by_name(tmp_path: Path) -> None:
    make(tmp_path, *TREE)
    expected = ["d/[x].jsonl", "d/a.gz", "d/b.jsonl", "d/e.JSONL", "d/sub/c", "d/sub/deep/d.csv"]
    assert names(tmp_path, "d") == names(tmp_path, "d/") == expected
    assert names(tmp_path, str(tmp_path / "d/sub")) == [f"{tmp_path}/d/sub/c", f"{tmp_path}/d/sub/deep/d.csv"]
    assert names(tmp_path / "d", "../d/sub") == ["../d/sub/c", "../d/sub/deep/d.csv"]
    assert names(tmp_path, "d/b.jsonl") == ["d/b.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["other.jsonl"]),
        ("d/*.jsonl", ["d/[x].jsonl", "d/b.jsonl"]),
        ("d/?.jsonl", ["d/b.jsonl"]),
        ("d/[ab].*", ["d/a.gz", "d/b.jsonl"]),
        ("d/[!a].*", ["d/b.jsonl", "d/e.JSONL"]),
        ("**/*.jsonl", ["d/[x].jsonl", "d/b.jsonl", "other.jsonl"]),
        ("d/**", ["d/[x].jsonl", "d/a.gz", "d/b.jsonl", "d/e.JSONL", "d/sub/c", "d/sub/deep/d.csv"]),
        ("**/sub/**/*.csv", ["d/sub/deep/d.csv"]),
        ("d/*/c", ["d/sub/c"]),
        ("./d/s*/c", ["./d/sub/c"]),
        ("d/[x].jsonl", ["d/[x].jsonl"]),  # a file of that very name is meant, and no pattern
        ("d/[[]x].jsonl", ["d/[x].jsonl"]),
    ],
)
def test_a_glob_is_what_it_matches(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    make(tmp_path, *TREE)
    assert names(tmp_path, pattern) == expected
    above = [f"{tmp_path}/{name.removeprefix('./')}" for name in expected]
    assert names(tmp_path, f"{tmp_path}/{pattern.removeprefix('./')}") == above


def test_what_is_no_data_is_left_out_of_folders_and_globs(tmp_path: Path) -> None:
    make(
        tmp_path,
        "d/a",
        "d/.hidden",
        "d/.git/x",
        "d/README.md",
        "d/LICENSE",
        "d/licence.txt",
        "d/a.sha256",
        "d/_SUCCESS",
    )
    make(tmp_path, "d/SHA256SUMS", "d/dataset_infos.json", "d/notes.pdf", "d/license_plates.jsonl", "d/state.jsonl")
    os.mkfifo(tmp_path / "d/pipe")
    (tmp_path / "d/dangling").symlink_to("nowhere")
    (tmp_path / "d/itself").symlink_to("itself")
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(tmp_path / "d")  # the name of a socket must be short
        made.bind("socket")
        os.chdir(here)
    expected = ["d/a", "d/license_plates.jsonl", "d/state.jsonl"]
    assert names(tmp_path, "d") == names(tmp_path, "d/*") == names(tmp_path, "**") == expected


def test_links_are_followed_and_what_they_reach_is_taken_once(tmp_path: Path) -> None:
    make(tmp_path, "d/a", "d/sub/b", "apart/c")
    (tmp_path / "d/loop").symlink_to(tmp_path / "d")
    (tmp_path / "d/sub/up").symlink_to("..")
    (tmp_path / "d/z").symlink_to("a")
    os.link(tmp_path / "d/a", tmp_path / "d/y")
    (tmp_path / "d/link").symlink_to(tmp_path / "apart")
    assert names(tmp_path, "d") == ["d/a", "d/link/c", "d/sub/b"]
    assert names(tmp_path, "d/**/b") == ["d/sub/b"]
    assert [file.name for file in expand(Source(path="d/z"), tmp_path)] == ["d/z"]


def test_where_nothing_is_the_message_says_what_there_is(tmp_path: Path) -> None:
    make(tmp_path, "d/a.jsonl", "e/README.md")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "e/pipe")
    assert "no such file" in (said := refused(tmp_path, "d/b.jsonl")) and "holds 'a.jsonl'" in said
    assert "no file matches" in (said := refused(tmp_path, "d/*.csv")) and "'a.jsonl'" in said
    assert "there is no folder" in (said := refused(tmp_path, "f/*.csv")) and "'d'" in said
    assert "found: nothing" in refused(tmp_path, "empty")
    assert "'e/README.md' (no data by its name), 'e/pipe' (a pipe" in refused(tmp_path, "e")
    assert "(no data by its name)" in refused(tmp_path, "e/*.md")
    assert "special file" in refused(tmp_path, "e/pipe")
    assert "no such file" in refused(tmp_path, "a\0b")
    assert "cannot be opened" in refused(tmp_path, "a" * 5000 + "/*")


def test_a_file_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "d/a")
    with open(os.fsencode(tmp_path / "d") + b"/\xff.jsonl", "w") as file:
        file.write(ROW)
    assert "a file's name is no UTF-8 text" in refused(tmp_path, "d")


def test_a_folder_beyond_all_bounds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *(f"d/{i}" for i in range(12)))
    monkeypatch.setattr(files, "MAX_ENTRIES", 10)
    assert "more than 10 files" in refused(tmp_path, "d")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "d/a", "d/sub/b")
    (tmp_path / "d/sub").chmod(0)
    try:
        assert "no permission to read" in refused(tmp_path, "d")
    finally:
        (tmp_path / "d/sub").chmod(0o700)


def test_all_files_of_a_source_are_read_in_order(tmp_path: Path) -> None:
    make(tmp_path, "d/b", "d/a", "d/c")
    reading = read(Source(path="d"), tmp_path)
    found = [(line.provenance.source, line.provenance.line) for line in reading.lines]
    assert reading.form == "completion" and found == [("d/a", 1), ("d/b", 1), ("d/c", 1)]
    (tmp_path / "d/b").write_text("")
    with pytest.raises(Refused, match="d/b: the file is empty"):
        list(read(Source(path="d"), tmp_path).lines)


# ------------------------------------------------------------------------------------------------ saved by datasets


def rows(word: str, count: int = 5) -> Dataset:
    return Dataset.from_list([{"prompt": f"{word} {i}", "chosen": "a", "rejected": "b"} for i in range(count)])


def prompts(root: Path, path: str) -> list[str]:
    found = [line.content for line in read(Source(path=path), root).lines]
    return [record.prompt[0].content for record in found if isinstance(record, Record)]


def test_a_saved_data_set_is_its_arrow_files_in_order(tmp_path: Path) -> None:
    rows("a", 25).save_to_disk(tmp_path / "set", num_shards=12)
    assert names(tmp_path, "set")[::11] == ["set/data-00000-of-00012.arrow", "set/data-00011-of-00012.arrow"]
    assert prompts(tmp_path, "set/") == [f"a {i}" for i in range(25)]
    rows("a", 25).select(range(20, 5, -5)).save_to_disk(tmp_path / "chosen")
    assert prompts(tmp_path, "chosen") == ["a 20", "a 15", "a 10"]


def test_of_several_splits_train_is_taken_or_the_only_one(tmp_path: Path) -> None:
    DatasetDict({"train": rows("a"), "test": rows("b")}).save_to_disk(tmp_path / "both")
    assert names(tmp_path, "both") == ["both/train/data-00000-of-00001.arrow"]
    assert prompts(tmp_path, "both/test") == [f"b {i}" for i in range(5)]
    DatasetDict({"test": rows("b")}).save_to_disk(tmp_path / "one")
    assert names(tmp_path, "one") == ["one/test/data-00000-of-00001.arrow"]
    DatasetDict({"x": rows("a"), "y": rows("b")}).save_to_disk(tmp_path / "none")
    said = refused(tmp_path, "none")
    assert "the splits x, y, none of which is 'train'" in said and "none/x" in said
    assert "a data set with splits inside of a folder" in refused(tmp_path, ".")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("state.json", "{", "state.json cannot be read"),
        ("state.json", "[]", "names no Arrow files"),
        ("state.json", '{"_data_files": [{"filename": "../x"}]}', "names no Arrow files"),
        ("state.json", '{"_data_files": [{"filename": "x.arrow"}]}', "x.arrow and 0 more of 1 files are missing"),
        ("state.json", '{"_data_files": [], "_indices_data_files": [{"filename": "i"}]}', "flatten_indices"),
        ("dataset_dict.json", '{"splits": "train"}', "names no splits"),
        ("dataset_dict.json", '{"splits": ["../.."]}', "names no splits"),
        ("dataset_dict.json", '{"splits": ["train"]}', "missing or incomplete"),
        ("dataset_dict.json", '{"splits": []}', "the splits (none)"),
    ],
)
def test_a_saved_data_set_that_is_damaged_is_refused(tmp_path: Path, file: str, content: str, said: str) -> None:
    rows("a").save_to_disk(tmp_path / "set")
    (tmp_path / "set" / file).write_text(content)
    assert re.match("set(/train)?: ", refused(tmp_path, "set")) and said in refused(tmp_path, "set")


def test_nested_features_of_datasets_are_read(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    Dataset.from_list([{"messages": turns}] * 3).save_to_disk(tmp_path / "set")
    assert prompts(tmp_path, "set") == ["q"] * 3
