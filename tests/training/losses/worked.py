"""What the tests of the losses share: worked pairs, random draws, finite differences, values far away.

Everything is float64 unless said otherwise. Draws are plain numbers, so that a test can write a loss a second time with
``math`` alone, from the paper, and compare.
"""

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from training.losses.base import Logps, LossSettings, PairLogps, RankedLogps, RatedLogps

Numbers = Sequence[float] | Tensor


def tensor(values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    return values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)


def logps(totals: Any, lengths: Any, dtype: torch.dtype = torch.float64) -> Logps:
    return Logps(tensor(totals, dtype), tensor(lengths, dtype))


# Three pairs: summed log-probabilities in nats and lengths in tokens.
#    chosen: policy, reference, r_w, |y_w|    rejected: policy, reference, r_l, |y_l|      D
#   1.          -10        -12    2      5                  -20        -15   -5      8      7
#   2.           -3         -3    0      2                   -4         -4    0      4      0
#   3.           -9         -5   -4      3                   -2         -8    6      2    -10
CHOSEN, REJECTED = ([-10.0, -3.0, -9.0], [5.0, 2.0, 3.0]), ([-20.0, -4.0, -2.0], [8.0, 4.0, 2.0])
POLICY = PairLogps(logps(*CHOSEN), logps(*REJECTED))
REFERENCE = PairLogps(logps([-12.0, -3.0, -5.0], CHOSEN[1]), logps([-15.0, -4.0, -8.0], REJECTED[1]))


@dataclasses.dataclass(frozen=True)
class Pair:
    """A random pair: log-probabilities of policy and reference, lengths, and the difference of scores."""

    l_w: float
    l_l: float
    ref_w: float
    ref_l: float
    n_w: float
    n_l: float
    gap: float

    @property
    def r_w(self) -> float:
        return self.l_w - self.ref_w

    @property
    def r_l(self) -> float:
        return self.l_l - self.ref_l


def draw_pairs(count: int = 200, seed: int = 0) -> list[Pair]:
    """Nats per token around -1, log-ratios of some nats, lengths from 1 to 40."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        n_w, n_l = rng.randint(1, 40), rng.randint(1, 40)
        l_w, l_l = -n_w * rng.uniform(0.05, 2), -n_l * rng.uniform(0.05, 2)
        pairs.append(
            Pair(l_w, l_l, l_w + rng.gauss(0, 5), l_l + rng.gauss(0, 5), n_w, n_l, rng.choice([0.25, 1.0, 3.0, 8.0]))
        )
    return pairs


def both(pairs: Sequence[Pair]) -> tuple[PairLogps, PairLogps]:
    """Policy and reference of drawn pairs."""
    policy = PairLogps(
        logps([p.l_w for p in pairs], [p.n_w for p in pairs]),
        logps([p.l_l for p in pairs], [p.n_l for p in pairs]),
        tensor([p.gap for p in pairs]),
    )
    return policy, PairLogps(
        logps([p.ref_w for p in pairs], [p.n_w for p in pairs]), logps([p.ref_l for p in pairs], [p.n_l for p in pairs])
    )


@dataclasses.dataclass(frozen=True)
class Ranking:
    """A random ranking: one number per completion that is there."""

    totals: list[float]
    reference: list[float]
    lengths: list[float]
    grades: list[float]


def draw_rankings(count: int = 200, seed: int = 0) -> list[Ranking]:
    """Two to five completions each, with ties; never all tied."""
    rng = random.Random(seed)
    rankings: list[Ranking] = []
    while len(rankings) < count:
        k = rng.randint(2, 5)
        lengths = [float(rng.randint(1, 40)) for _ in range(k)]
        totals = [-n * rng.uniform(0.05, 2) for n in lengths]
        grades = [float(rng.randint(1, 4)) for _ in range(k)]
        if len(set(grades)) > 1:
            rankings.append(Ranking(totals, [t + rng.gauss(0, 5) for t in totals], lengths, grades))
    return rankings


def filled(rankings: Sequence[Ranking], dtype: torch.dtype = torch.float64) -> tuple[RankedLogps, RankedLogps]:
    """Policy and reference of drawn rankings, filled up to the longest: grade -inf, total 0, length 1."""
    k = max(len(r.grades) for r in rankings)

    def fill(values: list[float], filling: float) -> list[float]:
        return values + [filling] * (k - len(values))

    lengths = [fill(r.lengths, 1.0) for r in rankings]
    grade = tensor([fill(r.grades, -math.inf) for r in rankings], dtype)
    policy, reference = (
        RankedLogps(logps([fill(values, 0.0) for values in totals], lengths, dtype), grade)
        for totals in ([r.totals for r in rankings], [r.reference for r in rankings])
    )
    return policy, reference


def examples(loss: LossSettings, count: int = 12, seed: int = 1) -> tuple[Any, Any]:
    """Policy and reference (None for a reference-free loss) in the view of any loss."""
    policy: Any
    reference: Any
    match loss.view:
        case "pairs":
            policy, reference = both(draw_pairs(count, seed))
        case "ratings":
            pairs = draw_pairs(count, seed)
            desirable = torch.tensor([i % 3 > 0 for i in range(count)])
            whole, other = both(pairs)
            policy = RatedLogps(whole.chosen, desirable, tensor(0.75))
            reference = RatedLogps(other.chosen, desirable)
        case "rankings":
            policy, reference = filled(draw_rankings(count, seed))
    return policy, reference if loss.needs_reference else None


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor of one or more dimensions changed."""
    if isinstance(value, Tensor):
        return change(value) if value.dim() else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: mapped(getattr(value, f.name), change) for f in dataclasses.fields(value)})
    return value


