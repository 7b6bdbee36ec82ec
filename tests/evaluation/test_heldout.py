"""Scores of held-out preferences: pairs, single rated completions, and both."""

import random

import pytest

from evaluation.heldout import judge


def pair(record: str, chosen: float, rejected: float) -> dict[str, object]:
    return {"record": record, "chosen": chosen, "rejected": rejected, "chosen_length": 4, "rejected_length": 2}


def rated(record: str, nats: float, length: int, desirable: bool) -> dict[str, object]:
    return {"record": record, "nats": nats, "length": length, "desirable": desirable}


def values(rows: list[dict[str, object]]) -> dict[str, float]:
    return {score.metric: score.value for score in judge(rows)[0]}


def test_pairs() -> None:
    found = values([pair("a", -2.0, -5.0), pair("a", -3.0, -3.0), pair("b", -8.0, -1.0)])
    assert found == {
        "preference_accuracy": pytest.approx(1.5 / 3),
        "chosen_logps": pytest.approx((-0.5 - 0.75 - 2.0) / 3),
        "margin": pytest.approx((3.0 + 0.0 - 7.0) / 3),
    }


def test_two_pairs_of_a_record_are_two_items() -> None:
    _, items = judge([pair("a", -2.0, -5.0), pair("a", -3.0, -3.0)])
    assert [item.item for item in items["holdout/margin"]] == ["a#1", "a#2"]


def test_rated_completions_have_the_area_under_the_curve() -> None:
    # Per token: desirable -1, -3; undesirable -2, -3. Placements: 1 and 1/4 (below none, one tie of two).
    rows = [
        rated("a", -2.0, 2, True),
        rated("b", -9.0, 3, True),
        rated("c", -2.0, 1, False),
        rated("d", -6.0, 2, False),
    ]
    assert values(rows) == {"chosen_logps": pytest.approx(-2.0), "desirable_auc": pytest.approx((1 + 0.25) / 2)}
    _, items = judge(rows)
    assert [(item.item, item.value) for item in items["holdout/desirable_auc"]] == [("a#1", 1.0), ("b#1", 0.25)]


def test_the_area_is_that_of_every_desirable_against_every_undesirable_one() -> None:
    draw = random.Random(3)
    rows = [rated(str(i), -draw.randint(1, 12), draw.randint(1, 3), draw.random() < 0.4) for i in range(200)]
    good, bad = (
        [r["nats"] / r["length"] for r in rows if r["desirable"] is side]  # type: ignore[operator]
        for side in (True, False)
    )
    every = [(a > b) + 0.5 * (a == b) for a in good for b in bad]
    assert values(rows)["desirable_auc"] == pytest.approx(sum(every) / len(every))


def test_one_label_only_has_no_area() -> None:
    assert values([rated("a", -2.0, 2, True)]) == {"chosen_logps": pytest.approx(-1.0)}
    assert values([rated("a", -2.0, 2, False)]) == {}


def test_pairs_and_ratings_together() -> None:
    found = values([pair("a", -4.0, -5.0), rated("b", -6.0, 2, True), rated("c", -9.0, 2, False)])
    assert found["chosen_logps"] == pytest.approx((-1.0 - 3.0) / 2)
    assert found["desirable_auc"] == 1.0 and found["preference_accuracy"] == 1.0
