"""Rules over facts: which rows break which rule, worked by hand."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.profile import Context, Profile, profile
from training.data.settings import Holdout, Source, ValidationSettings
from training.data.snapshot import write_snapshot
from training.data.split import in_holdout

HALF = Holdout(share=0.5)
OWN = Holdout(sources=(Source(path="holdout.jsonl"),))


def run(
    folder: Path,
    holdout: Holdout = OWN,
    settings: ValidationSettings | None = None,
    context: Context | None = None,
    **parts: Any,
) -> Profile:
    """Profile parts given as lists of objects or raw lines; with files of its own the holdout has one record."""
    if holdout.sources:
        parts.setdefault("holdout", [pair("held", "a", "b")])
    dirs = {}
    for part, rows in parts.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        folder.mkdir(exist_ok=True)
        (folder / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        dirs[part] = folder / part
        write_snapshot([Source(path=f"{part}.jsonl")], folder, dirs[part])
    return profile(dirs, settings or ValidationSettings(), holdout, context)


def pair(prompt: Any, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def scores(prompt: str, **answers: float | None) -> dict[str, Any]:
    return {"prompt": prompt, "completions": [{"text": text, "score": score} for text, score in answers.items()]}


def broken(found: Profile, part: str = "preferences") -> list[list[str]]:
    """The names of the rules that each row of a part breaks."""
    here = found.parts[part]
    return [[rule for rule, failing in found.failing.items() if failing[i]] for i in range(here.start, here.stop)]


def test_a_good_record_breaks_no_rule(tmp_path: Path) -> None:
    prompt = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    assert broken(run(tmp_path, preferences=[pair(prompt, "a\tb\r\n", "c")])) == [[]]


def _roles(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "x"} for role in roles]


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ("{", ["unreadable"]),
        (pair(" \n", "a", "b"), ["empty_prompt"]),
        (pair([], "a", "b"), []),
        (pair("q", "a", " "), ["empty_completion"]),
        (pair(_roles("user", "user"), "a", "b"), ["wrong_roles"]),
        (pair(_roles("assistant", "user"), "a", "b"), ["wrong_roles"]),
        (pair(_roles("user", "assistant"), "a", "b"), ["wrong_roles"]),
        (pair(_roles("user", "system", "user"), "a", "b"), ["wrong_roles"]),
        (pair(_roles("system"), "a", "b"), ["wrong_roles"]),
        (pair(_roles("User"), "a", "b"), ["wrong_roles"]),
        (pair("q", "same", " same\n"), ["identical_completions"]),
        (pair("q", "a\0", "b"), ["control_characters"]),
        (pair("q", "a", "b\x9b"), ["control_characters"]),
        (pair("q\ufffd", "a", "b"), ["replacement_characters"]),
        (pair("q", "a\ud83d", "b"), ["unreadable"]),
        (pair("q" * 8, "a" * 3, "b"), ["too_long"]),  # 8 + 3 = 11 characters, 10 are allowed
        (pair("q" * 8, "", "bb"), ["empty_completion"]),  # 8 + 2 = 10
        (pair("", "", ""), ["empty_prompt", "empty_completion", "identical_completions"]),
        (pair("held", "x", "y"), ["in_holdout"]),
    ],
)
def test_a_faulty_pair_breaks_its_rules(tmp_path: Path, row: Any, names: list[str]) -> None:
    found = run(tmp_path, settings=ValidationSettings(max_characters=10), preferences=[pair("ok", "a", "b"), row])
    assert broken(found) == [[], names]


@pytest.mark.parametrize(
    ("row", "names"),
    [
        (scores("q", a=1, b=0, c=0), []),
        (scores("q"), ["too_few_completions"]),
        (scores("q", a=1), ["too_few_completions"]),
        (scores("q", a=1, b=1), ["no_preference"]),
        (scores("q", a=1, b=None), ["missing_grades", "no_preference"]),
        ({"prompt": "q", "completions": [{"text": t, "score": s} for t, s in (("a", 1), ("a", 1), ("b", 0))]}, []),
        (
            {"prompt": "q", "completions": [{"text": t, "score": s} for t, s in (("a", 1), ("a", 0.5), ("b", 0))]},
            ["identical_completions"],
        ),
    ],
)
def test_a_graded_record_needs_a_preference(tmp_path: Path, row: Any, names: list[str]) -> None:
    assert broken(run(tmp_path, preferences=[scores("ok", a=1, b=0), row])) == [[], names]


def test_the_first_of_duplicates_stays(tmp_path: Path) -> None:
    found = run(tmp_path, preferences=[pair("q", "a", "b"), pair("p", "a", "b"), pair("q", "a", "b")])
    assert broken(found) == [[], [], ["duplicate"]]
    assert found.quarantined.tolist() == [False, False, True, False]


def test_both_sides_of_a_contradiction_are_named(tmp_path: Path) -> None:
    rows = [scores("q", a=3, b=2, c=1), pair("q", "c", "a "), pair("q", "b", "c"), pair("p", "c", "a")]
    # Row 0 says a > b > c, row 1 says c > a (white space around a text doesn't count); row 2 agrees with row 0, and
    # row 3 is about another prompt.
    graded = [rows[0]] + [{"prompt": row["prompt"], "completions": [
        {"text": row["chosen"], "score": 1}, {"text": row["rejected"], "score": 0}]} for row in rows[1:]]  # fmt: skip
    assert broken(run(tmp_path, preferences=graded)) == [["contradiction"], ["contradiction"], [], []]


def test_a_share_moves_preferences_and_refuses_their_sft_rows(tmp_path: Path) -> None:
    from training.data.records import Message

    letters = "abcdefghij"
    held = [in_holdout((Message("user", letter),), 0.5) for letter in letters]
    assert 0 < sum(held) < 10
    sft = [{"prompt": letter, "completion": "x"} for letter in letters]
    found = run(tmp_path, HALF, preferences=[pair(letter, "x", "y") for letter in letters], sft=sft)
    assert broken(found) == [[]] * 10
    assert broken(found, "sft") == [["in_holdout"] if side else [] for side in held]
    assert found.held.tolist() == held + [False] * 10
    assert found.train.tolist() == [not side for side in held] + [True] * 10
    assert found.quarantined.sum() == sum(held) and not found.faulty.any()


def test_sft_rows_need_one_completion_and_no_preference(tmp_path: Path) -> None:
    sft = [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": ""}, {"prompt": "held", "completion": "a"}]
    found = run(tmp_path, preferences=[pair("p", "a", "b")], sft=sft)
    assert broken(found, "sft") == [[], ["empty_completion"], ["in_holdout"]]


def test_a_warning_keeps_the_row_and_a_stop_does_not(tmp_path: Path) -> None:
    settings = ValidationSettings.model_validate({"empty_prompt": "warn", "empty_completion": "stop"})
    rows = [pair("", "a", "b"), pair("q", "", "b"), pair("p", "a", "b")]
    found = run(tmp_path, settings=settings, preferences=rows)
    assert found.quarantined.tolist() == [False, True, False, False]


def test_the_stored_facts_hold_no_text(tmp_path: Path) -> None:
    rows = [pair("Zanzibar", "Zanzibar a", "Zanzibar b"), '{"prompt": "Zanzibar']
    run(tmp_path, context=Context(cache=tmp_path / "cache"), preferences=rows)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not any(b"Zanzibar" in path.read_bytes() for path in files)
    for path in files:
        if path.suffix == ".parquet":
            assert not any(pa.types.is_string(field.type) for field in pq.read_schema(path))


def test_parts_must_fit_the_holdout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="don't fit"):
        profile({"preferences": tmp_path}, ValidationSettings(), OWN)
    with pytest.raises(ValueError, match="don't fit"):
        profile({"train": tmp_path}, ValidationSettings(), HALF)


# ------------------------------------------------------------------------------------------------ the stored facts

ROWS = [pair(f"question {i}", f"a good answer to {i}", f"a bad answer to {i}") for i in range(40)] + ["{"]


def _same(one: Profile, other: Profile) -> None:
    for rule in one.failing:
        assert np.array_equal(one.failing[rule], other.failing[rule]), rule
    assert np.array_equal(one.held, other.held) and np.array_equal(one.quarantined, other.quarantined)


def test_what_is_stored_is_not_made_again_and_says_the_same(tmp_path: Path) -> None:
    context = Context(cache=tmp_path / "cache")
    first = run(tmp_path / "a", HALF, context=context, preferences=ROWS)
    again = profile({"preferences": tmp_path / "a" / "preferences"}, ValidationSettings(), HALF, context)
    assert "shape" in first.segments[0].made and all(segment.made == () for segment in again.segments)
    _same(first, again)
    _same(first, profile({"preferences": tmp_path / "a" / "preferences"}, ValidationSettings(), HALF))


def test_a_changed_bound_of_a_maker_makes_its_columns_again_and_no_others(tmp_path: Path) -> None:
    context = Context(cache=tmp_path / "cache")
    run(tmp_path / "a", HALF, context=context, preferences=ROWS)
    settings = ValidationSettings(near_duplicate_from=0.6, max_characters=10, max_repeated_lines=0.1)
    again = profile({"preferences": tmp_path / "a" / "preferences"}, settings, HALF, context)
    assert [segment.made for segment in again.segments] == [("near",)]


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "digest", "no digest", "gone"])
def test_harmed_facts_are_found_and_made_again(tmp_path: Path, harm: str) -> None:
    context = Context(cache=tmp_path / "cache")
    first = run(tmp_path / "a", HALF, context=context, preferences=ROWS)
    for name in ("shape", "edges", "keys"):
        path = next((tmp_path / "cache").rglob(f"preferences-{name}-*.parquet"))
        content = path.read_bytes()
        if harm == "flip":
            path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        elif harm == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif harm == "empty":
            path.write_bytes(b"")
        elif harm == "digest":
            path.with_suffix(".sha256").write_bytes(b"\xff" * 64)
        elif harm == "no digest":
            path.with_suffix(".sha256").unlink()
        else:
            path.unlink()
    again = profile({"preferences": tmp_path / "a" / "preferences"}, ValidationSettings(), HALF, context)
    assert again.segments[0].made == ("edges", "keys", "shape")
    _same(first, again)


def test_facts_that_vanish_while_they_are_read_are_made_again(tmp_path: Path) -> None:
    context = Context(cache=tmp_path / "cache")
    found = run(tmp_path / "a", HALF, context=context, preferences=ROWS)
    before = found.column("characters")
    for path in (tmp_path / "cache").rglob("*.parquet"):
        path.unlink()
    assert np.array_equal(found.column("characters"), before, equal_nan=True)


def test_the_outcome_is_the_same_with_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.profile._FEW", 0)
    parts = {"preferences": ROWS, "sft": [{"prompt": f"question {i}", "completion": "x"} for i in range(30)]}
    one = run(tmp_path / "a", HALF, **parts)
    dirs = {part: tmp_path / "a" / part for part in parts}
    two = profile(dirs, ValidationSettings(), HALF, Context(processes=2))
    _same(one, two)


def test_facts_lose_nothing_by_being_stored(tmp_path: Path) -> None:
    """Numbers that fit into 32 bits are stored so, others in 64: a text of 2^24 + 1 characters is too long by one."""
    long = {"prompt": "q", "chosen": "ab" * 2**23, "rejected": "no"}
    settings = ValidationSettings(max_characters=2**24)
    found = run(tmp_path, settings=settings, preferences=[long])
    assert found.column("characters")[0] == 2**24 + 1 and "too_long" in broken(found)[0]


def test_a_row_is_found_where_it_stands(tmp_path: Path) -> None:
    found = run(
        tmp_path, preferences=[pair("a", "b", "c"), "", pair("d", "e", "f")], sft=[{"prompt": "g", "completion": "h"}]
    )
    places = [found.place(row) for row in range(found.rows)]
    assert places == [("preferences.jsonl", 1), ("preferences.jsonl", 3), ("sft.jsonl", 1), ("holdout.jsonl", 1)]


def test_records_without_a_prompt_are_split_one_by_one(tmp_path: Path) -> None:
    rows = [pair([], f"good {i}", f"bad {i}") for i in range(40)]
    found = run(tmp_path, HALF, preferences=rows)
    assert 5 < found.held.sum() < 35 and not found.failing["empty_prompt"].any()
    assert not found.failing["in_holdout"].any()


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    left, ours = tmp_path / "cache" / "scratch-4194999-x", tmp_path / "cache" / f"scratch-{os.getpid()}-x"
    for folder in (left, ours):
        folder.mkdir(parents=True)
        (folder / "near-sketches").write_bytes(b"x")
    run(tmp_path / "a", HALF, context=Context(cache=tmp_path / "cache"), preferences=ROWS)
    assert [path.name for path in (tmp_path / "cache").glob("scratch-*")] == [ours.name]
