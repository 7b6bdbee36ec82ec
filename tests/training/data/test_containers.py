"""Containers: chunks that depend on the content alone, appended lines, and bounds on what a file may expand to."""

import csv
import gzip
import io
import json
import pickle
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.data.test_sources import CONTAINERS, JSONL, ROWS, as_arrow, as_parquet, lines, refused
from training.data import containers
from training.data import rows as limits
from training.data.files import File
from training.data.records import Record
from training.data.settings import Source
from training.data.sources import Chunk, Line, Opened, Position, Unreadable, open_file, parse_chunk
from training.strict import Refused


def opened(path: Path, after: Position | None = None, **named: Any) -> Opened:
    return open_file(Source(path=path.name, **named), File(path, path.name), after)


def chunks(folder: Path, data: bytes, **named: Any) -> list[Chunk]:
    (folder / "data").write_bytes(data)
    return list(opened(folder / "data", **named).chunks())


def parsed(found: list[Chunk]) -> list[list[Line]]:
    return [list(parse_chunk(pickle.loads(pickle.dumps(chunk)))) for chunk in found]


def many(container: str, rows: list[dict[str, Any]]) -> bytes:
    """The rows in a container; those of the test of sources are three only."""
    if container == "JSON lines":
        return b"\n".join(json.dumps(row).encode() for row in rows)
    if container == "a JSON list":
        return json.dumps(rows, indent=1).encode()
    if container == "CSV":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    table = pa.Table.from_pylist(rows)
    return as_parquet(table) if container == "Parquet" else as_arrow(table, container == "an Arrow stream")


KINDS = ["JSON lines", "a JSON list", "CSV", "Parquet", "an Arrow file", "an Arrow stream"]
PAIRS = [{"prompt": f'q {i}\n,"', "chosen": "a" * (i % 7), "rejected": "]}[{\\" * (i % 3)} for i in range(50)]


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_cut_a_file_between_rows_and_however_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data = many(kind, PAIRS)
    whole = [line for part in parsed(chunks(tmp_path, data)) for line in part]
    assert len(whole) == 50 and all(isinstance(line.content, Record) for line in whole)
    monkeypatch.setattr(limits, "CHUNK_ROWS", 8)
    few = chunks(tmp_path, data)
    assert len(few) >= 7 and all(0 < len(part) <= 8 for part in parsed(few))
    assert [line for part in parsed(few) for line in part] == whole
    monkeypatch.setattr(limits, "CHUNK_BYTES", {"JSON lines": 300, "CSV": 50}.get(kind, 100))
    small = chunks(tmp_path, data)
    assert len(small) > len(few)
    assert [line for part in parsed(small) for line in part] == whole
    if kind not in ("Parquet", "an Arrow file", "an Arrow stream"):
        monkeypatch.setattr(limits, "READ", 160)  # the header of the CSV has to fit
        assert chunks(tmp_path, gzip.compress(data)) == small


@pytest.mark.parametrize("kind", ["JSON lines", "CSV", "a JSON list"])
def test_the_number_of_a_line_is_that_of_the_file_in_every_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(limits, "CHUNK_ROWS", 8)
    found = [line.provenance.line for part in parsed(chunks(tmp_path, many(kind, PAIRS))) for line in part]
    # A row of the CSV takes two lines, for its prompt holds a newline; the header is line 1.
    assert found == list({"CSV": range(2, 102, 2)}.get(kind, range(1, 51)))


def test_empty_lines_make_no_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_ROWS", 4)
    found = parsed(chunks(tmp_path, JSONL + b"\n \r\n" * 50 + JSONL))
    assert [[line.provenance.line for line in part] for part in found] == [[1, 2, 3], [104], [105, 106]]


# ------------------------------------------------------------------------------------------------ what is appended

MORE = JSONL.replace(b"frage", b"mehr") + b"broken\n"
CODECS: dict[str, Any] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("head", [b"", b"\xef\xbb\xbf", b"\n\n"])
def test_what_was_appended_is_read_on_its_own(tmp_path: Path, codec: str, head: bytes) -> None:
    path = tmp_path / "data"
    path.write_bytes(CODECS[codec](head + JSONL))
    before = opened(path)
    old = [line for part in parsed(list(before.chunks())) for line in part]
    assert before.end == Position(path.stat().st_size, 4 + head.count(b"\n"))
    with open(path, "ab") as file:
        file.write(CODECS[codec](MORE))
    again = opened(path)
    whole = [line for part in parsed(list(again.chunks())) for line in part]
    tail = open_file(Source(path="data"), File(path, "data"), before.end, before.form)
    assert old + [line for part in parsed(list(tail.chunks())) for line in part] == whole
    assert tail.end == again.end == Position(path.stat().st_size, 8 + head.count(b"\n"))
    nothing = open_file(Source(path="data"), File(path, "data"), tail.end, tail.form)
    assert list(nothing.chunks()) == [] and nothing.end == tail.end


