"""ORPO, arXiv 2403.07691, and the logarithm that it stands on."""

import math

import pytest
import torch

from tests.training.losses.worked import (
    POLICY,
    assert_agrees,
    assert_finite_far_away,
    assert_slopes,
    both,
    draw_pairs,
    evaluated,
    log_sigmoid,
    logps,
)
from training.losses.base import PairLogps
from training.losses.orpo import ORPO
from training.losses.simpo import SimPO
from training.losses.stable import log1mexp


def test_orpo_is_the_equation_worked_by_hand() -> None:
    # lambda = 0.1; e^m is the geometric mean of the tokens' probabilities.
    #   1. |y_w| = 2, e^m = 0.8, odds 4; |y_l| = 3, e^m = 0.2, odds 1/4; the log of the odds ratio is ln 16.
    #      -ln sigmoid(ln 16) = ln(17 / 16) = 0.060625;   0.223144 + 0.0060625 = 0.229206
    #   2. both 0.5: ln 2 = 0.693147;                      0.693147 + 0.0693147 = 0.762462
    #   3. the first one's mirror image: ln 17 = 2.833213; 1.609438 + 0.2833213 = 1.892759
    pair = PairLogps(
        logps([2 * math.log(0.8), 4 * math.log(0.5), 3 * math.log(0.2)], [2.0, 4.0, 3.0]),
        logps([3 * math.log(0.2), math.log(0.5), 2 * math.log(0.8)], [3.0, 1.0, 2.0]),
    )
    assert ORPO(lambda_=0.1)(pair, None).tolist() == pytest.approx([0.229206, 0.762462, 1.892759], abs=1e-6)


def test_a_small_lambda_is_supervised_fine_tuning() -> None:
    # NLL(y_w) / |y_w| = 10 / 5, 3 / 2, 9 / 3
    assert ORPO(lambda_=1e-12)(POLICY, None).tolist() == pytest.approx([2.0, 1.5, 3.0])


def test_for_improbable_completions_its_odds_term_is_simpo() -> None:
    # log(1 - e^m) vanishes, a = m: the second term is simpo with beta = 1 and gamma = 0.
    pair = PairLogps(logps([-100.0, -300.0], [2.0, 5.0]), logps([-150.0, -250.0], [3.0, 4.0]))
    odds = ORPO(lambda_=0.3)(pair, None) - torch.tensor([50.0, 60.0], dtype=torch.float64)
    assert odds.tolist() == pytest.approx((0.3 * SimPO(beta=1.0, gamma=0.0)(pair, None)).tolist(), abs=1e-12)


@pytest.mark.parametrize("lambda_", [0.1, 1.0])
def test_a_second_implementation_agrees(lambda_: float) -> None:
    pairs = draw_pairs()
    expected = []
    for p in pairs:
        q_w, q_l = math.exp(p.l_w / p.n_w), math.exp(p.l_l / p.n_l)
        log_odds_ratio = math.log((q_w / (1 - q_w)) / (q_l / (1 - q_l)))
        expected.append(-p.l_w / p.n_w - lambda_ * log_sigmoid(log_odds_ratio))
    assert_agrees(ORPO(lambda_=lambda_)(both(pairs)[0], None), expected)


def test_the_gradient_is_that_of_finite_differences() -> None:
    assert_slopes(ORPO(lambda_=0.5), POLICY, None)
    assert_slopes(ORPO(lambda_=0.5))


@pytest.mark.parametrize("m", [-1e-3, -1e-6, -1e-9, -1e-12])
def test_next_to_certainty_no_digit_is_lost(m: float) -> None:
    # Rejected: e^m = 1/2, odds 1. The odds of the chosen one are e^m / (1 - e^m) = 1 / expm1(-m), so the second term is
    # ln(1 + expm1(-m)) = -m. log1p(-e^m) has lost four digits of it at -1e-12, and all of them below.
    pair = PairLogps(logps([m], [1.0]), logps([math.log(0.5)], [1.0]))
    assert ORPO(lambda_=1.0)(pair, None).tolist() == pytest.approx([-2 * m], rel=1e-9, abs=1e-18)
    # By the chosen total: -1 from the NLL, and another -1 from the odds term, -m.
    _, gradient = evaluated(ORPO(lambda_=1.0), pair, None)
    assert float(gradient[0]) == pytest.approx(-2.0, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [0.0, -1e-30, -1e-12, -1e-8])
def test_certainty_has_finite_values_and_gradients_that_still_point_the_right_way(m: float, dtype: torch.dtype) -> None:
    certain, half = logps([m], [1.0], dtype), logps([-1.5], [2.0], dtype)
    for pair in (PairLogps(certain, half), PairLogps(half, certain), PairLogps(certain, certain)):
        losses, gradient = evaluated(ORPO(), pair, None)
        assert bool(losses.isfinite().all()) and bool(gradient.isfinite().all())
        assert float(gradient[0]) < 0 < float(gradient[1])


@pytest.mark.parametrize("x", [-1e-300, -1e-20, -1e-12, -1e-3, -0.5, -math.log(2), -0.7, -3.0, -40.0, -700.0, -1e4])
def test_log1mexp_keeps_its_digits_on_both_sides(x: float) -> None:
    # expm1 is exact near 0, log1p far below: the two are written apart here.
    expected = math.log(-math.expm1(x)) if x > -1 else math.log1p(-math.exp(x))
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    found = log1mexp(leaf)
    found.backward()
    assert float(found.detach()) == pytest.approx(expected, rel=1e-14, abs=0)
    assert leaf.grad is not None
    # d/dx log(1 - e^x) = -e^x / (1 - e^x) = e^x / expm1(x)
    assert float(leaf.grad) == pytest.approx(math.exp(x) / math.expm1(x), rel=1e-14, abs=0)


def test_the_loss_stays_finite_far_away() -> None:
    assert_finite_far_away(ORPO())


@pytest.mark.parametrize("wrong", [{"lambda_": 0.0}, {"lambda_": -0.1}, {"beta": 0.1}, {"lambda": 0.1}])
def test_constants_outside_of_the_paper_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        ORPO(**wrong)
