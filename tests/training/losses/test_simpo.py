"""SimPO, arXiv 2405.14734."""

import pytest

from tests.training.losses.worked import (
    POLICY,
    assert_agrees,
    assert_finite_far_away,
    assert_slopes,
    both,
    draw_pairs,
    log_sigmoid,
    logps,
)
from training.losses.base import Logps, PairLogps
from training.losses.cpo import CPO
from training.losses.dpo import DPO
from training.losses.simpo import SimPO


def test_simpo_is_the_equation_worked_by_hand() -> None:
    # Means per token: -10/5 = -2 and -20/8 = -2.5;  -3/2 and -4/4 = -1;  -9/3 = -3 and -2/2 = -1.  beta = 2, gamma = 0.5.
    #   1. 2 * 0.5 - 0.5 = 0.5:    ln(1 + e^-0.5) = 0.474077
    #   2. 2 * -0.5 - 0.5 = -1.5:  ln(1 + e^1.5) = 1.701413
    #   3. 2 * -2 - 0.5 = -4.5:    ln(1 + e^4.5) = 4.511048
    found = SimPO(beta=2.0, gamma=0.5)(POLICY, None)
    assert found.tolist() == pytest.approx([0.474077, 1.701413, 4.511048], abs=1e-6)


def test_gamma_stands_outside_of_beta() -> None:
    # Where both means agree the loss is ln(1 + e^gamma), whatever beta is: ln(1 + e^1.6) = 1.783900.
    even = PairLogps(logps([-4.0], [4.0]), logps([-2.0], [2.0]))
    for beta in (0.5, 2.0, 10.0):
        assert SimPO(beta=beta, gamma=1.6)(even, None).tolist() == pytest.approx([1.783900], abs=1e-6)


def test_with_equal_lengths_and_no_margin_it_is_cpo_without_nll_and_dpo_without_reference() -> None:
    n = logps([0.0] * 3, [4.0] * 3).length
    policy = PairLogps(Logps(POLICY.chosen.total, n), Logps(POLICY.rejected.total, n))
    zero = PairLogps(Logps(0 * n, n), Logps(0 * n, n))
    found = SimPO(beta=2.0, gamma=0.0)(policy, None).tolist()
    assert found == pytest.approx(CPO(beta=0.5, alpha=0.0)(policy, None).tolist())  # 2 / 4 tokens = 0.5
    assert found == pytest.approx(DPO(beta=0.5)(policy, zero).tolist())


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 0.5), (2.5, 1.4), (10.0, 0.0)])
def test_a_second_implementation_agrees(beta: float, gamma: float) -> None:
    pairs = draw_pairs()
    expected = [-log_sigmoid(beta / p.n_w * p.l_w - beta / p.n_l * p.l_l - gamma) for p in pairs]
    assert_agrees(SimPO(beta=beta, gamma=gamma)(both(pairs)[0], None), expected)


def test_the_gradient_is_that_of_finite_differences() -> None:
    assert_slopes(SimPO(), POLICY, None)
    assert_slopes(SimPO(beta=1.0, gamma=1.0))


def test_the_loss_stays_finite_far_away() -> None:
    assert_finite_far_away(SimPO())


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"gamma": -0.1}, {"gamma_beta_ratio": 0.5}])
def test_constants_outside_of_the_paper_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        SimPO(**wrong)  # type: ignore[arg-type]
