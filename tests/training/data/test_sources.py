"""Readers: containers, compression, forms by content, and what a hostile file gets."""

import csv
import gzip
import hashlib
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from training.data import rows as limits
from training.data.records import Record
from training.data.settings import Source
from training.data.sources import Line, Unreadable, read
from training.strict import Refused

ROWS = [{"prompt": f"frage {i} ü", "chosen": f"gut {i}", "rejected": "schlecht"} for i in range(3)]
JSONL = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)


def lines(folder: Path, data: bytes, **named: str) -> list[Line]:
    (folder / "data").write_bytes(data)
    return list(read(Source(path="data", **named), folder).lines)  # type: ignore[arg-type]


def refused(folder: Path, data: bytes, **named: str) -> str:
    with pytest.raises(Refused) as refusal:
        lines(folder, data, **named)
    assert str(refusal.value).startswith("data: ")
    return str(refusal.value)


def as_csv(delimiter: str = ",", end: str = "\r\n") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "chosen", "rejected"], delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def as_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def as_arrow(table: pa.Table, stream: bool = False) -> bytes:
    buffer = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(buffer, table.schema) as writer:
        writer.write_table(table, 2)
    return buffer.getvalue()


CONTAINERS = {
    "JSON lines": JSONL,
    "JSON lines with a BOM and CRLF": b"\xef\xbb\xbf" + JSONL.replace(b"\n", b"\r\n"),
    "JSON lines without a last newline": JSONL.rstrip(),
    "a JSON list": json.dumps(ROWS).encode(),
    "an indented JSON list": b"\n " + json.dumps(ROWS, indent=2).encode(),
    "CSV": as_csv(),
    "CSV with semicolons and a BOM": b"\xef\xbb\xbf" + as_csv(";", "\n"),
    "CSV with tabs": as_csv("\t"),
    "Parquet": as_parquet(pa.Table.from_pylist(ROWS)),
    "an Arrow file": as_arrow(pa.Table.from_pylist(ROWS)),
    "an Arrow stream": as_arrow(pa.Table.from_pylist(ROWS), True),
}


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lambda data: pa.compress(data, "zstd", asbytes=True)])
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_records_whatever_its_name_and_compression(
    tmp_path: Path, container: str, compress: object
) -> None:
    expected = [line.content for line in lines(tmp_path, JSONL)]
    assert [line.content for line in lines(tmp_path, compress(CONTAINERS[container]))] == expected  # type: ignore[operator]
    assert all(isinstance(content, Record) for content in expected)


def test_lines_are_numbered_as_they_stand_in_the_file(tmp_path: Path) -> None:
    first, second, third = JSONL.splitlines(keepends=True)
    found = lines(tmp_path, b"\n" + first + b"\r\n  \n" + second + third)
    assert [line.provenance.line for line in found] == [2, 5, 6]
    multiline = b'prompt,completion\n"a\nb",c\nd,e\n'
    assert [line.provenance.line for line in lines(tmp_path, multiline)] == [2, 4]


def test_a_broken_line_is_accounted_for_by_the_digest_of_its_bytes(tmp_path: Path) -> None:
    broken = b'{"prompt": "q", "chosen": '
    found = lines(tmp_path, JSONL + broken + b"\n" + JSONL)
    assert [type(line.content).__name__ for line in found] == ["Record"] * 3 + ["Unreadable"] + ["Record"] * 3
    content = found[3].content
    assert isinstance(content, Unreadable) and content.id == hashlib.sha256(broken).hexdigest()
    assert content.reason == "broken JSON: Expecting value at line 1, column 27"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff\xfe\xfd", "invalid UTF-8 at byte 0"),
        (b"[]", "no object"),
        (b"null", "no object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "a", "prompt": "b", "chosen": "c", "rejected": "d"}', "the same key twice"),
        (b'{"prompt": NaN, "chosen": "c", "rejected": "d"}', "NaN is no JSON number"),
        (b'{"prompt": ' + b"9" * 5000 + b', "chosen": "c", "rejected": "d"}', "digits"),
        (b'{"prompt": "\\ud83d", "chosen": "c", "rejected": "d"}', "half a surrogate pair"),
        (b'{"prompt": "a\x00b", "chosen": "c", "rejected": "d"}', "control character"),
        (b'{"chosen": "c", "rejected": "d"}', "'prompt' is missing"),
        (b'{"chosen": "c:", "a\\u003a": 1, "rejected": "d", "rejected": "d"}', "the same key twice"),
        (b'{"prompt": "a", "x": {"y": [{"z": 1, "z": 2}]}, "chosen": "c", "rejected": "d"}', "the same key twice"),
        (b'{"prompt": "a", "x": ' + b"[" * 100 + b"]" * 100 + b', "chosen": "c", "rejected": "d"}', "too deeply"),
        (b'{"prompt": "a", "chosen": "c", "rejected": "d", "weight": 1' + b"0" * 400 + b"}", "no finite number"),
    ],
)
def test_a_hostile_line_is_unreadable_and_stops_nothing(tmp_path: Path, line: bytes, reason: str) -> None:
    found = lines(tmp_path, JSONL + line + b"\n" + JSONL)
    assert len(found) == 7
    content = found[3].content
    assert isinstance(content, Unreadable) and reason in content.reason


