"""Sources that are wrong in many ways, each made from a seed: mutated files, bombs, endless headers, tangled folders."""

import csv
import gzip
import io
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.data.settings import Source

FREE = 2**20  # bytes that any file may expand to here

USER, ASSISTANT = {"role": "user", "content": "frage"}, {"role": "assistant", "content": "antwort ü"}
FORMS: list[dict[str, Any]] = [
    {"prompt": "frage", "chosen": "gut", "rejected": "schlecht"},
    {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT]},
    {
        "prompt": "frage",
        "chosen": [USER, ASSISTANT],
        "rejected": [USER, ASSISTANT],
        "score_chosen": 9,
        "score_rejected": 1.5,
    },
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {"prompt": "q", "completions": [{"text": "a", "score": 1}, {"text": "b", "rank": 2}], "licence": "MIT"},
    {"prompt": "q", "responses": ["a", "b"], "scores": [1, 0.5], "models": ["m", None]},
    {"prompt": "q", "completion": "a", "label": True, "subject": "s", "consent": "yes", "expires": "2030-01-01"},
    {"prompt": "q", "completion": "a", "weight": 0.5},
    {"messages": [USER, ASSISTANT], "collected_at": "2024-01-01T00:00:00Z"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
    {"instruction": "do", "input": "", "output": "done"},
    {"text": 'words, words; "words"'},
    {"sentence_good": "He is.", "sentence_bad": "He are."},
]
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2**53,
        2**64,
        10**30,
        1e308,
        -0.0,
        0.1,
        "",
        " ",
        "\0",
        "\x1b",
        "\ud800",
        "é😀\u2028",
    ),
    *([], {}, [None], [[]], [{}], [USER], [ASSISTANT], [USER, ASSISTANT], {"role": "user"}, {"text": 1}, "Human: a"),
    *([{"from": "gpt", "value": None}], [1, "a", None], "2030-13-01", "[{", '[{"role": 1}]', "true"),
]


def value(chance: random.Random) -> Any:
    kind = chance.random()
    if kind < 0.75:
        return chance.choice(VALUES)
    if kind < 0.85:
        return chance.choice(("x", "\n", '"', "\\", "é", "a b ")) * chance.choice((10, 1000, 200_000))
    nested: Any = chance.choice(VALUES)
    for _ in range(chance.choice((1, 3, 99, 101, 500, 900))):
        nested = [nested] if chance.random() < 0.5 else {"a": nested}
    return nested


def rows(chance: random.Random) -> list[Any]:
    """Rows of one form, some of them of another, with a column renamed, dropped, doubled or of another type."""
    form = chance.choice(FORMS)
    found: list[Any] = []
    for _ in range(chance.choice((1, 2, 5, 30))):
        row = dict(chance.choice(FORMS) if chance.random() < 0.1 else form)
        if chance.random() < 0.3:
            row[chance.choice([*row, "weight", "licence", "extra", "completions", "messages"])] = value(chance)
        if chance.random() < 0.1:
            del row[chance.choice(list(row))]
        if chance.random() < 0.2:
            row = dict(chance.sample(list(row.items()), len(row)))
        found.append(value(chance) if chance.random() < 0.05 else row)
    return found


# ------------------------------------------------------------------------------------------------ containers


def json_lines(chance: random.Random, found: list[Any]) -> bytes:
    end = chance.choice(("\n", "\n", "\r\n", "\n\n", "\n \n"))
    text = end.join(json.dumps(row, ensure_ascii=chance.random() < 0.5) for row in found)
    return (text + chance.choice(("", end))).encode("utf-8", "surrogatepass")


def json_list(chance: random.Random, found: list[Any]) -> bytes:
    return json.dumps(found, indent=chance.choice((None, 1)), ensure_ascii=chance.random() < 0.5).encode(
        "utf-8", "surrogatepass"
    )


