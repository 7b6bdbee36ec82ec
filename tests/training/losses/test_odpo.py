"""DPO with an offset, arXiv 2402.10571."""

import dataclasses
import math
from typing import Any

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
    tensor,
)
from training.losses.dpo import DPO
from training.losses.odpo import ODPO

SCORED = dataclasses.replace(POLICY, gap=tensor([1.0, 4.0, 2.0]))


def test_odpo_is_the_equation_worked_by_hand() -> None:
    # beta D = 0.7, 0, -1; s_w - s_l = 1, 4, 2; alpha = 0.5, f = log.
    #   1. 0.5 ln 1 = 0:                         as dpo, 0.403186
    #   2. 0 - 0.5 ln 4 = -ln 2:                 ln(1 + 2) = 1.098612
    #   3. -1 - 0.5 ln 2: ln(1 + e sqrt 2) =     ln 4.844231 = 1.577788
    found = ODPO(beta=0.1, alpha=0.5)(SCORED, REFERENCE)
    assert found.tolist() == pytest.approx([0.403186, 1.098612, 1.577788], abs=1e-6)


def test_the_identity_takes_the_gap_as_it_is() -> None:
    # alpha = 0.5: 0.7 - 0.5 = 0.2, 0 - 2, -1 - 1:  ln(1 + e^-0.2) = 0.598139, ln(1 + e^2) = 2.126928, the same
    found = ODPO(beta=0.1, alpha=0.5, f="identity")(SCORED, REFERENCE)
    assert found.tolist() == pytest.approx([0.598139, 2.126928, 2.126928], abs=1e-6)


@pytest.mark.parametrize("f", ["log", "identity"])
def test_no_offset_is_dpo(f: Any) -> None:
    assert torch.equal(ODPO(beta=0.3, alpha=0.0, f=f)(SCORED, REFERENCE), DPO(beta=0.3)(SCORED, REFERENCE))


def test_a_gap_of_one_is_dpo_under_the_logarithm() -> None:
    policy = dataclasses.replace(POLICY, gap=tensor([1.0, 1.0, 1.0]))
    assert torch.equal(ODPO(beta=0.3, alpha=2.0)(policy, REFERENCE), DPO(beta=0.3)(policy, REFERENCE))


def test_a_pair_without_a_gap_teaches_almost_nothing_under_the_logarithm() -> None:
    # f(0) = -infinity: the margin that is asked for is met by any policy.
    policy = dataclasses.replace(POLICY, gap=tensor([0.0, -1.0, 0.0]))
    losses, gradient = evaluated(ODPO(), policy, REFERENCE)
    assert bool((losses < 1e-30).all()) and bool((gradient.abs() < 1e-30).all())


@pytest.mark.parametrize(("beta", "alpha", "f"), [(0.1, 1.0, "log"), (0.5, 0.5, "log"), (0.3, 0.2, "identity")])
def test_a_second_implementation_agrees(beta: float, alpha: float, f: Any) -> None:
    pairs = draw_pairs()
    scale = math.log if f == "log" else float
    expected = [-log_sigmoid(beta * p.r_w - beta * p.r_l - alpha * scale(p.gap)) for p in pairs]
    assert_agrees(ODPO(beta=beta, alpha=alpha, f=f)(*both(pairs)), expected)


def test_the_gradient_is_that_of_finite_differences() -> None:
    assert_slopes(ODPO(beta=0.1), SCORED, REFERENCE)
    assert_slopes(ODPO(beta=0.5, f="identity"))


def test_the_loss_stays_finite_far_away() -> None:
    assert_finite_far_away(ODPO())
    assert_finite_far_away(ODPO(f="identity"))


def test_it_asks_for_scores() -> None:
    assert ODPO.needs_scores
    with pytest.raises(AssertionError):
        ODPO()(POLICY, REFERENCE)


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"alpha": -1.0}, {"f": "sqrt"}, {"gamma": 1.0}])
def test_constants_outside_of_the_paper_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ODPO(**wrong)
