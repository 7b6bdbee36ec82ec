"""APO-down, arXiv 2408.06266."""

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
    sigmoid,
)
from training.losses.apo_down import APODown
from training.losses.apo_zero import APOZero
from training.losses.base import PairLogps
from training.losses.dpo import DPO


def test_apo_down_is_the_equation_worked_by_hand() -> None:
    # beta = 0.1; r_w = 2, 0, -4; D = 7, 0, -10; lengths differ and mean nothing.
    #   1. sigmoid(0.2) = 0.549834,   1 - sigmoid(0.7) = 0.331812:   0.881646
    #   2. 0.5 + 1 - 0.5 = 1
    #   3. sigmoid(-0.4) = 0.401312,  1 - sigmoid(-1) = 0.731059:    1.132371
    found = APODown(beta=0.1)(POLICY, REFERENCE)
    assert found.tolist() == pytest.approx([0.881646, 1.0, 1.132371], abs=1e-6)


def test_its_second_term_is_one_minus_the_likelihood_of_dpo() -> None:
    first = torch.sigmoid(0.2 * (POLICY.chosen.total - REFERENCE.chosen.total))
    expected = first + 1 - torch.exp(-DPO(beta=0.2)(POLICY, REFERENCE))
    assert APODown(beta=0.2)(POLICY, REFERENCE).tolist() == pytest.approx(expected.tolist())


def test_where_the_chosen_completion_has_not_moved_it_is_apo_zero() -> None:
    # r_w = 0: sigmoid(0) + 1 - sigmoid(-beta r_l) = 0.5 + sigmoid(beta r_l)
    policy, reference = both(draw_pairs(50))
    still = PairLogps(reference.chosen, policy.rejected)
    assert APODown()(still, reference).tolist() == pytest.approx(APOZero()(still, reference).tolist())


def test_where_nothing_has_moved_only_the_rejected_completion_is_pushed() -> None:
    # By l_w: beta / 4 - beta / 4 = 0; by l_l: beta / 4 = 0.025.
    _, gradient = evaluated(APODown(beta=0.1), REFERENCE, REFERENCE)
    assert gradient[0].tolist() == pytest.approx([0.0] * 3, abs=1e-12)
    assert gradient[1].tolist() == pytest.approx([0.025] * 3)


def test_once_the_margin_is_there_both_are_pushed_down() -> None:
    _, gradient = evaluated(APODown(beta=0.1), POLICY, REFERENCE)
    assert float(gradient[0, 0]) > 0 and float(gradient[1, 0]) > 0  # the first pair, D = 7


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_a_second_implementation_agrees(beta: float) -> None:
    pairs = draw_pairs()
    expected = [sigmoid(beta * p.r_w) + (1 - sigmoid(beta * (p.r_w - p.r_l))) for p in pairs]
    assert_agrees(APODown(beta=beta)(*both(pairs)), expected)


def test_the_gradient_is_that_of_finite_differences() -> None:
    assert_slopes(APODown(beta=0.1), POLICY, REFERENCE)
    assert_slopes(APODown(beta=0.3))


def test_the_loss_stays_finite_far_away() -> None:
    assert_finite_far_away(APODown(beta=1.0))


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"beta": -0.1}, {"alpha": 1.0}])
def test_constants_outside_of_the_paper_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        APODown(**wrong)  # type: ignore[arg-type]