def as_csv(chance: random.Random, found: list[Any]) -> bytes:
    objects = [row for row in found if isinstance(row, dict)] or [FORMS[0]]
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in objects for name in row))
    writer = csv.writer(text, delimiter=chance.choice(",,;\t"), lineterminator=chance.choice(("\n", "\r\n")))
    writer.writerow(columns)
    for row in objects:
        cells = (row.get(name, "") for name in columns)
        writer.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in cells])
    return text.getvalue().encode("utf-8", "surrogatepass")


def _table(chance: random.Random, found: list[Any]) -> pa.Table:
    objects = [
        row for row in found if isinstance(row, dict) and json.dumps(row).count("[") < 200
    ]  # pyarrow is slow in deep ones
    try:
        return pa.Table.from_pylist(objects or [FORMS[0]])
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError, RecursionError):
        return pa.Table.from_pylist([chance.choice(FORMS)] * 3)  # columns of one type each are all that Arrow can hold


def parquet(chance: random.Random, found: list[Any]) -> bytes:
    buffer = io.BytesIO()
    try:
        pq.write_table(_table(chance, found), buffer, compression=chance.choice(("none", "snappy", "zstd")))
    except (pa.ArrowException, OSError):  # structs without fields
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(FORMS[:1]), buffer)
    return buffer.getvalue()


def arrow(chance: random.Random, found: list[Any]) -> bytes:
    buffer, table = io.BytesIO(), _table(chance, found)
    made = chance.choice((pa.ipc.new_file, pa.ipc.new_stream))
    options = pa.ipc.IpcWriteOptions(compression=chance.choice((None, "lz4", "zstd")))
    try:
        with made(buffer, table.schema, options=options) as writer:
            writer.write_table(table)
    except pa.ArrowException:  # nested too deeply
        return arrow(chance, FORMS[:1])
    return buffer.getvalue()


CONTAINERS: dict[str, Callable[[random.Random, list[Any]], bytes]] = {
    "jsonl": json_lines,
    "json": json_list,
    "csv": as_csv,
    "parquet": parquet,
    "arrow": arrow,
}
CODECS: list[Callable[[bytes], bytes]] = [
    bytes,
    lambda data: gzip.compress(data, 1, mtime=0),
    lambda data: pa.compress(data, "zstd", asbytes=True),
]


# ------------------------------------------------------------------------------------------------ mutations


def whole(chance: random.Random, data: bytes) -> bytes:
    return data


