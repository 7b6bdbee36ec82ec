"""CPO, arXiv 2401.08417."""

import pytest
import torch

from tests.training.losses.worked import (
    POLICY,
    assert_agrees,
    assert_finite_far_away,
    assert_slopes,
    both,
    draw_pairs,
    log_sigmoid,
    mapped,
)
from training.losses.cpo import CPO
from training.losses.dpo import DPO


def test_cpo_is_the_equation_worked_by_hand() -> None:
    # l_w - l_l = 10, 1, -7; beta = 0.1, alpha = 1; the NLL is a sum, so the lengths mean nothing.
    #   1. ln(1 + e^-1) = 0.313262, + 10    2. ln(1 + e^-0.1) = 0.644397, + 3    3. ln(1 + e^0.7) = 1.103186, + 9
    found = CPO(beta=0.1, alpha=1.0)(POLICY, None)
    assert found.tolist() == pytest.approx([10.313262, 3.644397, 10.103186], abs=1e-6)


def test_alpha_weighs_the_nll() -> None:
    # 0.313262 + 0.2 * 10, 0.644397 + 0.2 * 3, 1.103186 + 0.2 * 9
    found = CPO(beta=0.1, alpha=0.2)(POLICY, None)
    assert found.tolist() == pytest.approx([2.313262, 1.244397, 2.903186], abs=1e-6)


def test_without_nll_it_is_dpo_with_a_uniform_reference() -> None:
    zero = mapped(POLICY, torch.zeros_like)
    assert torch.equal(CPO(beta=0.3, alpha=0.0)(POLICY, None), DPO(beta=0.3)(POLICY, zero))


@pytest.mark.parametrize(("beta", "alpha"), [(0.1, 1.0), (0.5, 0.0), (0.05, 0.3)])
def test_a_second_implementation_agrees(beta: float, alpha: float) -> None:
    pairs = draw_pairs()
    expected = [-log_sigmoid(beta * p.l_w - beta * p.l_l) + alpha * -p.l_w for p in pairs]
    assert_agrees(CPO(beta=beta, alpha=alpha)(both(pairs)[0], None), expected)


def test_the_gradient_is_that_of_finite_differences() -> None:
    assert_slopes(CPO(), POLICY, None)
    assert_slopes(CPO(beta=0.5, alpha=0.2))


def test_the_loss_stays_finite_far_away() -> None:
    assert_finite_far_away(CPO())


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"alpha": -1.0}, {"label_smoothing": 0.1}])
def test_constants_outside_of_the_paper_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        CPO(**wrong)  # type: ignore[arg-type]
