"""The split by prompt digest, and the kept records as pairs and examples."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data import rows as limits
from training.data.records import Message
from training.data.settings import Source
from training.data.snapshot import read_snapshot, segments, write_snapshot
from training.data.split import (
    Selected,
    in_holdout,
    load_pairs,
    load_records,
    load_sft,
    prompt_digest,
    read_selection,
    sft_from_preferences,
    write_selection,
    write_selection_columns,
)

PROMPTS = st.lists(
    st.builds(Message, st.sampled_from(["system", "user"]), st.text(st.characters(exclude_categories=["Cs"]))),
    max_size=3,
)


def test_the_side_of_a_prompt_is_computed_by_hand() -> None:
    prompt = (Message("user", "q"),)
    digest = hashlib.sha256(b'[{"content":"q","role":"user"}]').hexdigest()
    assert prompt_digest(prompt) == digest
    share = int(digest[:16], 16) / 2**64
    assert not in_holdout(prompt, share * 0.999) and in_holdout(prompt, share * 1.001)


@given(PROMPTS, st.floats(0, 1), st.floats(0, 1))
def test_what_is_held_out_stays_so_at_a_larger_share(prompt: list[Message], first: float, second: float) -> None:
    small, large = sorted([first, second])
    assert in_holdout(prompt, large) or not in_holdout(prompt, small)
    assert in_holdout(prompt, 1.0) and not in_holdout(prompt, 0.0)


def test_about_the_share_of_many_prompts_is_held_out() -> None:
    held = sum(in_holdout((Message("user", str(i)),), 0.1) for i in range(5000))
    assert abs(held - 500) < 4 * (5000 * 0.1 * 0.9) ** 0.5  # four standard deviations: 85


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Path]:
    for part, letters in (("preferences", "abc"), ("holdout", "de")):
        rows = [json.dumps({"prompt": letter, "chosen": letter.upper(), "rejected": "-"}) for letter in letters]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(rows))
        write_snapshot([Source(path=f"{part}.jsonl")], tmp_path, tmp_path / part)
    return {part: tmp_path / part for part in ("preferences", "holdout")}


def select(parts: dict[str, Path], path: Path, chosen: list[tuple[str, int, str]]) -> Path:
    ids = {part: [row.id for row in read_snapshot(folder)] for part, folder in parts.items()}
    write_selection([Selected(part, row, ids[part][row], split) for part, row, split in chosen], path)  # type: ignore[arg-type]
    return path


def test_kept_records_come_in_stored_order_by_split(tmp_path: Path, parts: dict[str, Path]) -> None:
    chosen = [("preferences", 2, "train"), ("preferences", 0, "train"), ("holdout", 1, "holdout")]
    path = select(parts, tmp_path / "selection.parquet", chosen)
    assert [pair.chosen for pair in load_pairs(parts, path)] == ["A", "C"]
    assert [pair.chosen for pair in load_pairs(parts, path, "holdout")] == ["E"]
    assert [example.completion for example in sft_from_preferences(parts, path)] == ["A", "C"]
    assert [example.completion for example in load_sft(parts, path)] == ["A", "C", "E"]


def test_a_selection_survives_its_file_and_its_bytes_repeat(tmp_path: Path) -> None:
    rows = [Selected("preferences", i, f"{i:064x}", "train") for i in range(100)]
    for name in ("one", "two"):
        write_selection(rows, tmp_path / name)
    assert read_selection(tmp_path / "one") == rows
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


COLUMNS = {
    "lists": list,
    "NumPy text": np.array,
    "NumPy bytes": lambda values: np.array(values, dtype="S" if isinstance(values[0], str) else None),
    "NumPy objects": lambda values: np.array(values, dtype=object),
    "Arrow": pa.array,
    "Arrow, dictionary": lambda values: pa.array(values).dictionary_encode(),
    "Arrow, chunks": lambda values: pa.chunked_array([values[:40], values[40:]]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_any_kind_make_the_same_selection(tmp_path: Path, kind: str) -> None:
    rows = [Selected("sft" if i % 3 else "holdout", i, f"{i:064x}", "train") for i in range(100)]
    write_selection(rows, tmp_path / "one")
    columns = [COLUMNS[kind]([getattr(item, name) for item in rows]) for name in ("part", "row", "id", "split")]
    write_selection_columns(*columns, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() and read_selection(
        tmp_path / "two"
    ) == rows


def test_an_empty_selection_is_one(tmp_path: Path) -> None:
    write_selection([], tmp_path / "none")
    assert read_selection(tmp_path / "none") == [] and list(load_records({}, tmp_path / "none")) == []


def test_columns_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one length; found part 1, row 2, id 1, split 1"):
        write_selection_columns(["sft"], [1, 2], ["a"], ["train"], tmp_path / "no")
    with pytest.raises(ValueError, match="a value is missing"):
        write_selection_columns(["sft"], [1], pa.array([None], pa.string()), ["train"], tmp_path / "no")
    assert not (tmp_path / "no").exists()


@given(st.sets(st.integers(0, 99)), st.randoms(use_true_random=False))
def test_any_selection_gives_its_records_in_stored_order(
    many: tuple[Path, list[str]], rows: set[int], order: Any
) -> None:
    folder, ids = many
    mixed = list(rows)
    order.shuffle(mixed)
    write_selection([Selected("preferences", row, ids[row], "train") for row in mixed], folder / "some")
    found = load_records({"preferences": folder}, folder / "some", "train")
    assert [record.prompt[0].content for record in found] == [f"q{row}" for row in sorted(rows)]
    assert list(load_records({"preferences": folder}, folder / "some", "holdout")) == []


def test_a_segment_of_which_nothing_is_selected_is_not_read(many: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, ids = many
    for segment in segments(folder):
        (tmp_path / segment.name).write_bytes(segment.read_bytes())
    unused = segments(tmp_path)[3]  # rows 21 to 27
    unused.write_bytes(spoilt(unused.read_bytes()))
    write_selection([Selected("sft", row, ids[row], "train") for row in (0, 20, 28, 99)], tmp_path / "some")
    found = load_records({"sft": tmp_path}, tmp_path / "some")
    assert [record.prompt[0].content for record in found] == ["q0", "q20", "q28", "q99"]
    write_selection([Selected("sft", 21, ids[21], "train")], tmp_path / "some")
    with pytest.raises(Exception, match=r"[Cc]orrupt|decompress|Invalid|Unexpected|Couldn't|Deserializ"):
        list(load_records({"sft": tmp_path}, tmp_path / "some"))


def spoilt(parquet: bytes) -> bytes:
    """The file without its rows: only the description at its end is left."""
    kept = 8 + int.from_bytes(parquet[-8:-4], "little")
    return bytes(len(parquet) - kept) + parquet[-kept:]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A hundred rows in segments of seven: the folder and the ids."""
    root = tmp_path_factory.mktemp("many")
    lines = [json.dumps({"prompt": f"q{i}", "chosen": "a", "rejected": "b"}) for i in range(100)]
    (root / "rows.jsonl").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "CHUNK_ROWS", 7)
        facts = write_snapshot([Source(path="rows.jsonl")], root, root / "out")
    assert facts.segments == 15
    return root / "out", [row.id for row in read_snapshot(root / "out")]


def test_a_selection_of_another_snapshot_is_noticed(tmp_path: Path, parts: dict[str, Path]) -> None:
    path = tmp_path / "selection.parquet"
    write_selection([Selected("preferences", 0, "0" * 64, "train")], path)
    with pytest.raises(ValueError, match="another snapshot"):
        load_pairs(parts, path)
    write_selection([Selected("preferences", 7, "0" * 64, "train")], path)
    with pytest.raises(ValueError, match="holds 0 of the 1 selected"):
        load_pairs(parts, path)
    write_selection([Selected("sft", 0, "0" * 64, "train")], path)
    with pytest.raises(ValueError, match="names the part 'sft'"):
        load_pairs(parts, path)
