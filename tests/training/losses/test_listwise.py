"""Plackett-Luce DPO, arXiv 2305.18290 appendix A.3, and its ties."""

import math
from itertools import pairwise, permutations

import pytest
import torch

from tests.training.losses.worked import (
    POLICY,
    REFERENCE,
    Ranking,
    assert_agrees,
    assert_finite_far_away,
    assert_slopes,
    both,
    draw_pairs,
    draw_rankings,
    evaluated,
    filled,
)
from training.losses.base import Logps, PairLogps, RankedLogps
from training.losses.dpo import DPO
from training.losses.listwise import Listwise


def ranked(u: list[float], grades: list[float]) -> tuple[RankedLogps, RankedLogps]:
    """Log-ratios that are u at beta = 1, at lengths that differ."""
    return filled([Ranking([-9.0 + x for x in u], [-9.0] * len(u), [float(i + 1) for i in range(len(u))], grades)])


@pytest.mark.parametrize(
    ("u", "grades", "expected"),
    [
        # Best first: [ln(e^1 + e^0 + e^-1) - 1] + [ln(e^0 + e^-1) - 0] + 0 = 0.407606 + 0.313262
        ([1.0, 0.0, -1.0], [3.0, 2.0, 1.0], 0.720868),
        # The same in another order of the places; grades need not be ranks.
        ([0.0, -1.0, 1.0], [0.5, 0.1, 7.0], 0.720868),
        # Worst first: [ln 4.086161 + 1] + [ln(e^0 + e^1) - 0] = 2.407606 + 1.313262
        ([1.0, 0.0, -1.0], [1.0, 2.0, 3.0], 3.720868),
        # Nothing has moved: every order of three has the probability 1 / 6, of four 1 / 24.
        ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], math.log(6)),
        ([0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0], math.log(24)),
        # An empty place is none: the probability of two in order is 1 / 2.
        ([0.0, 0.0, 0.0], [1.0, 2.0, -math.inf], math.log(2)),
    ],
)
def test_listwise_is_the_equation_worked_by_hand(u: list[float], grades: list[float], expected: float) -> None:
    assert Listwise(beta=1.0)(*ranked(u, grades)).tolist() == pytest.approx([expected], abs=1e-6)


@pytest.mark.parametrize(
    ("weights", "grades", "probability"),
    [
        # Equal weights: the one that is worse comes last in one of three cases; one of three is first in as many.
        ([1.0, 1.0, 1.0], [2.0, 2.0, 1.0], 1 / 3),
        ([1.0, 1.0, 1.0], [2.0, 1.0, 1.0], 1 / 3),
        # Weights 2, 1 tied, before 1: (2/4)(1/2) in the one order, (1/4)(2/3) in the other: 1/4 + 1/6 = 5/12.
        ([2.0, 1.0, 1.0], [2.0, 2.0, 1.0], 5 / 12),
        # One before two tied, which have nothing below them: 2/4.
        ([2.0, 1.0, 1.0], [2.0, 1.0, 1.0], 1 / 2),
        # Two groups of two: the same four weights in pairs: (1/4)(1/3) * 2 = 1/6; nothing below the second group.
        ([1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 1.0, 1.0], 1 / 6),
        # A tied group in the middle: 1/4, then 1/3 as above.
        ([1.0, 1.0, 1.0, 1.0], [3.0, 2.0, 2.0, 1.0], 1 / 12),
    ],
)
def test_a_tied_group_is_one_stage_worked_by_hand(
    weights: list[float], grades: list[float], probability: float
) -> None:
    found = Listwise(beta=1.0)(*ranked([math.log(w) for w in weights], grades))
    assert found.tolist() == pytest.approx([-math.log(probability)], abs=1e-9)


def test_all_tied_is_no_loss_and_no_gradient() -> None:
    for k in (2, 3, 5):
        losses, gradient = evaluated(Listwise(beta=1.0), *ranked([float(i) for i in range(k)], [1.0] * k))
        assert losses.tolist() == [0.0] and gradient.tolist() == [[0.0] * k]


def test_the_outcomes_of_a_tied_ranking_are_everything_that_can_happen() -> None:
    # One of four comes last and the others tie above it: four outcomes, whose probabilities add up to 1.
    u = [0.5, -1.0, 2.0, 0.1]
    outcomes = [[2.0 - (i == last) for i in range(4)] for last in range(4)]
    total = sum(math.exp(-float(Listwise(beta=1.0)(*ranked(u, grades)))) for grades in outcomes)
    assert total == pytest.approx(1.0, abs=1e-11)


