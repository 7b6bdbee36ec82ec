"""Hinge loss over implicit rewards, arXiv 2309.06657."""

import dataclasses

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
)
from training.losses.hinge import Hinge
from training.losses.odpo import ODPO


def test_hinge_is_the_equation_worked_by_hand() -> None:
    # D = 7, 0, -10.  beta = 0.1: 1 - 0.7 = 0.3, 1 - 0, 1 + 1.  beta = 1: 1 - 7 < 0 gives 0, then 1, 1 + 10.
    assert Hinge(beta=0.1)(POLICY, REFERENCE).tolist() == pytest.approx([0.3, 1.0, 2.0])
    assert Hinge(beta=1.0)(POLICY, REFERENCE).tolist() == pytest.approx([0.0, 1.0, 11.0])


def test_a_pair_beyond_the_margin_has_no_gradient() -> None:
    _, gradient = evaluated(Hinge(beta=1.0), POLICY, REFERENCE)
    assert gradient.tolist() == [[0.0, -1.0, -1.0], [0.0, 1.0, 1.0]]


def test_it_is_the_limit_of_an_ever_steeper_dpo_with_an_offset_of_one() -> None:
    # -ln sigmoid(t (beta D - 1)) / t -> max(0, 1 - beta D); the distance is at most ln 2 / t.
    policy = dataclasses.replace(POLICY, gap=torch.ones(3, dtype=torch.float64))
    steep = ODPO(beta=0.1 * 1e6, alpha=1e6, f="identity")(policy, REFERENCE) / 1e6
    assert steep.tolist() == pytest.approx(Hinge(beta=0.1)(POLICY, REFERENCE).tolist(), abs=1e-6)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_a_second_implementation_agrees(beta: float) -> None:
    pairs = draw_pairs()
    assert_agrees(Hinge(beta=beta)(*both(pairs)), [max(0.0, 1 - beta * (p.r_w - p.r_l)) for p in pairs])


def test_the_gradient_is_that_of_finite_differences() -> None:
    assert_slopes(Hinge(beta=0.1), POLICY, REFERENCE)
    assert_slopes(Hinge(beta=0.3))


def test_the_loss_stays_finite_far_away() -> None:
    assert_finite_far_away(Hinge())


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"beta": -0.1}, {"gamma": 1.0}])
def test_constants_outside_of_the_paper_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Hinge(**wrong)  # type: ignore[arg-type]
