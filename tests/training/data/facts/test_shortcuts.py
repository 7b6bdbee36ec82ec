"""Facts of shortcuts, worked by hand."""

import math
from typing import Any

import numpy as np
import pytest

from tests.training.data.facts.made import batch, example, pair, scored, sliced
from training.data.facts.shortcuts import Shortcuts
from training.data.facts.words import words
from training.data.records import Completion, Message, Record


def made(*records: Record | None, part: str = "preferences") -> list[dict[str, Any]]:
    facts = Shortcuts()(batch(records, part))
    assert tuple(facts) == Shortcuts().columns
    return [{name: values[row].item() for name, values in facts.items()} for row in range(len(records))]


def first(word: str) -> int:
    return int(words([word]).hashes[0])


def answers(*completions: Completion) -> Record:
    return Record((Message("system", "s t"), Message("user", "q")), completions)


@pytest.mark.parametrize(("chosen", "rejected", "longer"), [("abc", "ab", 1), ("a", "ab", 0), ("ab", "cd", math.nan)])
def test_longer_is_by_characters(chosen: str, rejected: str, longer: float) -> None:
    assert made(pair("q", chosen, rejected))[0]["chosen_longer"] == pytest.approx(longer, nan_ok=True)


def test_the_best_is_compared_with_the_worst() -> None:
    row = answers(
        Completion("middle", score=0.5, model="m"),
        Completion("Worst of all", score=-1, model="w"),
        Completion("Best", score=2, model="b"),
        Completion("best again", score=2, model="c"),
    )
    (facts,) = made(row)
    assert facts["chosen_longer"] == 0
    assert (facts["chosen_first"], facts["rejected_first"]) == (first("best"), first("worst"))
    assert (facts["chosen_grade"], facts["rejected_grade"]) == (2, -1)
    models = made(answers(Completion("x", rank=1, model="b"), Completion("y", rank=2, model="w")))[0]
    assert (facts["chosen_model"], facts["rejected_model"]) == (models["chosen_model"], models["rejected_model"])
    assert len({facts["chosen_model"], facts["rejected_model"], 0}) == 3


def test_what_says_nothing_is_null() -> None:
    none = {"chosen_longer": math.nan, "chosen_grade": math.nan, "rejected_grade": math.nan}
    none |= dict.fromkeys(("chosen_model", "rejected_model", "chosen_first", "rejected_first"), 0)
    for row in (None, scored("q", a=1, b=1), scored("q", a=None, b=None), scored("q", a=1), example("q", "a")):
        facts = made(row)[0]
        assert all(facts[name] == pytest.approx(value, nan_ok=True) for name, value in none.items())
    facts = made(pair("q", "…", "no"))[0]
    assert (facts["chosen_first"], facts["rejected_first"], facts["chosen_longer"]) == (0, first("no"), 0)
    assert facts["chosen_model"] == 0


def test_one_labelled_completion_is_chosen_or_rejected() -> None:
    good, bad = made(answers(Completion("yes x", label=True, model="m")), answers(Completion("no", label=False)))
    assert (good["chosen_first"], good["rejected_first"], good["chosen_grade"]) == (first("yes"), 0, 1)
    assert (bad["chosen_first"], bad["rejected_first"], bad["rejected_grade"]) == (0, first("no"), 0)
    assert good["chosen_model"] != 0 and good["rejected_model"] == 0
    assert math.isnan(good["chosen_longer"]) and math.isnan(good["rejected_grade"])


def test_batches_change_nothing() -> None:
    rows = [pair(f"q {i}", "a" * (i % 3), f"b{i}") if i % 4 else None for i in range(30)]
    whole, parts = Shortcuts()(batch(rows)), [Shortcuts()(part) for part in sliced(batch(rows), 7)]
    for name in whole:
        assert np.array_equal(
            whole[name], np.concatenate([part[name] for part in parts]), equal_nan=whole[name].dtype.kind == "f"
        )
