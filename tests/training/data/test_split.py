"""The split by prompt digest, and the kept records as pairs and examples."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.records import Message
from training.data.snapshot import read_snapshot, write_snapshot
from training.data.split import (
    Selected,
    in_holdout,
    load_pairs,
    load_sft,
    prompt_digest,
    read_selection,
    sft_from_preferences,
    write_selection,
)
from training.settings import Source

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
