"""Segments and leaves: immutable, complete, and the same wherever the checkout stands."""

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from training.data import snapshot
from training.data.snapshot import read_leaves, read_snapshot, write_snapshot
from training.settings import Refused, Source

GOOD = '{"prompt": "q", "chosen": "a", "rejected": "b"}\n'


def write(root: Path, **files: str) -> list[Source]:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name).write_text(text, encoding="utf-8")
    return [Source(path=name, licence="MIT") for name in files]


def test_every_line_is_a_row_and_the_facts_say_what_came_from_where(tmp_path: Path) -> None:
    sources = write(tmp_path, one=GOOD + "{broken\n", two='{"prompt": "p", "completion": "c"}\n')
    facts = write_snapshot(sources, tmp_path, tmp_path / "out")
    assert (facts.rows, facts.unreadable, facts.segments) == (3, 1, 1)
    assert [(source.path, source.form, source.rows, source.unreadable) for source in facts.sources] == [
        ("one", "pairs", 2, 1),
        ("two", "completion", 1, 0),
    ]
    rows = list(read_snapshot(tmp_path / "out"))
    assert [(row.provenance.source, row.provenance.line, row.provenance.licence) for row in rows] == [
        ("one", 1, "MIT"),
        ("one", 2, "MIT"),
        ("two", 1, "MIT"),
    ]
    assert rows[0].record.id == rows[0].id and rows[1].reason is not None
    assert rows[1].id == hashlib.sha256(b"{broken").hexdigest()
    with pytest.raises(ValueError, match="one:2 is unreadable"):
        _ = rows[1].record


def test_a_leaf_is_recomputed_by_hand(tmp_path: Path) -> None:
    facts = write_snapshot(write(tmp_path, one=GOOD), tmp_path, tmp_path / "out")
    content = b'{"completions":[{"rank":1,"text":"a"},{"rank":2,"text":"b"}],"prompt":[{"content":"q","role":"user"}]}'
    identity = hashlib.sha256(content).hexdigest()
    proof = f'{{"id":"{identity}","provenance":{{"licence":"MIT","line":1,"source":"one"}}}}'
    assert list(facts.leaves()) == [hashlib.sha256(b"\0" + proof.encode()).digest()]


def test_a_weight_changes_the_leaf_and_not_the_id(tmp_path: Path) -> None:
    heavy = write(tmp_path, one=GOOD.replace("}", ', "weight": 2}'))
    write_snapshot(heavy, tmp_path, tmp_path / "heavy")
    write_snapshot(write(tmp_path, one=GOOD), tmp_path, tmp_path / "plain")
    (first,), (second,) = (list(read_snapshot(tmp_path / name)) for name in ("heavy", "plain"))
    assert first.id == second.id and first.leaf != second.leaf
    assert first.record.weight == 2 and list(read_leaves(tmp_path / "heavy")) == [first.leaf]


def test_the_bytes_are_the_same_from_another_checkout(tmp_path: Path) -> None:
    for root in (tmp_path / "here", tmp_path / "far" / "away"):
        write_snapshot(write(root, one=GOOD * 3 + "\nx\n"), root, root / "out")
    for name in ("segment-00000.parquet", "segment-00000.leaves"):
        assert (tmp_path / "here/out" / name).read_bytes() == (tmp_path / "far/away/out" / name).read_bytes()


def test_segments_are_cut_at_the_limit_and_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "SEGMENT", 4)
    sources = write(tmp_path, one=GOOD * 5, two=GOOD * 3)
    facts = write_snapshot(sources, tmp_path, tmp_path / "out")
    assert (
        facts.segments == 2
        and [path.stat().st_size for path in sorted((tmp_path / "out").glob("*.leaves"))] == [128] * 2
    )
    rows = list(read_snapshot(tmp_path / "out"))
    assert [row.provenance.line for row in rows] == [1, 2, 3, 4, 5, 1, 2, 3]
    assert list(facts.leaves()) == [row.leaf for row in rows]


def test_a_refused_source_leaves_no_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "SEGMENT", 1)
    sources = [*write(tmp_path, one=GOOD * 3), Source(path="missing")]
    with pytest.raises(Refused, match="missing: there is no such file"):
        write_snapshot(sources, tmp_path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    write_snapshot(sources[:1], tmp_path, tmp_path / "out")
    with pytest.raises(FileExistsError):
        write_snapshot(sources[:1], tmp_path, tmp_path / "out")


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="one: named twice"):
        write_snapshot(write(tmp_path, one=GOOD) * 2, tmp_path, tmp_path / "out")


def test_text_stands_in_the_payload_and_nowhere_else(tmp_path: Path) -> None:
    secret = "Zanzibar"
    sources = write(tmp_path, one=GOOD.replace('"q"', f'"{secret}"') + f'{{"prompt": "{secret}\n')
    write_snapshot(sources, tmp_path, tmp_path / "out")
    path = tmp_path / "out/segment-00000.parquet"
    for row in pq.read_table(path).to_pylist():
        assert secret in json.dumps(row.pop("payload")) and secret not in json.dumps(row)
    assert not pq.ParquetFile(path).metadata.row_group(0).column(6).is_stats_set


def test_a_folder_without_segments_is_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no snapshot"):
        list(read_snapshot(tmp_path))
