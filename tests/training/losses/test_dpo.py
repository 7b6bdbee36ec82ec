"""DPO, arXiv 2305.18290 equation 7, and its label smoothing (cDPO)."""

import math

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
    log_sigmoid,
    logps,
)
from training.losses.base import PairLogps
from training.losses.dpo import DPO


def test_dpo_is_the_equation_worked_by_hand() -> None:
    # D = 7, 0, -10; beta D = 0.7, 0, -1; lengths differ and mean nothing.
    # -ln sigmoid(x) = ln(1 + e^-x):  ln(1 + e^-0.7) = ln 1.496585 = 0.403186;  ln 2;  ln(1 + e) = 1.313262
    found = DPO(beta=0.1)(POLICY, REFERENCE)
    assert found.tolist() == pytest.approx([0.403186, 0.693147, 1.313262], abs=1e-6)


def test_label_smoothing_mixes_both_signs() -> None:
    # -ln sigmoid(-x) = x - ln sigmoid(x), so the loss is dpo + epsilon beta D: 0.403186 + 0.1 * 0.7, …, 1.313262 - 0.1
    found = DPO(beta=0.1, label_smoothing=0.1)(POLICY, REFERENCE)
    assert found.tolist() == pytest.approx([0.473186, 0.693147, 1.213262], abs=1e-6)


def test_no_label_smoothing_is_dpo_exactly() -> None:
    margin = 0.3 * ((POLICY.chosen.total - REFERENCE.chosen.total) - (POLICY.rejected.total - REFERENCE.rejected.total))
    found = DPO(beta=0.3, label_smoothing=0.0)(POLICY, REFERENCE)
    assert torch.equal(found, -torch.nn.functional.logsigmoid(margin))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_the_loss_is_ln_2_where_policy_and_reference_agree(beta: float, smoothing: float) -> None:
    found = DPO(beta=beta, label_smoothing=smoothing)(REFERENCE, REFERENCE)
    assert found.tolist() == pytest.approx([math.log(2)] * 3)


def test_a_smoothed_pair_pulls_back_where_the_margin_exceeds_the_odds_of_its_label() -> None:
    # The minimum lies where sigmoid(beta D) = 1 - epsilon: for epsilon = 0.2 at beta D = ln 4.
    total = torch.tensor([math.log(4)], dtype=torch.float64, requires_grad=True)
    zero = logps([0.0], [1.0])
    DPO(beta=1.0, label_smoothing=0.2)(
        PairLogps(type(zero)(total, zero.length), zero), PairLogps(zero, zero)
    ).backward()
    assert total.grad is not None and float(total.grad) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("beta", "smoothing"), [(0.1, 0.0), (0.5, 0.25), (1.0, 0.4)])
def test_a_second_implementation_agrees(beta: float, smoothing: float) -> None:
    pairs = draw_pairs()
    expected = [
        -(1 - smoothing) * log_sigmoid(beta * (p.r_w - p.r_l)) - smoothing * log_sigmoid(-beta * (p.r_w - p.r_l))
        for p in pairs
    ]
    assert_agrees(DPO(beta=beta, label_smoothing=smoothing)(*both(pairs)), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
def test_the_gradient_is_that_of_finite_differences(smoothing: float) -> None:
    assert_slopes(DPO(beta=0.5, label_smoothing=smoothing), POLICY, REFERENCE)
    assert_slopes(DPO(beta=0.5, label_smoothing=smoothing))


def test_the_loss_stays_finite_far_away() -> None:
    # beta D = 0.1 * ±1e4 = ±1000, where exp would overflow: the loss is 0 and 1000.
    far = PairLogps(logps([1e4, 0.0], [1.0, 1.0]), logps([0.0, 1e4], [1.0, 1.0]))
    zero = PairLogps(logps([0.0, 0.0], [1.0, 1.0]), logps([0.0, 0.0], [1.0, 1.0]))
    assert DPO(beta=0.1)(far, zero).tolist() == [0.0, 1000.0]
    assert_finite_far_away(DPO(label_smoothing=0.1))


@pytest.mark.parametrize(
    "wrong", [{"beta": 0.0}, {"beta": -1.0}, {"beta": math.inf}, {"label_smoothing": 0.5}, {"tau": 1.0}]
)
def test_constants_outside_of_the_paper_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        DPO(**wrong)  # type: ignore[arg-type]
