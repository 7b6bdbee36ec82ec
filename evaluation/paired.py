"""Paired one-sided tests of a difference between two models measured on the same items. Pure; larger is better.

H0: difference <= bound  against  H1: difference > bound, where difference = mean(challenger) - mean(champion).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Test:
    """A test's outcome: the observed difference, its one-sided lower confidence bound, p-value, items, items needed.

    ``items_needed``: items of the same kind at which the test would decide with 80 % power, if the difference seen is
    the true one; None where more items cannot be expected to help.
    """

    __test__ = False  # not a test case, whatever its name

    method: str
    difference: float
    lower: float
    p_value: float
    n: int
    items_needed: int | None


def compare(challenger: Sequence[float], champion: Sequence[float], bound: float, alpha: float) -> Test:
    """The test that suits the values: 0/1 items McNemar (bound 0) or Tango, others the paired t-test.

    Raises ValueError on unequal lengths or fewer than two items.
    """
    if len(challenger) != len(champion):
        raise ValueError(f"{len(challenger)} and {len(champion)} values are no pairs")
    if len(challenger) < 2:
        raise ValueError(f"{len(challenger)} item is too few; a comparison needs at least two")
    differences = [x - y for x, y in zip(challenger, champion, strict=True)]
    needed = _items_needed(differences, bound, alpha)
    n = len(differences)
    if -1 < bound < 1 and all(value in (0.0, 1.0) for values in (challenger, champion) for value in values):
        gained, lost = differences.count(1.0), differences.count(-1.0)
        lower = tango_lower(gained, lost, n, alpha)
        if bound == 0:
            return Test("McNemar", (gained - lost) / n, lower, mcnemar(gained, lost), n, needed)
        p = 1 - _NORMAL.cdf(tango(gained, lost, n, bound))
        return Test("Tango", (gained - lost) / n, lower, p, n, needed)
    mean, p, lower = paired_t(differences, bound, alpha)
    return Test("paired t", mean, lower, p, n, needed)


def mcnemar(gained: int, lost: int) -> float:
    """Exact one-sided p-value of McNemar's test (1947): P(X >= gained), X ~ Binomial(gained + lost, 1/2).

    ``gained``: items that only the challenger has right; ``lost``: only the champion.
    """
    n = gained + lost
    term = math.comb(n, gained)
    tail = 0
    for k in range(gained, n + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return tail / (1 << n)


def tango(gained: int, lost: int, n: int, bound: float) -> float:
    """Tango's score statistic for paired proportions (Tango, Statistics in Medicine 17, 1998, 891-908).

    b = gained, c = lost, delta = bound, H0: p_b - p_c = delta:

        Z = (b - c - n delta) / sqrt(n (2 q + delta (1 - delta)))
        q = (sqrt(B^2 - 4 A C) - B) / (2 A)      the maximum likelihood estimate of p_c under H0
        A = 2 n,  B = -b - c + (2 n - b + c) delta,  C = -c delta (1 - delta)

    Large Z speaks for a difference above ``bound``. Raises ValueError outside -1 < bound < 1.
    """
    if not -1 < bound < 1:
        raise ValueError(f"a difference of proportions lies between -1 and 1; found the bound {bound}")
    a = 2 * n
    b = -gained - lost + (2 * n - gained + lost) * bound
    c = -lost * bound * (1 - bound)
    q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    spread = n * (2 * q + bound * (1 - bound))
    distance = gained - lost - n * bound
    if spread <= 1e-12:
        return math.copysign(math.inf, distance) if abs(distance) > 1e-9 else 0.0
    return distance / math.sqrt(spread)


def tango_lower(gained: int, lost: int, n: int, alpha: float) -> float:
    """The one-sided lower confidence bound: the largest delta that Tango's test rejects at ``alpha`` (bisection)."""
    quantile = _NORMAL.inv_cdf(1 - alpha)
    low, high = -1 + 1e-12, min((gained - lost) / n, 1 - 1e-12)
    if tango(gained, lost, n, low) <= quantile:
        return -1.0
    for _ in range(60):
        middle = (low + high) / 2
        if tango(gained, lost, n, middle) > quantile:
            low = middle
        else:
            high = middle
    return low


def paired_t(differences: Sequence[float], bound: float, alpha: float) -> tuple[float, float, float]:
    """(mean, one-sided p-value, lower confidence bound) of Student's paired test; t = (mean - bound) / (s / sqrt n)."""
    n, mean, spread = len(differences), fmean(differences), math.sqrt(variance(differences) / len(differences))
    if spread == 0:
        return mean, 0.0 if mean > bound else 1.0, mean
    import scipy.special as special  # type: ignore[import-untyped, unused-ignore]

    p = float(special.stdtr(n - 1, -(mean - bound) / spread))
    return mean, p, mean - float(special.stdtrit(n - 1, 1 - alpha)) * spread


def _items_needed(differences: Sequence[float], bound: float, alpha: float, power: float = 0.8) -> int | None:
    """n = (z_alpha + z_power)^2 s^2 / (mean - bound)^2; with no item differing, (1 - |bound|)^n <= alpha."""
    effect, spread = fmean(differences) - bound, variance(differences)
    if effect <= 0:
        return None
    if spread == 0:
        return math.ceil(math.log(alpha) / math.log1p(-min(abs(bound), 0.5))) if bound < 0 else None
    return math.ceil((_NORMAL.inv_cdf(1 - alpha) + _NORMAL.inv_cdf(power)) ** 2 * spread / effect**2)
