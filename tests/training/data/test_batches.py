"""Which rows a step sees: a pure function of the seed; and micro-batches that lose nothing, in any number of processes."""

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.naive import together
from training.data.batches import epoch_order, micro_batches, plan, set_aside, share_out
from training.data.encode import Encoded
from training.packing import pack, pad
from training.processes import World

Shape = tuple[int, int, int]
LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3)), max_size=30)


def row(number: int, prompt: int, completion: int, branches: int) -> Encoded:
    """Its weight is its number (from 1), so that sums tell which rows are there."""
    completions = tuple((6,) * (completion - k or 1) for k in range(branches))
    return Encoded(f"r{number}", (5,) * prompt, completions, weight=1.0 + number)


def rows_of(lengths: Sequence[Shape]) -> list[Encoded]:
    return [row(i, *shape) for i, shape in enumerate(lengths)]


def shared(row: Encoded, longest: Encoded) -> int:
    return row.unique


def packed(row: Encoded, longest: Encoded) -> int:
    return row.repeated


def padded(row: Encoded, longest: Encoded) -> int:
    return len(row.completions) * longest.longest


COSTS = {"shared": shared, "packed": packed, "padded": padded}


# ------------------------------------------------------------------------------------------------ order


def test_the_order_is_the_one_that_is_written_down_here() -> None:
    # Whoever changes the order changes every run: rows sorted by SHA-256("alignmill order 0 0" || index, 8 bytes).
    key = {i: hashlib.sha256(b"alignmill order 0 0" + i.to_bytes(8, "big")).hexdigest() for i in range(6)}
    assert epoch_order(0, 0, 6) == tuple(sorted(range(6), key=key.__getitem__))


PINNED = {
    (0, 100, 8, 40): "fbb62f8c",
    (7, 33, 5, 100): "5c80b6f2",
    (2**40, 1000, 64, 20): "84c5e6d1",
}


@pytest.mark.parametrize("given, digest", PINNED.items(), ids=map(str, PINNED))
def test_the_steps_of_a_run_are_pinned(given: tuple[int, int, int, int], digest: str) -> None:
    """Several epochs of several sizes; on every machine, in every version."""
    seed, rows, batch, steps = given
    order = plan(seed, rows, batch, steps=steps, epochs=None)
    text = ";".join(",".join(map(str, order.indices(step))) for step in range(order.steps))
    assert hashlib.sha256(text.encode()).hexdigest()[:8] == digest


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


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 12), st.integers(0, 11))
def test_a_step_does_not_depend_on_the_steps_before_it(rows: int, batch: int, steps: int, step: int) -> None:
    order = plan(1, rows, batch, steps=steps, epochs=None)
    alone = order.indices(min(step, steps - 1))
    for other in range(steps):
        order.indices(other)
    assert plan(1, rows, batch, steps=steps + 5, epochs=None).indices(min(step, steps - 1)) == alone


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


# ------------------------------------------------------------------------------------------------ micro-batches


@pytest.mark.parametrize("cost", COSTS)
@given(lengths=LENGTHS, budget=st.integers(64, 300))
def test_micro_batches_stay_within_the_budget_and_lose_nothing(cost: str, lengths: list[Shape], budget: int) -> None:
    """What is counted is what the layout computes."""
    rows = rows_of(lengths)
    cut = micro_batches(rows, budget, COSTS[cost])
    assert Counter(id(r) for micro in cut for r in micro) == Counter(map(id, rows))
    for micro in cut:
        batch = pad(micro, "cpu") if cost == "padded" else pack(micro, "cpu", cost == "shared")
        assert batch.tokens <= budget or len(micro) == 1


@pytest.mark.parametrize("cost", COSTS)
@given(lengths=LENGTHS, budget=st.integers(64, 300))
def test_no_two_neighbours_would_fit_into_one(cost: str, lengths: list[Shape], budget: int) -> None:
    cut = micro_batches(rows_of(lengths), budget, COSTS[cost])
    for micro, following in itertools.pairwise(cut):
        joined = sum(COSTS[cost](row, micro[0]) for row in [*micro, following[0]])
        assert joined > budget


@given(LENGTHS, st.randoms(use_true_random=False))
def test_micro_batches_do_not_depend_on_the_order_of_rows(lengths: list[Shape], random: object) -> None:
    rows = rows_of(lengths)
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert micro_batches(shuffled, 128, shared) == micro_batches(rows, 128, shared)


def test_rows_of_similar_length_stand_together() -> None:
    # Longest rows: 30, 29, 4, 3, 2 tokens of one branch; budget 64: 2 * 30 = 60 fits, 3 * 30 does not; 3 * 4 fits.
    rows = [row(i, length, 1, 1) for i, length in enumerate((3, 30, 2, 29, 4))]
    assert [[r.longest for r in micro] for micro in micro_batches(rows, 64, padded)] == [[30, 29], [4, 3, 2]]
    # packed they cost 30 + 29 + 4 = 63; 3 more would be 66
    assert [[r.longest for r in micro] for micro in micro_batches(rows, 64, shared)] == [[30, 29, 4], [3, 2]]


def test_a_row_beyond_the_budget_stands_alone_and_nothing_is_cut_to_nothing() -> None:
    rows = [row(0, 500, 3, 1), row(1, 2, 2, 1)]
    assert [[r.record_id for r in micro] for micro in micro_batches(rows, 64, shared)] == [["r0"], ["r1"]]
    assert micro_batches([], 64, shared) == []