@pytest.mark.parametrize(
    "data", [JSONL.rstrip(), *(CONTAINERS[kind] for kind in ("CSV", "a JSON list", "Parquet", "an Arrow file"))]
)
def test_what_is_no_whole_json_lines_has_no_end_to_append_to(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "data").write_bytes(data)
    found = opened(tmp_path / "data")
    assert found.end is None
    assert list(found.chunks()) and found.end is None


def test_bytes_behind_a_gzip_file_that_are_none_are_refused_in_a_tail_too(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(gzip.compress(JSONL))
    before = opened(path)
    list(before.chunks())
    path.write_bytes(path.read_bytes() + JSONL)
    with pytest.raises(Refused, match="gzip file is damaged"):
        open_file(Source(path="data"), File(path, "data"), before.end, before.form)


# ------------------------------------------------------------------------------------------------ bounds


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("row", [JSONL, b" " * 500, b"x" * 500, b"\n"])
def test_a_bomb_is_refused_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, row: bytes) -> None:
    monkeypatch.setattr(containers, "MAX_FREE", 4 * 2**20)
    data = CODECS[codec](JSONL + row * (64 * 2**20 // len(row)))
    assert len(data) * containers.MAX_RATIO < 64 * 2**20
    start = time.process_time()
    (tmp_path / "data").write_bytes(data)
    with pytest.raises(Refused, match="expands to more than"):
        list(opened(tmp_path / "data").chunks())
    assert time.process_time() - start < 5


def test_what_expands_as_data_do_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_FREE", 0)
    assert len(lines(tmp_path, gzip.compress(JSONL * 50))) == 150


@pytest.mark.parametrize("codec", CODECS)
def test_a_parquet_bomb_is_refused_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    monkeypatch.setattr(containers, "MAX_FREE", 4 * 2**20)
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 30_000, pa.int32()), pa.array(["x" * 10_000])).cast(
        pa.string()
    )
    data = CODECS[codec](as_parquet(pa.table({"text": text})))
    assert len(data) < 100_000 < text.nbytes
    assert "expands to more than" in refused(tmp_path, data)


@pytest.mark.parametrize("names", ["c{}", "a" * 40 + "{}"])
@pytest.mark.parametrize("known", ["prompt,completion,", ""])
def test_a_million_columns_are_one_clear_refusal_and_quick(tmp_path: Path, names: str, known: str) -> None:
    header = known + ",".join(names.format(i) for i in range(1_000_000))
    start = time.process_time()
    said = refused(tmp_path, f"{header}\n{',' * 1_000_000}\n".encode())
    assert ("columns" in said or "line 1 is longer than 32 MiB" in said) and len(said) < 1500
    assert time.process_time() - start < 5


def test_many_columns_of_parquet_are_refused(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], **{f"c{i}": [1] for i in range(limits.MAX_COLUMNS)}})
    assert f"10,001 columns; at most {limits.MAX_COLUMNS:,}" in refused(tmp_path, as_parquet(table))


def test_only_columns_that_are_read_leave_the_file(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{**row, "image": b"x" * 5000} for row in ROWS])
    (chunk,) = chunks(tmp_path, as_parquet(table))
    assert len(chunk.body.data) < 3000  # type: ignore[attr-defined]


def test_older_and_odder_columns_of_arrow_are_read(tmp_path: Path) -> None:
    odd = pa.table(
        {
            "prompt": pa.array([b"q", b"q\xff"], pa.binary()),
            "completion": pa.array(["a", "a"]).dictionary_encode(),
            "weight": pa.array([2, None], pa.int8()),
        }
    )
    for data in (as_parquet(odd), as_arrow(odd), as_arrow(odd, True)):
        good, bad = lines(tmp_path, data)
        assert isinstance(good.content, Record) and good.content.weight == 2.0
        assert isinstance(bad.content, Unreadable) and bad.content.reason == "invalid UTF-8"


def test_a_time_that_python_cannot_hold_costs_its_row_alone(tmp_path: Path) -> None:
    times = pa.array([0, 2**62], pa.timestamp("s"))
    good, bad = lines(tmp_path, as_arrow(pa.table({"text": ["a", "b"], "expires": times})))
    assert good.provenance.expires == "1970-01-01T00:00:00Z"
    assert isinstance(bad.content, Unreadable) and "cannot be read" in bad.content.reason


def test_arrow_with_broken_offsets_is_refused(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 2**31 - 8, 1)))
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"abc")])
    batch = pa.record_batch([broken], ["text"])
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, batch.schema) as writer:
        writer.write_batch(batch)
    assert "Arrow file is damaged" in refused(tmp_path, buffer.getvalue())


def test_cells_of_csv_are_text_numbers_lists_and_messages(tmp_path: Path) -> None:
    spoken = json.dumps([{"role": "user", "content": "q"}]).replace('"', '""')
    data = (
        f'label,prompt,completion,weight\nTRUE,"{spoken}",[{{oops,\n0,[1] q,"[{{""a"":1}}]",2\nmaybe,q,a,1\n'.encode()
    )
    first, second, third = lines(tmp_path, data)
    assert isinstance(first.content, Record) and isinstance(second.content, Record)
    assert (first.content.completions[0].label, second.content.completions[0].label) == (True, False)
    assert first.content.prompt[0].content == "q" and first.content.completions[0].text == "[{oops"
    assert second.content.prompt[0].content == "[1] q" and second.content.completions[0].text == '[{"a":1}]'
    assert isinstance(third.content, Unreadable) and "not true or false" in third.content.reason