def flip(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data or b"x")
    for _ in range(chance.choice((1, 3, 20))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def insert(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    junk = (
        b"\0",
        b"\n",
        b"\r",
        b'"',
        b"\\",
        b"{",
        b"]",
        b",",
        b"\xff\xfe",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"NaN",
        b"\x1f\x8b",
    )
    return data[:at] + chance.choice(junk) * chance.choice((1, 2, 1000)) + data[at:]


def double(chance: random.Random, data: bytes) -> bytes:
    start, end = sorted((chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)))
    return data[:end] + data[start:end] + data[end:]


def another_encoding(chance: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(chance.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-7")), "replace")


def several(chance: random.Random, data: bytes) -> bytes:
    for _ in range(3):
        data = chance.choice(MUTATIONS[:-1])(chance, data)
    return data


MUTATIONS = [whole, whole, whole, flip, cut, insert, double, another_encoding, several]


# ------------------------------------------------------------------------------------------------ cases


@dataclass(frozen=True)
class Case:
    """A source to read, and how many lines it must come to (None where nothing else can say)."""

    kind: str
    path: str
    lines: int | None = None


def file(chance: random.Random, folder: Path, number: int) -> Case:
    kind = chance.choice(list(CONTAINERS))
    made = CONTAINERS[kind](chance, rows(chance))
    inner = chance.choice(MUTATIONS)(chance, made)
    data = chance.choice(CODECS)(inner)
    plain = data is inner or chance.random() < 0.7
    if not plain:
        data = chance.choice(MUTATIONS)(chance, data)  # of the compressed file
    (folder / "data").write_bytes(data)
    return Case(kind, "data", _count(kind, inner, inner == made) if plain else None)


def _count(kind: str, data: bytes, whole: bool) -> int | None:
    """How many lines hold anything, where that follows from the bytes alone, or from a file that nothing was done to."""
    if whole and kind == "json":
        return len(json.loads(data.decode("utf-8", "surrogatepass")))
    if whole and kind == "parquet":
        return int(pq.read_metadata(io.BytesIO(data)).num_rows)
    if whole and kind == "arrow":
        opened = pa.ipc.open_file if data.startswith(b"ARROW1") else pa.ipc.open_stream
        return int(opened(data).read_all().num_rows)
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if kind != "jsonl" or start != b"{" or data[:16].startswith((b"\x1f\x8b", b"\xff", b"\xfe")):
        return None
    return sum(bool(line.strip(b" \t\r")) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"))


def bomb(chance: random.Random, folder: Path, number: int) -> Case:
    """More than FREE from a small file: lines, one line, blanks, a list, cells, or a value repeated in Parquet."""
    row = json.dumps(FORMS[0]).encode()
    size = 2 * FREE
    texts = (row + b"\n", b"x", b" ", b"\n", row + b",", b'prompt,completion\n"', b"a,b\n")
    unit = chance.choice(texts)
    start = chance.choice((row + b"\n", b"[" + row + b",", b"prompt,completion\n", b""))
    pack = chance.choice((lambda data: gzip.compress(data, 9, mtime=0), CODECS[2]))
    data = pack(start + unit * (size // len(unit)))
    if chance.random() < 0.2:
        text = pa.DictionaryArray.from_arrays(pa.array([0] * (size // 10_000), pa.int32()), pa.array(["x" * 10_000]))
        buffer = io.BytesIO()
        pq.write_table(pa.table({"text": text.cast(pa.string())}), buffer)
        data = buffer.getvalue()
    (folder / "data").write_bytes(data)
    return Case("bomb", "data")


def columns(chance: random.Random, folder: Path, number: int) -> Case:
    names = ["prompt", "completion", *(f"c{i}" for i in range(chance.choice((20_000, 1_000_000))))]
    if chance.random() < 0.5:
        chance.shuffle(names)
    (folder / "data").write_text(",".join(names) + "\n" + "a," * (len(names) - 1) + "a\n")
    return Case("columns", "data")


def tree(chance: random.Random, folder: Path, number: int) -> Case:
    """Folders, links (to files, folders, themselves, nothing, each other), pipes, hidden and empty files."""
    places = [folder / "t"]
    places[0].mkdir()
    held = 0
    for i in range(chance.randrange(1, 12)):
        name = chance.choice(places) / f"{chance.choice(('', '.', 'README', 'ü', '[', ' '))}{i}"
        kind = chance.choice(("file", "file", "folder", "link", "pipe", "empty"))
        if kind == "folder":
            name.mkdir()
            places.append(name)
        elif kind == "pipe":
            os.mkfifo(name)
        elif kind == "link":
            name.symlink_to(
                chance.choice([*places, folder / "nowhere", name, Path(".."), Path("/dev/zero"), Path(".")])
            )
        else:
            name.write_bytes(b"" if kind == "empty" and chance.random() < 0.2 else json.dumps(FORMS[held % 3]).encode())
            held += 1
    return Case("tree", chance.choice(("t", "t/", "t/**", "t/*", "**", "t/**/*[0-5]", "./t/../t")))


def case(seed: int, folder: Path) -> tuple[Case, Source]:
    chance = random.Random(seed)
    made = file
    if seed % 10 == 3:
        made = tree
    elif seed % 200 == 7:
        made = bomb
    elif seed % 500 == 9:
        made = columns
    found = made(chance, folder, seed)
    named = chance.choice(("pairs", "text", "graded")) if chance.random() < 0.05 else None
    renamed = {"prompt": "question"} if chance.random() < 0.03 else {}
    return found, Source(path=found.path, form=named, columns=renamed)  # type: ignore[arg-type]