def test_a_first_line_that_looks_like_a_list_stops_nothing(tmp_path: Path) -> None:
    assert [type(line.content).__name__ for line in lines(tmp_path, b"[oops\n" + JSONL)] == ["Unreadable"] + [
        "Record"
    ] * 3
    assert [type(line.content).__name__ for line in lines(tmp_path, b"oops\n" + JSONL)] == ["Unreadable"] + [
        "Record"
    ] * 3


@pytest.mark.parametrize("chunk", [2000, 8000])  # shorter and longer than the long line
def test_a_line_too_long_to_hold_is_named_by_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(limits, "MAX_LINE", 1000)
    monkeypatch.setattr(limits, "READ", 300)
    monkeypatch.setattr(limits, "CHUNK_BYTES", chunk)
    long = b'{"prompt": "' + b"x" * 5000 + b'", "chosen": "c", "rejected": "d"}'
    found = lines(tmp_path, JSONL + long + b"\n" + JSONL + long)
    assert [type(line.content).__name__ for line in found] == [
        *["Record"] * 3,
        "Unreadable",
        *["Record"] * 3,
        "Unreadable",
    ]
    for line in (found[3], found[7]):
        assert isinstance(line.content, Unreadable) and line.content.id == hashlib.sha256(long).hexdigest()


def test_csv_rows_of_another_width_are_unreadable(tmp_path: Path) -> None:
    found = lines(tmp_path, b'prompt,completion\na\nb,c\n"x"y,z\n\xff,z\n')
    reasons = [line.content.reason if isinstance(line.content, Unreadable) else None for line in found]
    assert reasons[0] == "1 cells under a header of 2" and reasons[1] is None
    assert str(reasons[2]).startswith("broken CSV") and reasons[3] == "invalid UTF-8 at byte 0"


def test_csv_cells_may_hold_lists_as_json(tmp_path: Path) -> None:
    cell = json.dumps([{"text": "a", "score": 1}, {"text": "b", "score": 0}]).replace('"', '""')
    (line, bad) = lines(tmp_path, f'prompt,completions,weight\nq,"{cell}",\nq,[oops,2\n'.encode())
    assert isinstance(line.content, Record) and [item.score for item in line.content.completions] == [1.0, 0.0]
    assert isinstance(bad.content, Unreadable) and "broken JSON" in bad.content.reason


def test_parquet_nulls_structs_and_invalid_text_are_rows_too(tmp_path: Path) -> None:
    spoken = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    found = lines(tmp_path, as_parquet(pa.table({"messages": [spoken, None], "when": [1, 2]})))
    assert isinstance(found[0].content, Record) and isinstance(found[1].content, Unreadable)
    binary = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary()).cast(pa.string(), safe=False)
    table = pa.table({"prompt": ["a", "b", "c"], "completion": pa.Array.from_buffers(pa.string(), 3, binary.buffers())})
    found = lines(tmp_path, as_parquet(table))
    assert [type(line.content).__name__ for line in found] == ["Record", "Unreadable", "Record"]