def test_elements_of_a_list_are_rows_broken_or_not(tmp_path: Path) -> None:
    row = json.dumps(ROWS[0])
    found = lines(tmp_path, f'[{row}, {{"prompt": oops}}, {row}, null, [1, {{}}],\n{row},]'.encode())
    assert [isinstance(line.content, Record) for line in found] == [True, False, True, False, False, True, False]
    assert [line.provenance.line for line in found] == list(range(1, 8))


def test_a_list_with_an_endless_element_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "READ", 100)
    monkeypatch.setattr(limits, "CHUNK_BYTES", 1000)
    assert "element 2 of the list is too long" in refused(tmp_path, b'[{"text": "a"}, "' + b"x" * 2000 + b'"]')


def test_rows_that_are_too_long_are_not_all_held_to_recognise_a_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READ", 100)
    monkeypatch.setattr(limits, "MAX_LINE", 1000)
    monkeypatch.setattr(limits, "CHUNK_BYTES", 1000)
    (tmp_path / "data").write_bytes((b"{" * 2000 + b"\n") * 50)
    passed: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.data.rows.LongLine.rows", lambda body: iter([passed.append(body), limits.Row(1)][1:]))
        with pytest.raises(Refused, match="none of the first 4 lines can be read; line 1"):
            opened(tmp_path / "data")
    assert len(passed) == 4


def test_a_column_of_another_name_is_renamed(tmp_path: Path) -> None:
    rows = [{"question": "q", "chosen": "b", "rejected": "a", "prompt": "not meant"}]
    columns = {"prompt": "question", "chosen": "rejected", "rejected": "chosen"}
    for kind in KINDS:
        (line,) = lines(tmp_path, many(kind, rows), columns=columns)
        assert isinstance(line.content, Record), line
        assert line.content.prompt[0].content == "q"
        assert [c.text for c in line.content.completions] == ["a", "b"]
    scored = [{"q": "a", "list": json.dumps([{"text": "a"}, {"text": "b"}])}]
    (line,) = lines(tmp_path, many("CSV", scored), columns={"prompt": "q", "completions": "list"})
    assert isinstance(line.content, Record) and len(line.content.completions) == 2
    # A row that lacks the column isn't filled from another that happens to have our name.
    (_, bad) = lines(
        tmp_path,
        JSONL.splitlines()[0].replace(b"prompt", b"q") + b"\n" + JSONL.splitlines()[1],
        columns={"prompt": "q"},
    )
    assert isinstance(bad.content, Unreadable) and "'prompt' is missing" in bad.content.reason


def test_renaming_what_isnt_known_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(JSONL)
    with pytest.raises(Refused, match="renames 'promt', which no form has; did you mean 'prompt'"):
        opened(tmp_path / "data", columns={"promt": "x"})
    with pytest.raises(Refused, match="takes one column of the data twice"):
        opened(tmp_path / "data", columns={"chosen": "x", "rejected": "x"})
    assert "takes 'prompt' from 'absent', which the data don't have; there are 'prompt', 'chosen'" in refused(
        tmp_path, JSONL, columns={"prompt": "absent"}
    )


def test_a_parquet_file_of_large_row_groups_is_cut_too(tmp_path: Path) -> None:
    path = tmp_path / "data"
    pq.write_table(pa.table({"text": [str(i) for i in range(150_000)]}), path, row_group_size=150_000)
    sizes = [sum(1 for _ in parse_chunk(chunk)) for chunk in opened(path).chunks()]
    assert sum(sizes) == 150_000 and len(sizes) == 3 and max(sizes) <= limits.CHUNK_ROWS


@pytest.mark.parametrize("size", [1, 7, 1000, 2**20])
def test_gzip_of_any_members_is_what_the_standard_library_reads(tmp_path: Path, size: int) -> None:
    parts = [b"", JSONL, b"a" * 300_000, b"", JSONL * 1000, b"\n"]
    data = b"".join(gzip.compress(part, level) for level, part in enumerate(parts)) + b"\0" * 5000
    path = tmp_path / "data"
    path.write_bytes(data)
    with open(path, "rb") as file:
        stream, found = containers._Gzip(file), []
        while part := stream.read(size):
            assert len(part) <= size
            found.append(part)
    assert b"".join(found) == b"".join(parts) == gzip.decompress(data)
    whole = len(data) - 5000
    for lost in (1, 8, 9, 15):  # of the last member's 21 bytes
        path.write_bytes(data[: whole - lost])
        with open(path, "rb") as file, pytest.raises(EOFError):
            stream = containers._Gzip(file)
            while stream.read(size * 100):
                pass
