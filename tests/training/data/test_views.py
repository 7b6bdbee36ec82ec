"""What a graded row says as pairs, ratings and a ranking: the definitions once more, naively, over random rows."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.encode import Encoded
from training.data.views import pairs, ranking, ratings

# Few values, so that there are ties; and any finite number at all.
SCORES = st.lists(
    st.sampled_from([-1.5, 0.0, 0.1, 0.15, 0.2, 1.0, 3.0]) | st.floats(allow_nan=False, allow_infinity=False),
    max_size=7,
)
RANKS = st.lists(st.integers(1, 5).map(lambda rank: -float(rank)), max_size=7)
LABELS = st.lists(st.booleans().map(float), max_size=7)


def row(grades: list[float], kind: str = "score", weight: float = 1.0) -> Encoded:
    completions = tuple((3, i + 4) for i in range(max(1, len(grades))))
    return Encoded("r", (1, 2), completions, weight, grades=tuple(grades), kind=kind)


@given(SCORES | RANKS | LABELS)
def test_pairs_are_all_strict_orders_and_nothing_else(grades: list[float]) -> None:
    found = pairs(row(grades))
    assert sorted(found) == [(i, j) for i, a in enumerate(grades) for j, b in enumerate(grades) if a > b]
    # best chosen first, of equal ones the first; then the best rejected
    assert found == sorted(found, key=lambda pair: (-grades[pair[0]], pair[0], -grades[pair[1]], pair[1]))
    assert bool(found) == (len(set(grades)) > 1) == bool(ranking(row(grades)))


def test_pairs_of_five_with_a_tie() -> None:
    # 2 1 1 0 and a second 2: the two best beat three each, the middle two one each.
    assert pairs(row([2, 1, 1, 0, 2])) == [(0, 1), (0, 2), (0, 3), (4, 1), (4, 2), (4, 3), (1, 3), (2, 3)]


@given(SCORES | RANKS | LABELS)
def test_a_ranking_is_all_of_a_row_or_nothing(grades: list[float]) -> None:
    assert ranking(row(grades)) == (list(range(len(grades))) if len(set(grades)) > 1 else [])


@given(LABELS, st.none() | st.floats(-2, 2))
def test_labels_rate_themselves_whatever_the_border(grades: list[float], border: float | None) -> None:
    assert ratings(row(grades, "label"), border) == [(i, grade == 1) for i, grade in enumerate(grades)]


@given(SCORES, st.sampled_from([-1.5, 0.15, 2.0, 1e300]))
def test_a_border_rates_every_score(grades: list[float], border: float) -> None:
    found = ratings(row(grades), border)
    assert found == [(i, grade >= border) for i, grade in enumerate(grades)]


@given(SCORES.map(lambda s: (s, "score")) | RANKS.map(lambda r: (r, "rank")), st.none() | st.just(0.0))
def test_relative_ratings_lie_above_and_below_the_middle_of_what_is_written(
    graded: tuple[list[float], str], border: float | None
) -> None:
    grades, kind = graded
    if kind == "score":
        border = None
    import decimal

    with decimal.localcontext() as context:
        context.prec = 800  # enough for 1e308 + 5e-324
        written = [Decimal(repr(grade)) for grade in grades]
        expected = []
        for i, grade in enumerate(written):
            doubled = max(written) + min(written)
            if 2 * grade != doubled:
                expected.append((i, 2 * grade > doubled))
    found = ratings(row(grades, kind), border)
    assert found == expected
    if len(set(written)) > 1:  # the best is desirable and the worst is not, however close they are
        assert dict(found)[written.index(max(written))] and not dict(found)[written.index(min(written))]
    else:
        assert found == []


@pytest.mark.parametrize(
    ("grades", "kind", "expected"),
    [
        ([1.0, 2.0, 3.0], "score", [(0, False), (2, True)]),  # 2 is the middle
        ([0.1, 0.15, 0.2], "score", [(0, False), (2, True)]),  # in floats 0.1 / 2 + 0.2 / 2 is not 0.15
        ([1.0, 1.0 + 2**-52], "score", [(0, False), (1, True)]),  # neighbours, whose mean is one of them in floats
        ([1.7e308, -1.7e308, 1e308], "score", [(0, True), (1, False), (2, True)]),  # the difference overflows
        ([-1.0, -2.0], "rank", [(0, True), (1, False)]),
        ([-1.0, -2.0, -3.0, -9.0], "rank", [(0, True), (1, True), (2, True), (3, False)]),  # the middle is 5
        ([5.0, 5.0], "score", []),
        ([5.0], "score", []),
        ([], "", []),
        ([1.0], "label", [(0, True)]),
    ],
)
def test_ratings_by_hand(grades: list[float], kind: str, expected: list[tuple[int, bool]]) -> None:
    assert ratings(row(grades, kind), None) == expected


def test_the_border_is_for_scores_alone() -> None:
    assert ratings(row([5.0, 5.0, 1.0], "score"), 5.0) == [(0, True), (1, True), (2, False)]
    assert ratings(row([5.0], "score"), 6.0) == [(0, False)]
    assert ratings(row([-1.0, -2.0], "rank"), 0.0) == [(0, True), (1, False)]  # ranks are negated, and stay relative
    assert ratings(row([0.0, 1.0], "label"), 99.0) == [(0, False), (1, True)]