def as_rankings(pair: PairLogps, turned: bool, empty: int) -> RankedLogps:
    """The pairs as rankings of two, better one second if turned, with empty places behind."""
    two = [pair.rejected, pair.chosen] if turned else [pair.chosen, pair.rejected]
    zero, one = torch.zeros_like(two[0].total), torch.ones_like(two[0].total)
    totals = torch.stack([c.total for c in two] + [zero] * empty, 1)
    lengths = torch.stack([c.length for c in two] + [one] * empty, 1)
    grades = torch.tensor([[1.0, 2.0] if turned else [2.0, 1.0]]).to(zero).expand(len(zero), 2)
    return RankedLogps(Logps(totals, lengths), torch.cat([grades, torch.full_like(totals[:, 2:], -math.inf)], 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("empty", [0, 2])
@pytest.mark.parametrize("turned", [False, True])
def test_two_completions_are_dpo_to_the_last_bit(turned: bool, empty: int, dtype: torch.dtype) -> None:
    for policy, reference in ((POLICY, REFERENCE), both(draw_pairs())):
        pair, other = (
            PairLogps(*(Logps(c.total.to(dtype), c.length.to(dtype)) for c in (one.chosen, one.rejected)))
            for one in (policy, reference)
        )
        losses, gradient = evaluated(
            Listwise(beta=0.3), as_rankings(pair, turned, empty), as_rankings(other, turned, empty)
        )
        expected, slopes = evaluated(DPO(beta=0.3), pair, other)
        assert torch.equal(losses, expected)
        chosen, rejected = (1, 0) if turned else (0, 1)
        assert torch.equal(torch.stack([gradient[:, chosen], gradient[:, rejected]]), slopes)
        assert not gradient[:, 2:].any()


def test_the_best_of_three_against_two_tied_is_dpo_against_their_sum() -> None:
    # -ln(w_1 / (w_1 + w_2 + w_3)) = -ln sigmoid(u_1 - ln(w_2 + w_3))
    u = [0.3, -0.7, 1.1]
    rest = math.log(math.exp(u[1]) + math.exp(u[2]))
    expected = math.log1p(math.exp(rest - u[0]))
    assert Listwise(beta=1.0)(*ranked(u, [2.0, 1.0, 1.0])).tolist() == pytest.approx([expected])


def equation(one: Ranking, beta: float) -> float:
    """-log of the sum of the paper's likelihood over all orders that the grades allow."""
    u = [beta * (total - reference) for total, reference in zip(one.totals, one.reference, strict=True)]
    likelihood = 0.0
    for order in permutations(range(len(u))):
        if all(one.grades[a] >= one.grades[b] for a, b in pairwise(order)):
            likelihood += math.prod(
                math.exp(u[i]) / sum(math.exp(u[j]) for j in order[k:]) for k, i in enumerate(order)
            )
    return -math.log(likelihood)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_a_second_implementation_agrees(beta: float) -> None:
    rankings = draw_rankings()
    assert {len(set(r.grades)) < len(r.grades) for r in rankings} == {True, False}  # with ties and without
    assert_agrees(Listwise(beta=beta)(*filled(rankings)), [equation(one, beta) for one in rankings])


@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_float32_agrees_with_float64(spread: float) -> None:
    rankings = draw_rankings(seed=3)
    wide = Listwise(beta=spread / 5)(*filled(rankings))
    narrow = Listwise(beta=spread / 5)(*filled(rankings, torch.float32))
    assert narrow.dtype == torch.float32
    assert narrow.tolist() == pytest.approx(wide.tolist(), rel=2e-5, abs=2e-5)


def test_a_large_tied_group_of_equals_has_its_closed_form() -> None:
    # g equal completions before one more: the one is last of g + 1, with probability 1 / (g + 1).
    for g, exact in ((2, 1e-12), (8, 1e-11), (16, 1e-10), (64, 1e-5)):
        found = Listwise(beta=1.0)(*ranked([0.0] * (g + 1), [1.0] * g + [0.0]))
        assert found.tolist() == pytest.approx([math.log(g + 1)], abs=exact)


def test_the_gradient_is_that_of_finite_differences() -> None:
    assert_slopes(Listwise(beta=0.3))
    assert_slopes(Listwise(beta=1.0), *ranked([0.5, -1.0, 2.0, 0.1], [2.0, 2.0, 2.0, 1.0]))


def test_an_empty_place_has_no_gradient_whatever_stands_there() -> None:
    policy, reference = ranked([0.5, -1.0, 3.0, 2.0], [2.0, 1.0, -math.inf, -math.inf])
    losses, gradient = evaluated(Listwise(beta=1.0), policy, reference)
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-1.5))])
    assert gradient[0, 2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("far", [1e4, -1e4])
def test_ties_far_apart_have_their_limits(far: float) -> None:
    # Two tied completions far above the third are first almost surely. Far below it, at weight w against 1, either order
    # has the probability w / (1 + 2 w) * w / (1 + w), which is w^2: the loss is 2 * 1e4 - ln 2.
    losses, gradient = evaluated(Listwise(beta=1.0), *ranked([far, far, 0.0], [2.0, 2.0, 1.0]))
    assert losses.tolist() == pytest.approx([0.0 if far > 0 else 2e4 - math.log(2)], abs=1e-6)
    assert gradient.tolist() == [pytest.approx([0.0] * 3 if far > 0 else [-1.0, -1.0, 2.0], abs=1e-9)]


def test_the_loss_stays_finite_far_away() -> None:
    assert_finite_far_away(Listwise(beta=1.0))


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"beta": -0.1}, {"label_smoothing": 0.1}])
def test_constants_outside_of_the_paper_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Listwise(**wrong)  # type: ignore[arg-type]
