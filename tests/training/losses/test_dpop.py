"""DPO-Positive, arXiv 2402.13228."""

import pytest
import torch

from tests.training.losses.worked import (
    POLICY,
    REFERENCE,
    assert_agrees,
    assert_finite_far_away,
    assert_slopes,
    both,
    draw_pairs,
    evaluated,
    log_sigmoid,
)
from training.losses.dpo import DPO
from training.losses.dpop import DPOP


def test_dpop_is_the_equation_worked_by_hand() -> None:
    # beta = 0.1, lambda = 5.
    #   1. r_w = 2 > 0: no penalty, 0.1 * 7 = 0.7:                   ln(1 + e^-0.7) = 0.403186
    #   2. r_w = 0: none either:                                     ln 2
    #   3. r_w = -4: 0.1 (-10 - 5 * 4) = -3:                         ln(1 + e^3) = 3.048587
    found = DPOP(beta=0.1, lambda_=5.0)(POLICY, REFERENCE)
    assert found.tolist() == pytest.approx([0.403186, 0.693147, 3.048587], abs=1e-6)


def test_no_penalty_is_dpo() -> None:
    assert torch.equal(DPOP(beta=0.3, lambda_=0.0)(POLICY, REFERENCE), DPO(beta=0.3)(POLICY, REFERENCE))


def test_a_fallen_chosen_completion_is_pulled_harder_than_the_rejected_one_is_pushed() -> None:
    # Third pair: by l_w the margin grows with beta (1 + lambda), by l_l it falls with beta.
    _, gradient = evaluated(DPOP(beta=0.1, lambda_=5.0), POLICY, REFERENCE)
    assert float(gradient[0, 2]) == pytest.approx(-6 * float(gradient[1, 2]))
    assert float(gradient[0, 0]) == pytest.approx(-float(gradient[1, 0]))


@pytest.mark.parametrize(("beta", "lambda_"), [(0.1, 5.0), (0.3, 0.5), (0.01, 50.0)])
def test_a_second_implementation_agrees(beta: float, lambda_: float) -> None:
    pairs = draw_pairs()
    expected = [-log_sigmoid(beta * (p.r_w - p.r_l - lambda_ * max(0.0, p.ref_w - p.l_w))) for p in pairs]
    assert_agrees(DPOP(beta=beta, lambda_=lambda_)(*both(pairs)), expected)


def test_the_gradient_is_that_of_finite_differences() -> None:
    assert_slopes(DPOP(beta=0.1, lambda_=5.0))
    assert_slopes(DPOP())


def test_the_loss_stays_finite_far_away() -> None:
    assert_finite_far_away(DPOP())


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"lambda_": -1.0}, {"lambda": 5.0}])
def test_constants_outside_of_the_paper_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        DPOP(**wrong)
