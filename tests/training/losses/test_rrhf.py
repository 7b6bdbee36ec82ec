"""RRHF, arXiv 2304.05302, divided by the number of pairs."""

import math
from itertools import permutations

import pytest
import torch

from tests.training.losses.worked import (
    Ranking,
    assert_agrees,
    assert_finite_far_away,
    assert_slopes,
    draw_rankings,
    evaluated,
    filled,
    logps,
)
from training.losses.base import PairLogps, RankedLogps
from training.losses.rrhf import RRHF
from training.losses.simpo import SimPO

# Totals -4, -6, -3 over 4, 3, 1 tokens: p = -1, -2, -3.
P = ([-4.0, -6.0, -3.0], [0.0, 0.0, 0.0], [4.0, 3.0, 1.0])


@pytest.mark.parametrize(
    ("grades", "expected"),
    [
        # Three pairs (worse, better), max(0, p_worse - p_better):  (1, 3): -1 + 3 = 2;  (1, 2): -1 + 2 = 1;
        # (3, 2): -3 + 2 < 0 gives 0.  (2 + 1 + 0) / 3 = 1, and the NLL of the second one per token: 2.
        ([1.0, 3.0, 2.0], 3.0),
        # In order of p: no pair costs anything, and the NLL of the first is 1.
        ([3.0, 2.0, 1.0], 1.0),
        # The first two tie below the third: (1, 3): 2; (2, 3): 1; 3 / 2 pairs = 1.5, NLL 3. The tie adds no pair.
        ([1.0, 1.0, 2.0], 4.5),
        # Two are best: pairs (3, 1), (3, 2) cost nothing, and the NLL is the mean of 1 and 2.
        ([2.0, 2.0, 1.0], 1.5),
        # All tie: no pair, and the mean of 1, 2, 3.
        ([5.0, 5.0, 5.0], 2.0),
        # The third place is empty: (1, 2) costs -1 + 2 = 1, over one pair, NLL 2.
        ([1.0, 2.0, -math.inf], 3.0),
    ],
)
def test_rrhf_is_the_equation_worked_by_hand(grades: list[float], expected: float) -> None:
    policy, _ = filled([Ranking(*P, grades)])
    assert RRHF()(policy, None).tolist() == pytest.approx([expected])


def test_the_order_of_the_places_means_nothing() -> None:
    for grades in ([1.0, 3.0, 2.0], [2.0, 2.0, 1.0]):
        plain = RRHF()(filled([Ranking(*P, grades)])[0], None)
        for order in permutations(range(3)):
            moved = Ranking(*([values[i] for i in order] for values in (*P, grades)))
            assert RRHF()(filled([moved])[0], None).tolist() == pytest.approx(plain.tolist())


def test_two_completions_are_the_limit_of_an_ever_steeper_simpo_and_the_nll() -> None:
    # -ln sigmoid(t (p_w - p_l)) / t -> max(0, p_l - p_w)
    w, lose = ([-4.0, -6.0], [4.0, 2.0]), ([-6.0, -3.0], [3.0, 3.0])
    steep = SimPO(beta=1e6, gamma=0.0)(PairLogps(logps(*w), logps(*lose)), None) / 1e6
    nll = torch.tensor([1.0, 3.0], dtype=torch.float64)
    places = [
        Ranking([a, b], [0.0, 0.0], [n, m], [2.0, 1.0]) for a, b, n, m in zip(w[0], lose[0], w[1], lose[1], strict=True)
    ]
    assert RRHF()(filled(places)[0], None).tolist() == pytest.approx((steep + nll).tolist(), abs=1e-6)


def equation(one: Ranking) -> float:
    p = [total / length for total, length in zip(one.totals, one.lengths, strict=True)]
    ranks = range(len(p))
    costs = [max(0.0, p[i] - p[j]) for i in ranks for j in ranks if one.grades[i] < one.grades[j]]
    best = [p[i] for i in ranks if one.grades[i] == max(one.grades)]
    return sum(costs) / len(costs) - sum(best) / len(best)


def test_a_second_implementation_agrees() -> None:
    rankings = draw_rankings()
    assert_agrees(RRHF()(filled(rankings)[0], None), [equation(one) for one in rankings])


def test_the_gradient_is_that_of_finite_differences() -> None:
    assert_slopes(RRHF())


def test_an_empty_place_has_no_gradient() -> None:
    policy, _ = filled([Ranking(*P, [1.0, 2.0, 3.0]), Ranking(P[0][:2], P[1][:2], P[2][:2], [1.0, 1.0])])
    _, gradient = evaluated(RRHF(), policy, None)
    assert gradient[1].tolist() == pytest.approx([-1 / 8, -1 / 6, 0.0])  # both best: -1 / (2 |y|)


def test_the_loss_stays_finite_far_away() -> None:
    assert_finite_far_away(RRHF())


def test_it_has_no_constants() -> None:
    with pytest.raises(ValueError):
        RRHF(beta=0.1)  # type: ignore[call-arg]


def test_lengths_count() -> None:
    policy, _ = filled([Ranking(*P, [1.0, 2.0, 3.0])])
    ones = RankedLogps(logps(policy.completions.total, torch.ones(1, 3)), policy.grade)
    assert RRHF()(policy, None).tolist() != RRHF()(ones, None).tolist()