def test_the_form_is_that_of_most_lines_and_may_be_named(tmp_path: Path) -> None:
    both = b'{"prompt": "q", "completion": "a", "chosen": "a", "rejected": "b"}\n'
    (tmp_path / "data").write_bytes(both)
    assert read(Source(path="data"), tmp_path).form == "pairs"
    assert read(Source(path="data", form="completion"), tmp_path).form == "completion"
    (tmp_path / "data").write_bytes(b'{"note": 1}\n' + JSONL)
    assert read(Source(path="data"), tmp_path).form == "pairs"
    message = refused(tmp_path, JSONL, form="messages")
    assert "not one line can be read as form 'messages' (named in 'form'); line 1: 'messages' is missing" in message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"[]", "the file is empty"),
        (gzip.compress(b"", mtime=0), "the file is empty"),
        (b"prompt,completion\n", "the file is empty"),
        (gzip.compress(JSONL * 500, mtime=0)[:-20], "cut off"),
        (gzip.compress(JSONL, mtime=0)[:-12] + b"\0" * 12, "damaged"),
        (pa.compress(JSONL, "zstd", asbytes=True)[:-5], "reading failed"),
        (b"PAR1 not really PAR1", "Parquet file is damaged"),
        (as_parquet(pa.table({"a": [1]})), "no known form in the columns 'a'"),
        (
            b'{"question": 1, "answer": 2}\n',
            "no known form in the columns 'question', 'answer'. Known forms: pairs (pr",
        ),
        (b"question,answer\n1,2\n", "no known form in the columns 'question', 'answer'"),
        (b'{"rows": [\n1\n]}', "none of the first 3 lines can be read; line 1: broken JSON"),
        (b'[{"prompt": "q"', "never closed (element 1)"),
        (json.dumps(ROWS).encode()[:-1], "never closed (element 3)"),
        (json.dumps(ROWS).encode()[:-1] + b"}", "closed by a brace"),
        (json.dumps(ROWS).encode() + b"[]", "text behind the end"),
        (gzip.compress(gzip.compress(JSONL)), "compressed twice"),
        (gzip.compress(JSONL, mtime=0) + b"junk", "bytes behind its end"),
        (bytes(range(256)) * 10 + b"\0" * 500, "NUL bytes"),
        (JSONL.decode().encode("utf-16"), "UTF-16"),
        (JSONL.decode().encode("utf-16-le"), "NUL bytes"),
        ("prömpt,cömpletion\n".encode("latin-1"), "no UTF-8 text"),
        (b"PK\x03\x04 whatever", "zip"),
        (b'prompt,completion\na,"b\nc,d\n', "a quote opened in line 2 is never closed"),
        (b'"prompt"x,prompt,completion\na,b,c\n', "no known form"),
        (b"prompt,prompt,completion\na,b,c\n", "names a column twice"),
        (
            b'{"prompt": 1, "completion": 2}\n',
            "not one line can be read as form 'completion'; line 1: 'prompt' is a number",
        ),
    ],
    # Bytes make poor names, and all workers have to find the same ones.
    ids=range(28),
)
def test_a_fault_of_the_whole_file_is_one_refusal(tmp_path: Path, data: bytes, said: str) -> None:
    assert said in refused(tmp_path, data)


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        ("folder", "no data file is there; found: nothing"),
        ("none", "no such file"),
        ("pipe", "special file"),
        ("a\0b", "no such file"),
    ):
        with pytest.raises(Refused, match=said):
            read(Source(path=path), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(JSONL)
    (tmp_path / "data").chmod(0)
    with pytest.raises(Refused, match="no permission"):
        read(Source(path="data"), tmp_path)


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(st.sampled_from(sorted(CONTAINERS)), st.data())
def test_no_mutated_file_crashes_a_reader(tmp_path: Path, container: str, data: st.DataObject) -> None:
    content = bytearray(CONTAINERS[container])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=4))
    try:
        found = lines(tmp_path, bytes(content))
    except Refused:
        return
    assert all(isinstance(line.content, Record | Unreadable) for line in found)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "text", "score"]), inner)
    ),
    max_leaves=6,
)


COLUMNS = st.sampled_from(["prompt", "chosen", "rejected", "completions", "messages"])


@FUZZ
@given(st.lists(st.dictionaries(COLUMNS, VALUES), max_size=4))
@example([{"prompt": "\ud800", "chosen": [], "rejected": {}}])
def test_every_json_line_of_any_shape_is_accounted_for(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    found = lines(tmp_path, JSONL + b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    assert len(found) == 3 + len(rows)


@FUZZ
@given(st.sampled_from(["gzip", "zstd"]), st.integers(0, 10_000), st.binary(max_size=3))
def test_no_mutated_compressed_file_crashes_a_reader(tmp_path: Path, codec: str, at: int, patch: bytes) -> None:
    content = bytearray(gzip.compress(JSONL * 20) if codec == "gzip" else pa.compress(JSONL * 20, "zstd", asbytes=True))
    at %= len(content)
    content[at : at + 2] = patch
    try:
        found = lines(tmp_path, bytes(content))
    except Refused:
        return
    assert len(found) >= 60


@FUZZ
@given(st.lists(st.binary(max_size=20), max_size=5))
def test_every_line_of_bytes_is_accounted_for(tmp_path: Path, rows: list[bytes]) -> None:
    rows = [row.replace(b"\n", b"") for row in rows]
    found = lines(tmp_path, JSONL + b"".join(row + b"\n" for row in rows))
    assert len(found) == 3 + sum(bool(row.strip(b" \t\r")) for row in rows)
