"""Every loss worked by hand, and its gradient against finite differences."""

import math

import pytest
import torch

from training.losses.base import Logps, PairLogps
from training.losses.dpo import DPO

# Three pairs: summed log-probabilities in nats of policy (chosen, rejected) and reference (chosen, rejected).
#   1. r_w = -10 + 12 = 2, r_l = -20 + 15 = -5, D = 7, beta D = 0.7
#   2. r_w = r_l = 0,                           D = 0
#   3. r_w = -9 + 5 = -4,  r_l = -2 + 8 = 6,    D = -10, beta D = -1
POLICY = ([-10.0, -3.0, -9.0], [-20.0, -4.0, -2.0])
REFERENCE = ([-12.0, -3.0, -5.0], [-15.0, -4.0, -8.0])


def logps(chosen: object, rejected: object) -> PairLogps:
    """The lengths are odd on purpose: DPO sums over tokens and must not look at them."""
    totals = [torch.as_tensor(values, dtype=torch.float64) for values in (chosen, rejected)]
    return PairLogps(*(Logps(total, torch.full_like(total, 3.0 + i)) for i, total in enumerate(totals)))


def test_dpo_is_the_equation_worked_by_hand() -> None:
    # -ln sigmoid(x) = ln(1 + e^-x):  ln(1 + e^-0.7) = ln 1.496585 = 0.403186;  ln 2;  ln(1 + e) = 1.313262
    found = DPO(beta=0.1)(logps(*POLICY), logps(*REFERENCE))
    assert found.tolist() == pytest.approx([0.403186, 0.693147, 1.313262], abs=1e-6)


def test_label_smoothing_mixes_both_signs() -> None:
    # -ln sigmoid(-x) = x - ln sigmoid(x), so the loss is dpo + epsilon beta D: 0.403186 + 0.1 * 0.7, …, 1.313262 - 0.1
    found = DPO(beta=0.1, label_smoothing=0.1)(logps(*POLICY), logps(*REFERENCE))
    assert found.tolist() == pytest.approx([0.473186, 0.693147, 1.213262], abs=1e-6)


def test_no_label_smoothing_is_dpo_exactly() -> None:
    policy, reference = logps(*POLICY), logps(*REFERENCE)
    margin = 0.3 * ((policy.chosen.total - reference.chosen.total) - (policy.rejected.total - reference.rejected.total))
    found = DPO(beta=0.3, label_smoothing=0.0)(policy, reference)
    assert torch.equal(found, -torch.nn.functional.logsigmoid(margin))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_the_loss_is_ln_2_where_policy_and_reference_agree(beta: float, smoothing: float) -> None:
    found = DPO(beta=beta, label_smoothing=smoothing)(logps(*REFERENCE), logps(*REFERENCE))
    assert found.tolist() == pytest.approx([math.log(2)] * 3)


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
def test_the_gradient_is_that_of_finite_differences(smoothing: float) -> None:
    loss, step = DPO(beta=0.5, label_smoothing=smoothing), 1e-6
    chosen, rejected = (torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in POLICY)
    loss(logps(chosen, rejected), logps(*REFERENCE)).sum().backward()
    for values, other, first in ((chosen, rejected, True), (rejected, chosen, False)):
        assert values.grad is not None
        for i in range(3):
            ends = []
            for sign in (1, -1):
                moved = values.detach().clone()
                moved[i] += sign * step
                pair = logps(moved, other.detach()) if first else logps(other.detach(), moved)
                ends.append(float(loss(pair, logps(*REFERENCE)).sum()))
            assert float(values.grad[i]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)


def test_the_loss_stays_finite_far_away() -> None:
    # beta D = 0.1 * ±1e4 = ±1000, where exp would overflow: the loss is 0 and 1000.
    zero = logps([0.0, 0.0], [0.0, 0.0])
    found = DPO(beta=0.1)(logps([1e4, 0.0], [0.0, 1e4]), zero)
    assert found.tolist() == [0.0, 1000.0]


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"beta": -1.0}, {"label_smoothing": 0.5}, {"tau": 1.0}])
def test_constants_outside_of_the_paper_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        DPO(**wrong)  # type: ignore[arg-type]
