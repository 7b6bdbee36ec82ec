"""The paired tests against published values, SciPy, and the exact size of Tango's test by enumeration."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar

from evaluation.paired import compare, mcnemar, paired_t, tango, tango_lower


def test_mcnemar_counts_coin_tosses() -> None:
    # 5 gained, 1 lost: P(X >= 5), X ~ Bin(6, 1/2) = (6 + 1) / 64.
    assert mcnemar(5, 1) == 7 / 64
    assert mcnemar(0, 0) == 1.0


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_scipys_binomial_tail(gained: int, lost: int) -> None:
    assert mcnemar(gained, lost) == pytest.approx(stats.binom.sf(gained - 1, gained + lost, 0.5), abs=1e-12)


def test_tango_gives_the_published_value() -> None:
    # Tango 1998, the crossover trial of soft lens disinfection: n = 44, b = 0, c = 1, margin 0.1: Z = 1.709.
    # A = 88, B = -1 + 89 * -0.1 = -9.9, C = 0.11; q = (9.9 + sqrt(98.01 - 38.72)) / 176 = 0.1000;
    # Z = (-1 + 4.4) / sqrt(44 * (0.2 - 0.11)) = 3.4 / 1.990 = 1.709, p = 0.044.
    z = tango(0, 1, 44, -0.1)
    assert z == pytest.approx(1.709, abs=5e-4)
    assert 1 - stats.norm.cdf(z) == pytest.approx(0.044, abs=5e-4)


def test_tango_without_a_bound_is_mcnemars_chi() -> None:
    # delta = 0: q = (b + c) / 2n, so Z = (b - c) / sqrt(b + c) = (9 - 4) / sqrt(13).
    assert tango(9, 4, 100, 0.0) == pytest.approx(5 / math.sqrt(13))


@pytest.mark.parametrize(("gained", "lost", "bound"), [(3, 7, -0.1), (12, 5, 0.05), (0, 4, -0.2), (6, 0, 0.1)])
def test_tango_uses_the_constrained_maximum_likelihood(gained: int, lost: int, bound: float) -> None:
    n = 60

    def minus_log_likelihood(q: float) -> float:
        cells = ((gained, q + bound), (lost, q), (n - gained - lost, 1 - 2 * q - bound))
        return -sum(count * math.log(p) for count, p in cells if count)

    low, high = max(0.0, -bound), (1 - bound) / 2
    q = minimize_scalar(minus_log_likelihood, bounds=(low + 1e-12, high - 1e-12), method="bounded").x
    expected = (gained - lost - n * bound) / math.sqrt(n * (2 * q + bound * (1 - bound)))
    assert tango(gained, lost, n, bound) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("rate", [0.1, 0.15, 0.25, 0.4])
def test_tango_errs_about_as_often_as_it_says(rate: float) -> None:
    # Exact: sum the trinomial probabilities of all tables of 50 items that are rejected at the edge of H0.
    n, margin, alpha = 50, 0.1, 0.05
    size = 0.0
    for gained, lost in product(range(n + 1), repeat=2):
        if gained + lost <= n and 1 - stats.norm.cdf(tango(gained, lost, n, -margin)) <= alpha:
            size += stats.multinomial.pmf(
                [gained, lost, n - gained - lost], n, [rate - margin, rate, 1 + margin - 2 * rate]
            )
    assert size <= 1.3 * alpha


def test_tangos_bound_is_where_its_test_turns() -> None:
    lower = tango_lower(10, 4, 100, 0.05)
    assert tango(10, 4, 100, lower) == pytest.approx(stats.norm.ppf(0.95), abs=1e-6)
    assert lower < 0.06


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 40))
def test_tangos_bound_lies_below_the_difference(gained: int, lost: int, same: int) -> None:
    n = gained + lost + same
    if n:
        assert -1 <= tango_lower(gained, lost, n, 0.05) <= (gained - lost) / n


def test_paired_t_is_scipys() -> None:
    x, y = [1.0, 2.5, 3.0, 4.5, 2.0], [0.5, 2.0, 3.5, 3.0, 1.0]
    differences = [a - b for a, b in zip(x, y, strict=True)]
    mean, p, lower = paired_t(differences, 0.1, 0.05)
    reference = stats.ttest_rel([a - 0.1 for a in x], y, alternative="greater")
    assert (mean, p) == pytest.approx((0.6, reference.pvalue))
    assert lower == pytest.approx(stats.ttest_rel(x, y, alternative="greater").confidence_interval(0.95).low)


def test_the_values_choose_the_test() -> None:
    ones, mixed = [1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]
    assert compare(ones, mixed, 0.0, 0.05).method == "McNemar"
    assert compare(ones, mixed, -0.1, 0.05).method == "Tango"
    assert compare([0.5, 0.25], [0.0, 0.5], 0.0, 0.05).method == "paired t"


def test_too_few_items_say_how_many_decide() -> None:
    # 3 gained, 1 lost of 100: mean 0.02, s^2 = (4 - 100 * 0.02^2) / 99 = 0.04;
    # (1.6449 + 0.8416)^2 * 0.04 / 0.02^2 = 618.3
    challenger, champion = [1.0] * 3 + [0.0] + [1.0] * 96, [0.0] * 3 + [1.0] + [1.0] * 96
    test = compare(challenger, champion, 0.0, 0.05)
    assert test.p_value == 5 / 16
    assert test.items_needed == 619
    assert compare(champion, challenger, 0.0, 0.05).items_needed is None


def test_values_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        compare([1.0], [1.0, 0.0], 0.0, 0.05)
    with pytest.raises(ValueError, match="at least two"):
        compare([1.0], [1.0], 0.0, 0.05)
