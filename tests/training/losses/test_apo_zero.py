"""APO-zero, arXiv 2408.06266."""

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
    sigmoid,
    tensor,
)
from training.losses.apo_zero import APOZero
from training.losses.base import RatedLogps
from training.losses.kto import KTO


def test_apo_zero_is_the_equation_worked_by_hand() -> None:
    # beta = 0.1; r_w = 2, 0, -4; r_l = -5, 0, 6; lengths differ and mean nothing.
    #   1. 1 - sigmoid(0.2) = 0.450166,   sigmoid(-0.5) = 0.377541:   0.827707
    #   2. 1 - 0.5 + 0.5 = 1
    #   3. 1 - sigmoid(-0.4) = 0.598688,  sigmoid(0.6) = 0.645656:    1.244344
    found = APOZero(beta=0.1)(POLICY, REFERENCE)
    assert found.tolist() == pytest.approx([0.827707, 1.0, 1.244344], abs=1e-6)


def test_it_is_kto_of_both_completions_with_a_baseline_of_zero() -> None:
    ratings = []
    for policy, reference, desirable in (
        (POLICY.chosen, REFERENCE.chosen, True),
        (POLICY.rejected, REFERENCE.rejected, False),
    ):
        rated = torch.tensor([desirable] * 3)
        ratings.append(KTO(beta=0.2)(RatedLogps(policy, rated, tensor(0.0)), RatedLogps(reference, rated)))
    assert APOZero(beta=0.2)(POLICY, REFERENCE).tolist() == pytest.approx((ratings[0] + ratings[1]).tolist())


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_a_second_implementation_agrees(beta: float) -> None:
    pairs = draw_pairs()
    assert_agrees(
        APOZero(beta=beta)(*both(pairs)), [(1 - sigmoid(beta * p.r_w)) + sigmoid(beta * p.r_l) for p in pairs]
    )


def test_the_gradient_is_that_of_finite_differences() -> None:
    assert_slopes(APOZero(beta=0.1), POLICY, REFERENCE)
    assert_slopes(APOZero(beta=0.3))


def test_the_loss_stays_finite_far_away() -> None:
    assert_finite_far_away(APOZero(beta=1.0))


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"beta": -0.1}, {"lambda_": 1.0}])
def test_constants_outside_of_the_paper_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        APOZero(**wrong)  # type: ignore[arg-type]