def with_totals(policy: Any, totals: Tensor) -> Any:
    """The policy's logps with other totals: (2, batch) for pairs, else in the shape of the totals."""
    if isinstance(policy, PairLogps):
        chosen, rejected = (
            Logps(t, one.length) for t, one in zip(totals, (policy.chosen, policy.rejected), strict=True)
        )
        return dataclasses.replace(policy, chosen=chosen, rejected=rejected)
    return dataclasses.replace(policy, completions=Logps(totals, policy.completions.length))


def totals_of(policy: Any) -> Tensor:
    """A fresh leaf with the policy's totals, to differentiate by."""
    one = (policy.chosen, policy.rejected) if isinstance(policy, PairLogps) else None
    totals = torch.stack([c.total for c in one]) if one else policy.completions.total
    return totals.detach().clone().requires_grad_()


def evaluated(loss: Any, policy: Any, reference: Any) -> tuple[Tensor, Tensor]:
    """The losses, and the gradient of their sum by the policy's totals (shape as in ``with_totals``)."""
    totals = totals_of(policy)
    losses = loss(with_totals(policy, totals), reference)
    losses.sum().backward()
    assert totals.grad is not None
    return losses.detach(), totals.grad


def assert_slopes(loss: Any, policy: Any = None, reference: Any = None, step: float = 1e-5) -> None:
    """The gradient is that of central finite differences, in every total of the policy."""
    if policy is None:
        policy, reference = examples(loss)
    _, gradient = evaluated(loss, policy, reference)
    at = totals_of(policy).detach()
    for i in range(at.numel()):
        ends = []
        for sign in (1, -1):
            moved = at.clone()
            moved.view(-1)[i] += sign * step
            ends.append(float(loss(with_totals(policy, moved), reference).sum()))
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert float(gradient.view(-1)[i]) == pytest.approx(numeric, rel=1e-5, abs=1e-7)
    assert bool((gradient != 0).any())


def assert_agrees(found: Tensor, expected: Sequence[float]) -> None:
    """Equal to a second implementation, within what the naive formula itself loses."""
    assert found.dtype == torch.float64 and found.shape == (len(expected),)
    assert found.tolist() == pytest.approx(list(expected), rel=1e-9, abs=1e-9)


def assert_finite_far_away(loss: Any) -> None:
    """Log-ratios of ±1e4, probabilities of 1 and next to it, lengths 1 and 1000: values and gradients are finite."""
    far = [0.0, -1e-30, -1e-12, -1e-6, -1.0, -1e4]
    for dtype in (torch.float32, torch.float64):
        cases = [(a, b, c, d, n, m) for a in far for b in far for c in (0.0, -1e4) for d in (0.0, -1e4)
                 for n in (1.0, 1000.0) for m in (1.0, 1000.0)]  # fmt: skip
        l_w, l_l, ref_w, ref_l, n_w, n_l = torch.tensor(cases, dtype=dtype).unbind(1)
        policy: Any
        reference: Any
        match loss.view:
            case "pairs":
                gap = torch.tensor([0.0, 1e-30, 1.0, 1e4], dtype=dtype).repeat(len(cases) // 4)
                policy = PairLogps(Logps(l_w, n_w), Logps(l_l, n_l), gap)
                reference = PairLogps(Logps(ref_w, n_w), Logps(ref_l, n_l))
            case "ratings":
                desirable = torch.arange(len(cases)) % 2 == 0
                policy = RatedLogps(Logps(l_w, n_w), desirable, torch.tensor(1e4, dtype=dtype))
                reference = RatedLogps(Logps(ref_w, n_w), desirable)
            case "rankings":
                zero, one = torch.zeros_like(l_w), torch.ones_like(l_w)
                lengths = torch.stack([n_w, n_l, n_w, one], 1)
                shapes = torch.tensor([[2.0, 1, 0], [1, 1, 0], [0, 1, 1], [1, 1, 1]], dtype=dtype)
                grade = shapes.repeat(len(cases) // 4, 1)
                grade = torch.cat([grade, torch.full_like(grade[:, :1], -math.inf)], 1)
                policy = RankedLogps(Logps(torch.stack([l_w, l_l, l_w, zero], 1), lengths), grade)
                reference = RankedLogps(Logps(torch.stack([ref_w, ref_l, ref_l, zero], 1), lengths), grade)
        losses, gradient = evaluated(loss, policy, reference if loss.needs_reference else None)
        assert losses.dtype == dtype
        assert bool(losses.isfinite().all()) and bool(gradient.isfinite().all())


def log_sigmoid(x: float) -> float:
    """As a paper writes it; good for moderate x."""
    return math.log(1 / (1 + math.exp(-x)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
