"""Facts of shape, worked by hand."""

import math
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.data.facts.rows import ASK, batch, pair
from training.data.facts.shape import Shape, invisible, visible, wrong_roles
from training.data.records import Completion, Message, Record

NULL = math.nan


def facts(record: Record | None, needed: int = 2) -> dict[str, float]:
    columns = Shape()(batch([record], needed))
    return {name: float(values[0]) for name, values in columns.items()}


def said(record: Record | None, needed: int = 2, **expected: float) -> None:
    found = facts(record, needed)
    for name, value in expected.items():
        assert (math.isnan(found[name]) and math.isnan(value)) or found[name] == value, (name, found[name], value)


def graded(*completions: Completion, prompt: tuple[Message, ...] = ASK) -> Record:
    return Record(prompt, completions)


def test_a_pair_has_every_fact() -> None:
    assert facts(pair("moon?", "cheese", "rock and dust")) == {
        "unreadable": 0,
        "question_characters": 5,
        "shortest_completion": 6,
        "wrong_roles": 0,
        "completions": 2,
        "missing_completions": 0,
        "missing_grades": 0,
        "ordered_pairs": 1,
        "identical_pairs": 0,
        "pairs": 1,
        "characters": 5 + 13,
        "rated": 0,
        "desirable": 0,
    }


def test_what_is_labelled_undesirable_is_no_sft_row() -> None:
    for label, missing in ((True, 0), (None, 0), (False, 1)):
        said(Record(ASK, (Completion("a", label=label),)), needed=1, missing_completions=missing)
    said(Record(ASK, (Completion("a", label=False),)), needed=2, missing_completions=0)


def test_a_line_that_is_no_record_has_no_other_fact() -> None:
    found = facts(None)
    assert found.pop("unreadable") == 1
    assert set(found) | {"unreadable"} == set(Shape().columns) and all(map(math.isnan, found.values()))


def test_columns_are_arrays_of_the_batch() -> None:
    columns = Shape()(batch([pair("a", "b", "c"), None, pair("d", "e", "f")]))
    assert tuple(columns) == Shape().columns
    assert all(values.dtype == np.float64 and values.shape == (3,) for values in columns.values())
    assert columns["unreadable"].tolist() == [0, 1, 0]
    assert all(values.shape == (0,) for values in Shape()(batch([])).values())


def test_plain_text_without_a_prompt_is_no_empty_question() -> None:
    said(
        Record((), (Completion("Once upon a time"),)),
        needed=1,
        question_characters=NULL,
        wrong_roles=0,
        missing_completions=0,
        shortest_completion=16,
        ordered_pairs=NULL,
        missing_grades=NULL,
    )


EMPTY = ["", " \n\t", "\u200b", "\ufeff", " \u200b \u2060\n", "\u00ad\u00ad", "\x00\x01", "\u2800", "\u3164", "\ufe0f",
         "\U000e0041", "\u2028", "\u3000\u00a0"]  # fmt: skip


@pytest.mark.parametrize("text", EMPTY)
def test_text_that_shows_nothing_is_empty(text: str) -> None:
    assert visible(text) == ""
    said(pair(text, "b", "c"), question_characters=0)
    said(pair("a", "b", text), shortest_completion=0)


@pytest.mark.parametrize("text", ["a", ".", "\u200ba", " \u200b0\u200b ", "❤️", "\u200b–", "。", "\u0301", "\U0001f600"])
def test_text_that_shows_something_is_not(text: str) -> None:
    assert visible(text) == text.strip() != ""


@given(st.text(max_size=8))
def test_visible_is_empty_iff_every_character_is_invisible(text: str) -> None:
    assert (visible(text) == "") == all(c in invisible() for c in text)


def test_every_format_and_control_character_is_invisible() -> None:
    import sys

    found = {c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) in ("Cf", "Cc")}
    assert found <= invisible()


@pytest.mark.parametrize(
    ("roles", "wrong"),
    [
        ("u", 0),
        ("su", 0),
        ("suau", 0),
        ("", 0),
        ("a", 2),  # an assistant first, and an assistant last
        ("s", 1),
        ("uu", 1),
        ("ua", 1),
        ("usu", 2),  # 'system' for an assistant; then a user after what is no assistant
        ("au", 1),
        ("x", 2),
    ],
)
def test_turns_that_are_not_expected_are_counted(roles: str, wrong: int) -> None:
    names = {"u": "user", "a": "assistant", "s": "system", "x": "User"}
    assert wrong_roles(tuple(Message(names[role], "x") for role in roles)) == wrong


def c(text: str, **grade: Any) -> Completion:
    return Completion(text, **grade)


def test_a_single_rating_is_whole_and_a_single_score_is_not() -> None:
    said(graded(c("a", label=True)), missing_completions=0, rated=1, desirable=1, ordered_pairs=NULL, missing_grades=0)
    said(graded(c("a", label=False)), missing_completions=0, rated=1, desirable=0)
    said(graded(c("a", score=1.0)), missing_completions=1, rated=0)
    said(graded(c("a")), missing_completions=1, missing_grades=0)
    said(graded(), missing_completions=2, shortest_completion=NULL, ordered_pairs=NULL, completions=0)


def test_ratings_that_are_alike_are_no_missing_preference() -> None:
    said(graded(c("a", label=True), c("b", label=True)), ordered_pairs=NULL, rated=2, desirable=2)
    said(graded(c("a", label=True), c("b", label=False)), ordered_pairs=1, rated=2, desirable=1)
    said(graded(c("a", label=True), c("b")), ordered_pairs=0, missing_grades=1, rated=1)
    said(graded(c("a", score=1.0), c("b", score=1.0)), ordered_pairs=0, missing_grades=0)


def test_grades_of_several_kinds_or_some_only_are_missing_grades() -> None:
    said(graded(c("a", score=1.0), c("b")), missing_grades=1, ordered_pairs=0)
    said(graded(c("a", score=1.0), c("b", rank=2)), missing_grades=1, ordered_pairs=0)
    said(graded(c("a", rank=1), c("b", rank=2), c("d")), missing_grades=1, ordered_pairs=1)
    said(graded(c("a"), c("b")), missing_grades=0, ordered_pairs=0)
    said(graded(c("a", rank=1), c("b", rank=1)), missing_grades=0, ordered_pairs=0)


def test_pairs_of_three_scores() -> None:
    # 3 > 2 > 1: three pairs; 'a' stands twice, so one of them has two texts that are the same to the eye.
    record = graded(c("a", score=3.0), c("a \u200b", score=2.0), c("b", score=1.0))
    said(record, ordered_pairs=3, identical_pairs=0, pairs=3)
    record = graded(c("a", score=3.0), c("a ", score=2.0), c("b", score=1.0))
    said(record, ordered_pairs=3, identical_pairs=1, pairs=3)
    record = graded(c("a", score=3.0), c("a", score=2.0), c("b", score=1.0))
    said(record, ordered_pairs=3, identical_pairs=1, pairs=2)


@pytest.mark.parametrize(
    ("chosen", "rejected", "identical", "pairs"), [("a", "a", 1, 0), ("a", " a\n", 1, 1), ("a", "b", 0, 1)]
)
def test_a_ranked_pair_is_counted_like_any_other(chosen: str, rejected: str, identical: int, pairs: int) -> None:
    said(pair("q", chosen, rejected), ordered_pairs=1, identical_pairs=identical, pairs=pairs)
    both = graded(c(chosen, score=1.0), c(rejected, score=0.0))
    said(both, ordered_pairs=1, identical_pairs=identical, pairs=pairs)
