"""IPO, arXiv 2310.12036 equation 17, with and without the means over tokens."""

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
    logps,
)
from training.losses.base import Logps, PairLogps
from training.losses.hinge import Hinge
from training.losses.ipo import IPO


def test_ipo_is_the_equation_worked_by_hand() -> None:
    # tau = 0.5, so 1 / (2 tau) = 1.
    #   1. r_w / |y_w| - r_l / |y_l| = 2 / 5 + 5 / 8 = 1.025; (1.025 - 1)^2 = 0.000625
    #   2. 0 / 2 - 0 / 4 = 0;                                   (0 - 1)^2 = 1
    #   3. -4 / 3 - 6 / 2 = -13 / 3;                    (-13 / 3 - 1)^2 = (16 / 3)^2 = 28.444444
    found = IPO(tau=0.5)(POLICY, REFERENCE)
    assert found.tolist() == pytest.approx([0.000625, 1.0, 28.444444], abs=1e-6)


def test_the_equation_as_printed_has_sums() -> None:
    # (7 - 1)^2, (0 - 1)^2, (-10 - 1)^2
    assert IPO(tau=0.5, average=False)(POLICY, REFERENCE).tolist() == pytest.approx([36.0, 1.0, 121.0])


def test_the_means_are_the_default_and_each_is_over_its_own_completion() -> None:
    # A completion of twice the tokens at the same log-ratio per token is the same to IPO.
    def doubled(one: Logps) -> Logps:
        return Logps(2 * one.total, 2 * one.length)

    plain = IPO()(POLICY, REFERENCE)
    longer = IPO()(
        PairLogps(doubled(POLICY.chosen), POLICY.rejected), PairLogps(doubled(REFERENCE.chosen), REFERENCE.rejected)
    )
    assert torch.equal(plain, longer)
    assert not torch.equal(IPO(average=False)(POLICY, REFERENCE), plain)


def test_completions_of_one_token_are_the_equation_as_printed() -> None:
    policy = PairLogps(logps([-2.0, -1.0], [1.0, 1.0]), logps([-1.0, -4.0], [1.0, 1.0]))
    reference = PairLogps(logps([-3.0, -1.5], [1.0, 1.0]), logps([-1.5, -1.0], [1.0, 1.0]))
    assert torch.equal(IPO()(policy, reference), IPO(average=False)(policy, reference))


def test_below_its_target_it_is_the_squared_hinge() -> None:
    # (D - 1 / (2 tau))^2 = ((1 - 2 tau D) / (2 tau))^2, and 2 tau D < 1 for D = 7, 0, -10 and tau = 0.05.
    squared = (Hinge(beta=0.1)(POLICY, REFERENCE) / 0.1) ** 2
    assert IPO(tau=0.05, average=False)(POLICY, REFERENCE).tolist() == pytest.approx(squared.tolist())


def test_at_its_target_there_is_no_gradient_and_beyond_it_pulls_back() -> None:
    # tau = 0.25: the target is 2 nats per token.  Means 4 / 2 - 0 = 2, and 6 / 2 - 0 = 3: 2 (3 - 2) / 2 = 1.
    policy = PairLogps(logps([4.0, 6.0], [2.0, 2.0]), logps([0.0, 0.0], [4.0, 4.0]))
    zero = PairLogps(logps([0.0, 0.0], [2.0, 2.0]), logps([0.0, 0.0], [4.0, 4.0]))
    _, gradient = evaluated(IPO(tau=0.25), policy, zero)
    assert gradient[0].tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize(("tau", "average"), [(0.1, True), (0.5, True), (0.1, False), (1.0, False)])
def test_a_second_implementation_agrees(tau: float, average: bool) -> None:
    pairs = draw_pairs()
    expected = []
    for p in pairs:
        n_w, n_l = (p.n_w, p.n_l) if average else (1, 1)
        expected.append((p.r_w / n_w - p.r_l / n_l - 1 / (2 * tau)) ** 2)
    assert_agrees(IPO(tau=tau, average=average)(*both(pairs)), expected)


@pytest.mark.parametrize("average", [True, False])
def test_the_gradient_is_that_of_finite_differences(average: bool) -> None:
    assert_slopes(IPO(tau=0.5, average=average), POLICY, REFERENCE)
    assert_slopes(IPO(average=average))


def test_the_loss_stays_finite_far_away() -> None:
    assert_finite_far_away(IPO())


def test_its_rewards_are_scaled_by_tau() -> None:
    assert IPO(tau=0.25).reward_scale == 0.25


@pytest.mark.parametrize("wrong", [{"tau": 0.0}, {"tau": -0.1}, {"beta": 0.1}, {"average": 1}, {"average": None}])
def test_constants_outside_of_the_paper_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        IPO(**wrong)  # type: ignore[arg-type]