def test_a_row_that_comes_twice_in_a_step_is_there_twice() -> None:
    twice = row(0, 3, 4, 2)
    (micro,) = micro_batches([twice, row(1, 2, 2, 1), twice], 999, shared)
    assert [r.record_id for r in micro] == ["r0", "r0", "r1"]


# ------------------------------------------------------------------------------------------------ processes


@given(LENGTHS, st.integers(64, 300), st.integers(1, 9))
def test_every_process_gets_the_same_number_and_every_row_counts_once(
    lengths: list[Shape], budget: int, processes: int
) -> None:
    rows = rows_of(lengths)
    cut = micro_batches(rows, budget, shared)
    before = [list(micro) for micro in cut]
    shares = share_out(cut, processes)
    assert cut == before  # what was given is left alone
    assert len(shares) == processes and len({len(share) for share in shares}) == 1
    given = [r for share in shares for micro in share for r in micro]
    assert all(micro for share in shares for micro in share)
    assert Counter(id(r) for r in given if r.weight) == Counter(map(id, rows))
    idle = [r for r in given if not r.weight]
    assert len(idle) < processes and all(dataclasses.replace(r, weight=0.0) in idle for r in idle)
    names = {r.record_id: r for r in rows}
    for r in idle:  # a repeat is a row of the step
        assert dataclasses.replace(names[r.record_id], weight=0.0) == r
    for share in shares:
        for micro in share:
            assert sum(r.unique for r in micro) <= budget or len(micro) == 1
            assert len({bool(r.weight) for r in micro}) == 1


@given(LENGTHS, st.integers(64, 300))
def test_with_one_process_it_is_the_list_itself(lengths: list[Shape], budget: int) -> None:
    cut = micro_batches(rows_of(lengths), budget, shared)
    assert share_out(cut, 1) == [cut]


@given(LENGTHS, st.integers(2, 9))
def test_nobody_repeats_while_somebody_has_two_rows(lengths: list[Shape], processes: int) -> None:
    shares = share_out(micro_batches(rows_of(lengths), 128, shared), processes)
    sizes = [len(micro) for share in shares for micro in share]
    idle = sum(not micro[0].weight for share in shares for micro in share)
    assert not idle or max(sizes) == 1


def test_equal_rows_are_told_apart() -> None:
    """Two visits of one row, and two rows of the same content, in micro-batches that compare equal."""
    twice = row(0, 3, 4, 2)
    again = dataclasses.replace(twice)
    cut = [[twice, again], [twice, again], [again, twice]]
    given = Counter(id(r) for share in share_out(cut, 4) for micro in share for r in micro if r.weight)
    assert given == {id(twice): 3, id(again): 3}


def test_a_step_without_rows_has_no_part_for_anyone() -> None:
    assert share_out([], 3) == [[], [], []] and share_out([], 1) == [[]]


def test_neighbours_in_time_are_of_one_size() -> None:
    """Processes work in step: while one computes a large micro-batch the others do not wait with a small one."""
    cut = [[row(i, size, 1, 1)] for i, size in enumerate((9, 50, 10, 49, 30, 31))]
    shares = share_out(cut, 2)
    assert [[micro[0].unique for micro in share] for share in shares] == [[50, 31, 10], [49, 30, 9]]


def test_threads_that_stand_for_processes_see_their_own_share() -> None:
    rows = rows_of([(9, 4, 2), (5, 3, 1), (20, 10, 3), (1, 1, 1)])

    def weight(world: World) -> float:
        mine = share_out(micro_batches(rows, 64, shared), world.size)[world.rank]
        return world.sum({"weight": sum(r.weight for micro in mine for r in micro)})["weight"]

    assert together(3, weight) == [10.0] * 3


# ------------------------------------------------------------------------------------------------ set aside


@given(LENGTHS, st.floats(0, 1), st.randoms(use_true_random=False))
def test_who_is_set_aside_depends_on_the_prompt_alone(lengths: list[Shape], share: float, random: object) -> None:
    rows = rows_of(lengths)
    kept, judged = set_aside(rows, share)
    assert sorted(map(id, [*kept, *judged])) == sorted(map(id, rows))
    assert not {r.prompt for r in kept} & {r.prompt for r in judged}  # equal prompts stay together
    assert kept == [r for r in rows if r in kept] and judged == [r for r in rows if r in judged]  # in order
    for r in rows:
        other = dataclasses.replace(r, completions=((9,),), weight=5.0, record_id="x")
        assert bool(set_aside([other], share)[1]) == (r in judged)
    _, more = set_aside(rows, min(1.0, share + 0.1))
    assert all(r in more for r in judged)  # a larger share is a larger set, not another one


def test_about_the_share_is_set_aside_and_nothing_or_all_at_the_ends() -> None:
    rows = [Encoded(f"r{i}", (i, i + 1), ((2,),)) for i in range(2000)]
    assert set_aside(rows, 0.0) == (rows, []) and set_aside(rows, 1.0) == ([], rows)
    _, judged = set_aside(rows, 0.1)
    assert abs(len(judged) - 200) < 4 * (2000 * 0.09) ** 0.5
    assert hashlib.sha256(",".join(r.record_id for r in judged).encode()).hexdigest()[:8] == "bcc485dc"
