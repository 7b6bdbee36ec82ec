"""What a loss refuses about records, before their tokens are known: the same that training would say."""

from collections.abc import Iterator
from typing import Any

import pytest

from tasks.refusals import refusal
from training.data.records import Completion, Message, Record
from training.settings import PreferenceSettings


def settings(loss: str, *mixed: str, **more: Any) -> PreferenceSettings:
    mix = [{"coefficient": 1.0, "loss": {"name": name}} for name in mixed]
    return PreferenceSettings.model_validate(
        {"loss": {"name": loss}, "mix": tuple(mix), "epochs": 1, "learning_rate": 1.0, **more}
    )


def record(**grades: Any) -> Record:
    """Completions by text; a bool is a label, an int a rank, a float a score."""
    kinds = {bool: "label", int: "rank", float: "score"}
    completions = tuple(Completion(text, **{kinds[type(grade)]: grade}) for text, grade in grades.items())
    return Record((Message("user", "?"),), completions)


PAIR, SCORED = record(a=1, b=2), record(a=0.9, b=0.1, c=0.1)
GOOD, BAD, BOTH = record(a=True), record(a=False), record(a=True, b=False)


@pytest.mark.parametrize(
    ("loss", "records", "told"),
    [
        ("dpo", [PAIR], None),
        ("dpo", [SCORED], None),
        ("dpo", [GOOD, BAD], "no row can be seen as pairs"),
        ("dpo", [GOOD, BOTH], None),
        ("dpo", [], "found 0 row(s) with no rows"),
        ("kto", [GOOD, BAD], None),
        ("kto", [record(a=0.5, b=0.5)], "no row can be seen as ratings"),
        ("listwise", [record(a=0.5, b=0.5), SCORED], None),
        ("odpo", [SCORED, PAIR], "it needs a score for each completion"),
        ("odpo", [SCORED, record(a=0.5, b=0.5)], None),
        ("odpo", [GOOD], "no row can be seen as pairs"),
    ],
)
def test_each_loss_says_what_it_needs(loss: str, records: list[Record], told: str | None) -> None:
    why = refusal(settings(loss), records)
    assert why is None if told is None else why is not None and told in why


def test_equal_texts_of_different_grade_are_no_pair() -> None:
    both = Record((Message("user", "?"),), (Completion("same", rank=1), Completion("same", rank=2)))
    assert refusal(settings("dpo"), [both]) is not None


def test_a_mix_names_the_loss_that_refuses() -> None:
    why = refusal(settings("dpo", "odpo"), [PAIR])
    assert why is not None and why.startswith("odpo: it needs a score")


def test_no_more_is_read_than_is_needed() -> None:
    def records() -> Iterator[Record]:
        yield from (GOOD, PAIR)
        yield SCORED
        raise AssertionError("read on")

    assert refusal(settings("dpo"), records()) is None
