"""Segments and leaves: immutable, complete, and the same wherever the checkout stands."""

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from training.data import rows as rows_module
from training.data.records import Provenance
from training.data.settings import Source
from training.data.snapshot import Row, SourceFacts, read_leaves, read_snapshot, segments, write_snapshot
from training.strict import Refused

GOOD = '{"prompt": "q", "chosen": "a", "rejected": "b"}\n'


def write(root: Path, **files: str) -> list[Source]:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name).write_text(text, encoding="utf-8")
    return [Source(path=name, licence="MIT") for name in files]


def test_every_line_is_a_row_and_the_facts_say_what_came_from_where(tmp_path: Path) -> None:
    sources = write(tmp_path, one=GOOD + "{broken\n", two='{"prompt": "p", "completion": "c"}\n')
    facts = write_snapshot(sources, tmp_path, tmp_path / "out")
    assert (facts.rows, facts.unreadable, facts.segments) == (3, 1, 2)  # a segment holds rows of one file
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
    monkeypatch.setattr(rows_module, "CHUNK_ROWS", 4)
    sources = write(tmp_path, one=GOOD * 5, two=GOOD * 3)
    facts = write_snapshot(sources, tmp_path, tmp_path / "out")
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out").glob("*.leaves"))]
    assert facts.segments == 3 and sizes == [4 * 32, 1 * 32, 3 * 32]
    rows = list(read_snapshot(tmp_path / "out"))
    assert [row.provenance.line for row in rows] == [1, 2, 3, 4, 5, 1, 2, 3]
    assert list(facts.leaves()) == [row.leaf for row in rows]


def test_segments_beyond_the_hundred_thousandth_stay_in_order(tmp_path: Path) -> None:
    for number in (100_000, 99_999, 7):
        (tmp_path / f"segment-{number:05d}.parquet").touch()
    assert [path.stem for path in segments(tmp_path)] == ["segment-00007", "segment-99999", "segment-100000"]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_root_and_bytes_do_not_hang_on_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(rows_module, "CHUNK_ROWS", 7)
    many = "".join(GOOD.replace('"q"', f'"q{i}"') if i % 9 else "{broken\n" for i in range(60))
    sources = write(tmp_path, one=many, two=GOOD * 3, three=many[::-1].replace("\n", "") + "\n" + GOOD)
    expected = write_snapshot(sources, tmp_path, tmp_path / "alone")
    facts = write_snapshot(sources, tmp_path, tmp_path / "out", None, processes)
    assert (facts.sources, facts.segments) == (expected.sources, expected.segments) and facts.segments == 11
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_refused_source_leaves_no_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    monkeypatch.setattr(rows_module, "CHUNK_ROWS", 1)
    sources = [*write(tmp_path, one=GOOD * 3), Source(path="missing")]
    with pytest.raises(Refused, match="missing: there is no such file"):
        write_snapshot(sources, tmp_path, tmp_path / "out", None, processes)
    sources = write(tmp_path, one=GOOD * 3, two="{broken\n" * 3 + '{"chosen": "", "rejected": ""}')
    with pytest.raises(Refused, match="two: not one line can be read as form 'transcripts'; line 1: "):
        write_snapshot(sources, tmp_path, tmp_path / "out", None, processes)
    assert list((tmp_path / "out").iterdir()) == []
    write_snapshot(sources[:1], tmp_path, tmp_path / "out")
    with pytest.raises(FileExistsError):
        write_snapshot(sources[:1], tmp_path, tmp_path / "out")


def test_a_folder_is_a_source_whose_files_are_named_in_provenance(tmp_path: Path) -> None:
    write(tmp_path / "data", b=GOOD, a=GOOD * 2)
    (tmp_path / "data" / "README.md").write_text("no data")
    facts = write_snapshot([Source(path="data")], tmp_path, tmp_path / "out", None, 2)
    assert facts.sources == (SourceFacts("data", "pairs", None, 3, 0, 2),)
    where = [(row.provenance.source, row.provenance.line) for row in read_snapshot(tmp_path / "out")]
    assert where == [("data/a", 1), ("data/a", 2), ("data/b", 1)]


def test_a_file_reached_by_two_sources_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "data", a=GOOD, b=GOOD)
    with pytest.raises(Refused, match="data/a, data/b: named twice"):
        write_snapshot([Source(path="data"), Source(path="data/*")], tmp_path, tmp_path / "out")
    with pytest.raises(Refused, match=r"data/\.\./data/b, data/b: named twice"):
        write_snapshot([Source(path="data/b"), Source(path="data/../data/b")], tmp_path, tmp_path / "out")


def test_what_is_declared_of_a_row_stands_in_its_columns_and_its_leaf(tmp_path: Path) -> None:
    declared = {"consent": "given", "legal_basis": "consent", "purpose": "training", "expires": "2030-01-01"}
    line = {**json.loads(GOOD), "subject": "s-1", "collected_at": "2026-01-02", "licence": "MIT"}
    write(tmp_path, one=json.dumps(line) + "\n" + GOOD)
    write_snapshot([Source(path="one", licence="CC0-1.0", **declared)], tmp_path, tmp_path / "out")  # type: ignore[arg-type]
    first, second = read_snapshot(tmp_path / "out")
    assert first.provenance == Provenance("one", 1, "MIT", "s-1", collected_at="2026-01-02", **declared)
    assert second.provenance == Provenance("one", 2, "CC0-1.0", **declared)
    proof = (
        f'{{"id":"{first.id}","provenance":{{"collected_at":"2026-01-02","consent":"given","expires":"2030-01-01",'
        '"legal_basis":"consent","licence":"MIT","line":1,"purpose":"training","source":"one","subject":"s-1"}}'
    )
    assert next(read_leaves(tmp_path / "out")) == hashlib.sha256(b"\0" + proof.encode()).digest() == first.leaf


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


def test_statistics_are_kept_of_numbers_only(tmp_path: Path) -> None:
    write_snapshot(write(tmp_path, one=GOOD * 2), tmp_path, tmp_path / "out")
    group = pq.ParquetFile(tmp_path / "out/segment-00000.parquet").metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    assert {column.path_in_schema for column in columns if column.is_stats_set} == {"line", "weight"}


def test_columns_left_out_read_as_empty(tmp_path: Path) -> None:
    write_snapshot(write(tmp_path, one=GOOD), tmp_path, tmp_path / "out")
    (row,) = read_snapshot(tmp_path / "out", ("id",))
    assert row == Row(row.id, Provenance("", 0), "", "") and len(row.id) == 64


def test_a_folder_without_segments_is_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no snapshot"):
        list(read_snapshot(tmp_path))
