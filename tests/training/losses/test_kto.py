"""KTO, arXiv 2402.01306, and its baseline z."""

import dataclasses

import pytest
import torch

from tests.training.losses.worked import (
    assert_agrees,
    assert_finite_far_away,
    assert_slopes,
    both,
    draw_pairs,
    logps,
    sigmoid,
    tensor,
)
from training.losses.apo_zero import APOZero
from training.losses.base import PairLogps, RatedLogps
from training.losses.dpo import DPO
from training.losses.kto import KTO, baseline

YES, NO = torch.tensor([True]), torch.tensor([False])


def test_kto_is_the_equation_worked_by_hand() -> None:
    # beta = 0.1, z = 2, lambda_D = 1, lambda_U = 1.5; lengths differ and mean nothing.
    #   1. desirable,   r = -10 + 12 = 2:   1 - sigmoid(0.1 (2 - 2)) = 0.5
    #   2. undesirable, r = -20 + 15 = -5:  1.5 (1 - sigmoid(0.1 (2 + 5))) = 1.5 (1 - 0.668188) = 0.497718
    #   3. desirable,   r = -3 + 15 = 12:   1 - sigmoid(0.1 (12 - 2)) = 1 - 0.731059 = 0.268941
    #   4. undesirable, r = 12:             1.5 (1 - sigmoid(0.1 (2 - 12))) = 1.5 (1 - 0.268941) = 1.096588
    desirable = torch.tensor([True, False, True, False])
    lengths = [5.0, 8.0, 2.0, 3.0]
    policy = RatedLogps(logps([-10.0, -20.0, -3.0, -3.0], lengths), desirable, tensor(2.0))
    reference = RatedLogps(logps([-12.0, -15.0, -15.0, -15.0], lengths), desirable)
    found = KTO(beta=0.1, lambda_undesirable=1.5)(policy, reference)
    assert found.tolist() == pytest.approx([0.5, 0.497718, 0.268941, 1.096588], abs=1e-6)


def test_each_lambda_weighs_its_own_ratings() -> None:
    policy = RatedLogps(logps([-1.0, -1.0], [2.0, 3.0]), torch.tensor([True, False]), tensor(0.0))
    reference = RatedLogps(logps([-1.0, -1.0], [2.0, 3.0]), policy.desirable)
    found = KTO(lambda_desirable=1.25, lambda_undesirable=3.0)(policy, reference)
    assert found.tolist() == pytest.approx([0.625, 1.5])  # sigmoid(0) = 1 / 2 times each


def test_the_baseline_is_clamped_after_the_mean() -> None:
    # Mean of -3, 1, 0.5 = -0.5 -> 0 (clamped before it would be 0.5);  of 3, -1 = 1 (clamped before: 1.5).
    assert float(baseline(tensor([-3.0, 1.0, 0.5]))) == 0.0
    assert float(baseline(tensor([3.0, -1.0]))) == 1.0
    assert float(baseline(tensor([[4.0, 2.0], [-1.0, -1.0]]))) == 1.0
    assert baseline(tensor([3.0, -1.0])).shape == ()


def test_the_baseline_is_no_path_of_the_gradient() -> None:
    ratios = tensor([3.0, 1.0]).requires_grad_()
    assert not baseline(ratios).requires_grad


def test_without_baseline_a_pair_split_into_ratings_is_apo_zero() -> None:
    policy, reference = both(draw_pairs(50))
    zero = tensor(0.0)
    chosen = KTO(beta=0.3)(
        RatedLogps(policy.chosen, YES.expand(50), zero), RatedLogps(reference.chosen, YES.expand(50))
    )
    rejected = KTO(beta=0.3)(
        RatedLogps(policy.rejected, NO.expand(50), zero), RatedLogps(reference.rejected, NO.expand(50))
    )
    assert (chosen + rejected).tolist() == pytest.approx(APOZero(beta=0.3)(policy, reference).tolist())


def test_a_desirable_rating_is_one_minus_the_likelihood_of_dpo_against_the_baseline() -> None:
    # 1 - sigmoid(beta (r - z)) = 1 - exp(-dpo) for a rejected completion whose log-ratio is z.
    policy, reference = both(draw_pairs(50))
    z = torch.full((50,), 0.5, dtype=torch.float64)
    against = PairLogps(policy.chosen, logps(z, torch.ones(50)))
    dpo = DPO(beta=0.2)(against, PairLogps(reference.chosen, logps(0 * z, torch.ones(50))))
    found = KTO(beta=0.2)(
        RatedLogps(policy.chosen, YES.expand(50), tensor(0.5)), RatedLogps(reference.chosen, YES.expand(50))
    )
    assert found.tolist() == pytest.approx((1 - torch.exp(-dpo)).tolist())


@pytest.mark.parametrize(("beta", "d", "u", "z"), [(0.1, 1.0, 1.0, 0.0), (0.5, 1.33, 1.0, 1.5), (0.3, 1.0, 2.0, 20.0)])
def test_a_second_implementation_agrees(beta: float, d: float, u: float, z: float) -> None:
    pairs = draw_pairs()
    policy, reference = both(pairs)
    desirable = torch.tensor([i % 2 == 0 for i in range(200)])
    expected = [
        d * (1 - sigmoid(beta * (p.r_w - z))) if i % 2 == 0 else u * (1 - sigmoid(beta * (z - p.r_w)))
        for i, p in enumerate(pairs)
    ]
    loss = KTO(beta=beta, lambda_desirable=d, lambda_undesirable=u)
    found = loss(RatedLogps(policy.chosen, desirable, tensor(z)), RatedLogps(reference.chosen, desirable))
    assert_agrees(found, expected)


def test_the_gradient_is_that_of_finite_differences() -> None:
    assert_slopes(KTO(beta=0.3, lambda_undesirable=1.5))


def test_the_loss_stays_finite_far_away() -> None:
    assert_finite_far_away(KTO(beta=1.0))


def test_a_loss_close_to_zero_keeps_its_digits() -> None:
    # 1 - sigmoid(40) = e^-40 / (1 + e^-40) = 4.248354e-18, which 1 - sigmoid would round to 0.
    policy = RatedLogps(logps([0.0, -40.0], [3.0, 2.0]), torch.tensor([True, False]), tensor(0.0))
    reference = RatedLogps(logps([-40.0, 0.0], [3.0, 2.0]), policy.desirable)
    assert KTO(beta=1.0)(policy, reference).tolist() == pytest.approx([4.248354e-18] * 2, rel=1e-6, abs=0)


def test_it_asks_for_its_baseline() -> None:
    policy = RatedLogps(logps([0.0], [3.0]), YES)
    assert KTO.needs_baseline
    with pytest.raises(AssertionError):
        KTO()(dataclasses.replace(policy, baseline=None), policy)


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"lambda_desirable": 0.0}, {"lambda_undesirable": -1.0}])
def test_constants_outside_of_the_paper_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        KTO(**wrong)  # type: ignore[arg-type]
