"""Rules over facts: which rows break which rule, worked by hand."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from training.data.profile import Profile, profile, rules
from training.data.snapshot import write_snapshot
from training.data.split import in_holdout
from training.settings import Action, Holdout, Source, ValidationSettings

HALF = Holdout(share=0.5)
OWN = Holdout(sources=(Source(path="holdout.jsonl"),))


def run(folder: Path, holdout: Holdout = OWN, settings: ValidationSettings | None = None, **parts: Any) -> Profile:
    """Profile parts given as lists of objects or raw lines; with files of its own the holdout has one record."""
    if holdout.sources:
        parts.setdefault("holdout", [pair("held", "a", "b")])
    dirs = {}
    for part, rows in parts.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        dirs[part] = folder / part
        write_snapshot([Source(path=f"{part}.jsonl")], folder, dirs[part])
    return profile(dirs, settings or ValidationSettings(), holdout)


def pair(prompt: Any, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def scores(prompt: str, **answers: float | None) -> dict[str, Any]:
    return {"prompt": prompt, "completions": [{"text": text, "score": score} for text, score in answers.items()]}


def broken(found: Profile, part: str = "preferences") -> list[list[str]]:
    """The names of the rules that each row of a part breaks."""
    here = [i for i, name in enumerate(found.table["part"]) if name == part]
    return [[rule for rule, failing in found.failing.items() if failing[i]] for i in here]


def test_the_rules_are_the_settings() -> None:
    actions = [name for name, field in ValidationSettings.model_fields.items() if set(_options(field.annotation))]
    assert [rule.name for rule in rules(ValidationSettings())] == actions


def _options(annotation: Any) -> tuple[str, ...]:
    return tuple(option for option in get_args(annotation) if option in get_args(Action))


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
        (pair([], "a", "b"), ["empty_prompt"]),
        (pair("q", "a", " "), ["empty_completion"]),
        (pair(_roles("user", "user"), "a", "b"), ["wrong_roles"]),
        (pair(_roles("assistant", "user"), "a", "b"), ["wrong_roles"]),
        (pair(_roles("user", "assistant"), "a", "b"), ["wrong_roles"]),
        (pair(_roles("user", "system", "user"), "a", "b"), ["wrong_roles"]),
        (pair(_roles("system"), "a", "b"), ["wrong_roles"]),
        (pair(_roles("User"), "a", "b"), ["wrong_roles"]),
        (pair("q", "same", " same\n"), ["identical_completions"]),
        (pair("q", "a\0", "b"), ["bad_characters"]),
        (pair("q", "a", "b\x9b"), ["bad_characters"]),
        (pair("q\ufffd", "a", "b"), ["bad_characters"]),
        (pair("q", "a\ud83d", "b"), ["unreadable", "bad_characters"]),
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
        (scores("q", a=1, b=None), ["no_preference"]),
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
    assert found.table["split"].tolist() == ["holdout" if side else "train" for side in held] + ["train"] * 10
    assert found.quarantined.sum() == sum(held) and not found.faulty.any()


def test_sft_rows_need_one_completion_and_no_preference(tmp_path: Path) -> None:
    sft = [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": ""}, {"prompt": "held", "completion": "a"}]
    found = run(tmp_path, preferences=[pair("p", "a", "b")], sft=sft)
    assert broken(found, "sft") == [[], ["empty_completion"], ["in_holdout"]]


def test_a_warning_keeps_the_row_and_a_stop_does_not(tmp_path: Path) -> None:
    settings = ValidationSettings(empty_prompt="warn", empty_completion="stop")
    rows = [pair("", "a", "b"), pair("q", "", "b"), pair("p", "a", "b")]
    found = run(tmp_path, settings=settings, preferences=rows)
    assert found.quarantined.tolist() == [False, True, False, False]


def test_the_profile_holds_no_text(tmp_path: Path) -> None:
    found = run(tmp_path, preferences=[pair("Zanzibar", "Zanzibar a", "Zanzibar b"), '{"prompt": "Zanzibar'])
    assert "Zanzibar" not in found.table.to_csv()


def test_parts_must_fit_the_holdout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="don't fit"):
        profile({"preferences": tmp_path}, ValidationSettings(), OWN)
    with pytest.raises(ValueError, match="don't fit"):
        profile({"train": tmp_path}, ValidationSettings(), HALF)
