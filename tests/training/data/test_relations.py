"""Relations over the whole set against the same in plain Python dictionaries."""

import random
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from tests.training.data.facts.made import batch, example, pair, scored
from training.data.facts.keys import Edges, Keys, edges
from training.data.records import Record, ordered
from training.data.relations import Prompts, contradictions, in_split, occurrences, prompts_in_holdout
from training.data.split import in_holdout


def test_occurrences_count_up_in_stored_order() -> None:
    hi = np.array([5, 7, 5, 5, 0, 7], "uint64")
    # Worked by hand: 5 stands at 0, 2 and 3, of which 3 differs in its lower half.
    lo = np.array([1, 1, 1, 2, 0, 1], "uint64")
    assert occurrences(hi, lo).tolist() == [1, 1, 2, 1, 1, 2]
    assert occurrences(hi[:0], lo[:0]).tolist() == []


@pytest.mark.parametrize("keys", [3, 50, 10_000])
def test_occurrences_are_those_of_a_dictionary(keys: int) -> None:
    rng = np.random.default_rng(keys)
    hi, lo = rng.integers(0, keys, 4000, "uint64"), rng.integers(0, 2, 4000, "uint64")
    seen: dict[tuple[int, int], int] = {}
    expected = []
    for key in zip(hi.tolist(), lo.tolist(), strict=True):
        seen[key] = seen.get(key, 0) + 1
        expected.append(seen[key])
    assert occurrences(hi, lo).tolist() == expected


def naive(records: Sequence[Record | None]) -> list[int]:
    """How many preferences of each record another one has the other way round."""
    says = [
        set() if r is None else {(r.prompt, b.text.strip(), w.text.strip()) for b, w in ordered(r)} for r in records
    ]
    says = [{edge for edge in mine if edge[1] != edge[2]} for mine in says]
    return [
        sum(any((p, w, b) in other for j, other in enumerate(says) if j != i) for p, b, w in mine)
        for i, mine in enumerate(says)
    ]


def test_both_sides_of_a_contradiction_are_told() -> None:
    rows = [scored("q", a=3, b=2, c=1), pair("q", "c", "a "), pair("q", "b", "c"), pair("p", "c", "a"), None]
    assert contradictions(5, edges(batch(rows))).tolist() == [1, 1, 0, 0, 0] == naive(rows)


def test_a_row_does_not_contradict_itself() -> None:
    from training.data.records import Completion, Message

    own = Record((Message("user", "q"),), tuple(Completion(t, score=s) for t, s in (("a", 2), ("b", 1), ("a", 0))))
    assert contradictions(1, edges(batch([own]))).tolist() == [0]
    assert contradictions(2, edges(batch([own, own]))).tolist() == [2, 2] == naive([own, own])
    assert contradictions(2, edges(batch([own, pair("q", "b", "a")]))).tolist() == naive([own, pair("q", "b", "a")])
    assert contradictions(3, edges(batch([]))).tolist() == [0, 0, 0]


def test_contradictions_are_those_of_all_pairs_compared() -> None:
    rng = random.Random(3)
    rows: list[Record | None] = []
    for _ in range(300):
        names = rng.sample("abcdef", rng.randint(2, 5))
        rows.append(scored(f"q{rng.randrange(25)}", **{name: rng.choice([0, 1, 2, None]) for name in names}))
    rows[7] = None
    expected = naive(rows)
    assert 50 < sum(map(bool, expected)) < 290
    assert contradictions(300, edges(batch(rows))).tolist() == expected
    # And whatever the segments: rows are numbered on from one to the next.
    first, second = edges(batch(rows[:120])), edges(batch(rows[120:]))
    joined = Edges(
        np.concatenate([first.row, second.row + 120]),
        *(
            np.concatenate([getattr(first, n), getattr(second, n)])
            for n in ("edge_hi", "edge_lo", "reverse_hi", "reverse_lo")
        ),
    )
    assert contradictions(300, joined).tolist() == expected


def prompts(records: Sequence[Record | None], part: str = "preferences") -> Prompts:
    made = Keys()(batch(records, part))
    return Prompts(made["prompt_hi"], made["prompt_lo"], np.array([r is not None for r in records]))


@pytest.mark.parametrize("share", [1e-9, 0.1, 0.25, 1 / 3, 0.5, 0.999999, 1 - 2**-53])
def test_the_split_is_that_of_the_records(share: float) -> None:
    records = [pair(f"q{i}", "a", "b") for i in range(400)]
    assert in_split(prompts(records), "preferences", share).tolist() == [in_holdout(r.prompt, share) for r in records]


def test_the_border_of_the_split_is_exact() -> None:
    share = float(Fraction(3, 2**64) * 2**10)  # 3072 of 2^64: exact in a float
    hi = np.array([3070, 3071, 3072, 3073, 0, 2**64 - 1], "uint64")
    rows = Prompts(hi, hi, np.ones(6, bool))
    assert in_split(rows, "preferences", share).tolist() == [True, True, False, False, True, False]
    assert in_split(rows, "preferences", None).tolist() == [False] * 6
    assert in_split(rows, "sft", share).tolist() == [False] * 6
    assert in_split(Prompts(hi, hi, hi < 3072), "holdout", None).tolist() == [True, True, False, False, True, False]


def test_a_training_row_with_a_held_out_prompt_is_told_in_every_part() -> None:
    parts = {
        "preferences": prompts([pair("held", "a", "b"), pair("free", "a", "b"), None]),
        "sft": prompts([example("free", "a"), example("held too", "b"), example("held", "b")], "sft"),
        "holdout": prompts([pair("held", "x", "y"), None, pair("held too", "x", "y")], "holdout"),
    }
    found = prompts_in_holdout(parts, None)
    nan = pytest.approx(float("nan"), nan_ok=True)
    assert found["preferences"].tolist() == [1, 0, nan]
    assert found["sft"].tolist() == [0, 1, 1]
    assert found["holdout"].tolist() == [nan, nan, nan]


def test_held_out_by_share() -> None:
    records = [pair(f"q{i}", "a", "b") for i in range(100)]
    sft = [example(f"q{i}", "a") for i in range(120)]
    found = prompts_in_holdout({"preferences": prompts(records), "sft": prompts(sft, "sft")}, 0.3)
    held = [in_holdout(r.prompt, 0.3) for r in records]
    assert [np.isnan(value) for value in found["preferences"]] == held
    assert np.nansum(found["preferences"]) == 0
    assert found["sft"].tolist() == [*map(float, held), *[0.0] * 20]
    assert 10 < sum(held) < 60


def test_prompts_that_share_half_their_digest_are_told_apart() -> None:
    hi, lo = np.array([4, 4, 4, 9], "uint64"), np.array([1, 2, 3, 1], "uint64")
    every = np.ones(4, bool)
    held = Prompts(hi[1:3], lo[1:3], every[:2])
    found = prompts_in_holdout({"preferences": Prompts(hi, lo, every), "holdout": held}, None)
    assert found["preferences"].tolist() == [0, 1, 1, 0]
