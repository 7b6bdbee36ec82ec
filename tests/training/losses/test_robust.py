"""Robust DPO, arXiv 2403.00409."""

import math

import pytest

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
from training.losses.robust import Robust


def test_robust_is_the_equation_worked_by_hand() -> None:
    # beta D = x = 0.7, 0, -1 and epsilon = 0.1; -ln sigmoid(x) = ln(1 + e^-x).
    #   1. (0.9 * 0.403186 - 0.1 * 1.103186) / 0.8 = 0.315686
    #   2. (0.9 * 0.693147 - 0.1 * 0.693147) / 0.8 = 0.693147
    #   3. (0.9 * 1.313262 - 0.1 * 0.313262) / 0.8 = 1.438262
    found = Robust(beta=0.1, label_smoothing=0.1)(POLICY, REFERENCE)
    assert found.tolist() == pytest.approx([0.315686, 0.693147, 1.438262], abs=1e-6)


def test_the_loss_may_be_negative() -> None:
    # x = 50, epsilon = 0.4: (0.6 * 0 - 0.4 * 50) / 0.2 = -100.
    pair = PairLogps(logps([50.0], [1.0]), logps([0.0], [1.0]))
    zero = PairLogps(logps([0.0], [1.0]), logps([0.0], [1.0]))
    assert Robust(beta=1.0, label_smoothing=0.4)(pair, zero).tolist() == pytest.approx([-100.0])


def test_no_flips_is_dpo() -> None:
    found = Robust(beta=0.3, label_smoothing=0.0)(POLICY, REFERENCE)
    assert found.tolist() == DPO(beta=0.3)(POLICY, REFERENCE).tolist()


def test_the_mean_over_flipped_labels_is_dpo_over_the_true_ones() -> None:
    # The paper's lemma: (1 - epsilon) loss(w, l) + epsilon loss(l, w) = dpo(w, l).
    loss, flips = Robust(beta=0.2, label_smoothing=0.3), 0.3
    flipped = loss(PairLogps(POLICY.rejected, POLICY.chosen), PairLogps(REFERENCE.rejected, REFERENCE.chosen))
    mean = (1 - flips) * loss(POLICY, REFERENCE) + flips * flipped
    assert mean.tolist() == pytest.approx(DPO(beta=0.2)(POLICY, REFERENCE).tolist())


@pytest.mark.parametrize(("beta", "epsilon"), [(0.1, 0.1), (0.5, 0.45), (1.0, 0.0)])
def test_a_second_implementation_agrees(beta: float, epsilon: float) -> None:
    pairs = draw_pairs()
    expected = []
    for p in pairs:
        x = beta * (p.r_w - p.r_l)
        expected.append((-(1 - epsilon) * log_sigmoid(x) + epsilon * log_sigmoid(-x)) / (1 - 2 * epsilon))
    assert_agrees(Robust(beta=beta, label_smoothing=epsilon)(*both(pairs)), expected)


def test_the_gradient_is_that_of_finite_differences() -> None:
    assert_slopes(Robust(beta=0.1), POLICY, REFERENCE)
    assert_slopes(Robust(beta=0.5, label_smoothing=0.3))


def test_the_loss_stays_finite_far_away() -> None:
    assert_finite_far_away(Robust(label_smoothing=0.4))


@pytest.mark.parametrize(
    "wrong", [{"beta": 0.0}, {"label_smoothing": 0.5}, {"label_smoothing": -0.1}, {"label_smoothing": math.nan}]
)
def test_constants_outside_of_the_paper_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Robust(**wrong)  # type: ignore[arg-type]
