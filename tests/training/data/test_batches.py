"""Which rows a step sees: a pure function of the seed; and micro-batches that lose nothing."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.batches import epoch_order, micro_batches, plan
from training.data.encode import Encoded

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3)), max_size=30)


def row(number: int, prompt: int, completion: int, branches: int) -> Encoded:
    return Encoded(f"r{number}", (5,) * prompt, tuple((6,) * (completion - k or 1) for k in range(branches)))


def test_the_order_is_the_one_that_is_written_down_here() -> None:
    # Whoever changes the order changes every run: rows sorted by SHA-256("alignmill order 0 0" || index, 8 bytes).
    import hashlib

    key = {i: hashlib.sha256(b"alignmill order 0 0" + i.to_bytes(8, "big")).hexdigest() for i in range(6)}
    assert epoch_order(0, 0, 6) == tuple(sorted(range(6), key=key.__getitem__))


@given(st.integers(0, 2**40), st.integers(0, 9), st.integers(1, 60))
def test_every_epoch_is_a_permutation_and_the_same_every_time(seed: int, epoch: int, rows: int) -> None:
    order = epoch_order(seed, epoch, rows)
    assert sorted(order) == list(range(rows))
    epoch_order.cache_clear()
    assert epoch_order(seed, epoch, rows) == order


def test_seeds_and_epochs_give_different_orders() -> None:
    assert len({epoch_order(seed, epoch, 20) for seed in range(4) for epoch in range(4)}) == 16


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 12))
def test_every_step_has_the_same_number_of_rows(rows: int, batch: int, steps: int) -> None:
    order = plan(1, rows, batch, steps=steps, epochs=None)
    assert order.steps == steps
    assert all(len(order.indices(step)) == batch for step in range(steps))


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 3))
def test_whole_epochs_visit_every_row_equally_often(rows: int, batch: int, epochs: int) -> None:
    order = plan(1, rows, batch, steps=None, epochs=float(epochs))
    visits = Counter(index for step in range(order.steps) for index in order.indices(step))
    assert visits == {index: epochs for index in range(rows)}


def test_the_rest_of_an_epoch_joins_the_start_of_the_next() -> None:
    # 5 rows in batches of 3: positions 0 1 2 | 3 4 and 0 of the second epoch | …
    order = plan(9, 5, 3, steps=2, epochs=None)
    first, second = epoch_order(9, 0, 5), epoch_order(9, 1, 5)
    assert order.indices(0) == list(first[:3]) and order.indices(1) == [*first[3:], second[0]]


@pytest.mark.parametrize("epochs, total, steps", [(1.0, 10, 3), (0.5, 5, 2), (2.5, 25, 7), (0.01, 1, 1)])
def test_epochs_are_turned_into_visits(epochs: float, total: int, steps: int) -> None:
    # 10 rows, 4 a step: 10 visits are 3 steps of which the last is short (2 rows).
    order = plan(0, 10, 4, steps=None, epochs=epochs)
    assert (order.total, order.steps) == (total, steps)
    assert sum(len(order.indices(step)) for step in range(steps)) == total


@given(LENGTHS, st.integers(64, 300))
def test_micro_batches_stay_within_the_budget_and_lose_nothing(
    lengths: list[tuple[int, int, int]], budget: int
) -> None:
    rows = [row(i, *shape) for i, shape in enumerate(lengths)]
    packed = micro_batches(rows, budget)
    assert Counter(id(r) for micro in packed for r in micro) == Counter(map(id, rows))
    for micro in packed:
        padded = sum(len(r.completions) for r in micro) * max(r.longest for r in micro)
        assert padded <= budget or len(micro) == 1


@given(LENGTHS, st.randoms(use_true_random=False))
def test_micro_batches_do_not_depend_on_the_order_of_rows(lengths: list[tuple[int, int, int]], random: object) -> None:
    rows = [row(i, *shape) for i, shape in enumerate(lengths)]
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert micro_batches(shuffled, 128) == micro_batches(rows, 128)


def test_rows_of_similar_length_stand_together() -> None:
    # Longest rows: 30, 29, 4, 3, 2 tokens of one branch; budget 64: 2 * 30 = 60 fits, 3 * 30 does not; 3 * 4 fits.
    rows = [row(i, length - 1, 1, 1) for i, length in enumerate((3, 30, 2, 29, 4))]
    assert [[r.longest for r in micro] for micro in micro_batches(rows, 64)] == [[30, 29], [4, 3, 2]]
