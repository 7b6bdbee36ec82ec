"""What a loss is given of a micro-batch: which completions, with which weights, and why some data cannot be used."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.data.encode import Encoded
from training.losses.base import Logps, PairLogps, RankedLogps, RatedLogps
from training.losses.dpo import DPO
from training.losses.kto import KTO
from training.losses.listwise import Listwise
from training.losses.odpo import ODPO
from training.losses.rrhf import RRHF
from training.terms import Flat, Pairs, Rankings, Ratings, View, preferred, view_of, why_not

NAN = float("nan")


def row(grades: Sequence[float], kind: str = "score", weight: float = 1.0, name: str = "r") -> Encoded:
    completions = tuple((3,) * (i + 1) for i in range(len(grades)))
    return Encoded(name, (1, 2), completions, weight, grades=tuple(grades), kind=kind)


# Two rows: grades 2 0 1 of weight 3, a row that says nothing, and ranks 1 2 of weight 1/2.
ROWS = [row([2.0, 0.0, 1.0], weight=3.0), row([4.0, 4.0], weight=7.0), row([-1.0, -2.0], "rank", 0.5)]


def flat(rows: Sequence[Encoded], reference: bool = True) -> Flat:
    """The completion at flat place p has the total -p and the reference -10 p."""
    count = sum(len(one.completions) for one in rows)
    place = torch.arange(float(count))
    lengths = torch.tensor([float(len(ids)) for one in rows for ids in one.completions])
    return Flat(Logps(-place, lengths), -10 * place if reference else None, torch.tensor(0.25))


class Told:
    """A loss that keeps what it is given and returns zeros."""

    def __call__(self, policy: Any, reference: Any) -> Tensor:
        self.policy, self.reference = policy, reference
        one = policy.chosen if isinstance(policy, PairLogps) else policy.completions
        return torch.zeros(len(one.total))


def test_pairs_of_a_micro_batch() -> None:
    told = Told()
    losses, weight = Pairs().losses(told, ROWS, flat(ROWS))
    # row 0 (places 0 1 2): 0 > 2 > 1, so (0, 2), (0, 1), (2, 1) of weight 1 each; row 2 (places 5 6): (5, 6)
    assert told.policy.chosen.total.tolist() == [0, 0, -2, -5]
    assert told.policy.rejected.total.tolist() == [-2, -1, -1, -6]
    assert told.reference.rejected.total.tolist() == [-20, -10, -10, -60]
    assert told.policy.chosen.length.tolist() == [1, 1, 3, 1] == told.reference.chosen.length.tolist()
    assert told.policy.rejected.length.tolist() == [3, 2, 2, 2]
    assert told.policy.gap.tolist()[:3] == [1.0, 2.0, 1.0] and math.isnan(told.policy.gap[3])  # ranks have no distance
    assert weight.tolist() == [1.0, 1.0, 1.0, 0.5] and losses.shape == (4,)


def test_ratings_of_a_micro_batch() -> None:
    told = Told()
    _, weight = Ratings(None).losses(told, ROWS, flat(ROWS))
    # row 0: 2 is above the middle 1, 0 below, 1 on it; row 1 says nothing; ranks 1 and 2
    assert told.policy.completions.total.tolist() == [0, -1, -5, -6]
    assert told.policy.desirable.tolist() == [True, False, True, False] == told.reference.desirable.tolist()
    assert told.reference.completions.total.tolist() == [0, -10, -50, -60]
    assert float(told.policy.baseline) == 0.25 and weight.tolist() == [3.0, 3.0, 0.5, 0.5]
    _, weight = Ratings(4.0).losses(told, ROWS, flat(ROWS))
    assert told.policy.desirable.tolist() == [False, False, False, True, True, True, False]
    assert weight.tolist() == [3.0] * 3 + [7.0] * 2 + [0.5] * 2


def test_rankings_of_a_micro_batch() -> None:
    told = Told()
    _, weight = Rankings().losses(told, ROWS, flat(ROWS))
    assert told.policy.grade.tolist() == [[2.0, 0.0, 1.0], [1.0, 0.0, -math.inf]]
    assert told.policy.completions.total.tolist() == [[0.0, -1.0, -2.0], [-5.0, -6.0, 0.0]]
    assert told.policy.completions.length.tolist() == [[1.0, 2.0, 3.0], [1.0, 2.0, 1.0]]
    assert told.reference.completions.total.tolist() == [[0.0, -10.0, -20.0], [-50.0, -60.0, 0.0]]
    assert weight.tolist() == [3.0, 0.5]


def test_grades_that_float32_would_tie_keep_their_order() -> None:
    told = Told()
    close = row([1.0, 1.0 + 1e-12, 1.0])
    Rankings().losses(told, [close], flat([close]))
    assert told.policy.grade.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("view", [Pairs(), Ratings(None), Rankings()])
def test_a_micro_batch_without_examples_gives_none(view: View) -> None:
    for rows in ([row([1.0, 1.0])], [row([1.0])], [row([], "")] * 0):
        for loss in (DPO(), KTO(), Listwise(), RRHF()):
            if loss.view != type(view).__name__.lower():
                continue
            losses, weight = view.losses(loss, rows, flat(rows, loss.needs_reference))
            assert losses.shape == weight.shape == (0,) and float((losses * weight).sum()) == 0
        assert [view.weight(one) for one in rows] == [0.0] * len(rows)


def test_losses_without_a_reference_get_none() -> None:
    for view in (Pairs(), Ratings(None), Rankings()):
        told = Told()
        view.losses(told, ROWS, flat(ROWS, reference=False))
        assert told.reference is None


GRADED = st.lists(
    st.tuples(
        st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0]), min_size=1, max_size=5),
        st.sampled_from(["score", "label", "rank"]),
        st.floats(0.01, 10),
    ),
    max_size=6,
)


@given(GRADED, st.none() | st.just(1.5))
def test_the_weights_of_a_row_are_what_it_says_that_it_weighs(
    graded: list[tuple[list[float], str, float]], border: float | None
) -> None:
    """By it a step is normalised: examples that weighed more or less would count wrongly."""
    rows = [
        row([float(g > 0) for g in grades] if kind == "label" else grades, kind, weight)
        for grades, kind, weight in graded
    ]
    for view in (Pairs(), Ratings(border), Rankings()):
        told = Told()
        _, weight = view.losses(told, rows, flat(rows)) if rows else (None, torch.zeros(0))
        assert float(weight.sum()) == pytest.approx(sum(view.weight(one) for one in rows), rel=1e-5)
        alone = [view.losses(Told(), [one], flat([one]))[1] for one in rows]
        assert torch.equal(torch.cat([*alone, torch.zeros(0)]), weight)
        if not isinstance(view, Ratings):
            assert all(view.weight(one) in (0.0, one.weight) for one in rows)
            for one in rows:
                liked = sum(w for _, w in view.preferred(one))
                assert liked == pytest.approx(view.weight(one))
        # A repeat that keeps processes in step weighs nothing.
        idle = [dataclasses.replace(one, weight=0.0) for one in rows]
        assert sum(view.weight(one) for one in idle) == 0
        assert all(w == 0 for _, w in preferred(view, idle))


def test_preferred_completions_are_the_chosen_ones() -> None:
    assert preferred(Pairs(), ROWS) == [(0, 1.0), (0, 1.0), (2, 1.0), (5, 0.5)]
    assert preferred(Ratings(None), ROWS) == [(0, 3.0), (5, 0.5)]
    tied = [row([1.0, 3.0, 3.0], weight=2.0)]
    assert preferred(Rankings(), [*ROWS, *tied]) == [(0, 3.0), (5, 0.5), (8, 1.0), (9, 1.0)]


def test_a_view_for_every_loss() -> None:
    assert isinstance(view_of(DPO(), None), Pairs) and isinstance(view_of(RRHF(), None), Rankings)
    ratings = view_of(KTO(), 0.75)
    assert isinstance(ratings, Ratings) and ratings.desirable_from == 0.75


def test_what_a_loss_reads_has_the_shape_that_it_says() -> None:
    for view, kind in ((Pairs(), PairLogps), (Ratings(None), RatedLogps), (Rankings(), RankedLogps)):
        told = Told()
        view.losses(told, ROWS, flat(ROWS))
        assert type(told.policy) is type(told.reference) is kind


# ------------------------------------------------------------------------------------------------ refusals


SCORED = row([1.0, 0.0], name="scored")
RANKED = row([-1.0, -2.0], "rank", name="ranked")
TIED = row([1.0, 1.0], name="tied")
LIKED = row([1.0], "label", name="liked")


@pytest.mark.parametrize(
    ("loss", "border", "rows", "why"),
    [
        (DPO(), None, [SCORED, LIKED], None),
        (DPO(), None, [RANKED], None),
        (DPO(), None, [row([1.0, 0.0], "label")], None),
        (KTO(), None, [LIKED], None),
        (KTO(), None, [RANKED], None),
        (KTO(), 0.5, [TIED], None),
        (ODPO(), None, [SCORED, LIKED, TIED], None),  # what makes no pair needs no score
        (Listwise(), None, [RANKED], None),
        (
            ODPO(),
            None,
            [SCORED, RANKED],
            "it needs a score for each completion, and record ranked has a rank; use dpo, or give data with 'score'",
        ),
        (ODPO(), None, [row([1.0, 0.0], "label", name="both")], "record both has a label"),
        (
            KTO(),
            None,
            [TIED, TIED],
            "no row can be seen as ratings: it takes a label, or a score or rank that differs from the others of its "
            "prompt (or 'desirable_from'); found 2 row(s) with score",
        ),
        (
            DPO(),
            None,
            [LIKED, TIED, LIKED],
            "no row can be seen as pairs: it takes two completions of one prompt with different grades; found 3 row(s) "
            "with label, score",
        ),
        (RRHF(), None, [LIKED], "no row can be seen as rankings: it takes completions of one prompt with different"),
        (DPO(), None, [row([], "")], "found 1 row(s) with no grades"),
        (DPO(), None, [], "found 0 row(s) with no rows"),
    ],
)
def test_data_that_a_loss_cannot_use_are_refused_with_the_reason(
    loss: Any, border: float | None, rows: list[Encoded], why: str | None
) -> None:
    found = why_not(loss, view_of(loss, border), rows)
    assert (found is None) == (why is None) and (why is None or why in str(found))
