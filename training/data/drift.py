"""How far a snapshot has moved from the last one of its experiment: counts by kind, compared by the population stability index.

The index of two mixes p (now) and q (before) is the sum over kinds of (p - q) ln(p / q) (Siddiqi, Credit Risk Scorecards,
2006; it is the Jeffreys divergence, Lin 1991). Usual reading: below 0.1 nothing has moved, above 0.25 a lot has. Shares are
those of counts with one half added to each kind, so that a kind which is new or gone counts and is not infinite
(Krichevsky and Trofimov 1981).
"""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# What is compared: kind → count, both as JSON has them.
Mix = dict[str, int]
MIXES = ("length", "label", "source", "language")


def histograms(
    rows: int,
    length: "np.ndarray[Any, Any]",
    label: Mix | None = None,
    source: Mix | None = None,
    language: Mix | None = None,
) -> dict[str, Any]:
    """What is kept of a snapshot or a part of one: a small JSON object without text (but names of sources and languages).

    ``length``: characters of each row, NaN for lines that are no record. Laws: adding up (``added``) the histograms of parts
    gives that of the whole; a mix that is None is never compared.
    """
    mixes = {"length": lengths(length), "label": label, "source": source, "language": language}
    return {"rows": rows, **{name: dict(sorted(mix.items())) for name, mix in mixes.items() if mix is not None}}


def lengths(characters: "np.ndarray[Any, Any]") -> Mix:
    """Counts by size, each kind twice as long as the one before: "0", "1" (1 character), "2" (2 to 3), "3" (4 to 7), …"""
    import numpy as np

    known = characters[~np.isnan(characters)]
    return _tallied(np.frexp(known)[1])  # the exponent of 2 that the number lies below; 0 for 0


def grades(chosen: "np.ndarray[Any, Any]", rejected: "np.ndarray[Any, Any]") -> Mix:
    """Counts of the best and the worst grades of rows: in tenths up to 1, in whole numbers up to 10, and beyond by powers
    of 2 (few kinds: each adds about 1 / rows to the index by chance). NaN is left out."""
    import numpy as np

    found: Mix = {}
    for side, values in (("chosen", chosen), ("rejected", rejected)):
        known = values[~np.isnan(values)]
        size = np.abs(known)
        near = np.where(size <= 1, np.round(known, 1), np.round(known)) + 0.0  # no negative zero
        powers = np.copysign(np.exp2(np.frexp(np.where(np.isfinite(size), size, 1.0))[1] - 1.0), known)
        kinds = {f"{side} ": near[size <= 10], f"{side} from ": powers[size > 10]}
        found |= {name + kind: count for name, some in kinds.items() for kind, count in _tallied(some).items()}
    return found


def _tallied(numbers: "np.ndarray[Any, Any]") -> Mix:
    """``counted`` of numbers: a million of them in no time."""
    import numpy as np

    found: Mix = {}
    for value, count in zip(*(side.tolist() for side in np.unique(numbers, return_counts=True)), strict=True):
        found[f"{value:g}"] = found.get(f"{value:g}", 0) + count
    return found


def counted(values: Iterable[Any]) -> Mix:
    """How often each value stands there, as text; None and NaN are left out."""
    found: Mix = {}
    for value in values:
        if value is not None and value == value:
            name = f"{value:g}" if isinstance(value, float) else str(value)
            found[name] = found.get(name, 0) + 1
    return found


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The histograms of two parts together."""
    total: dict[str, Any] = {"rows": one["rows"] + other["rows"]}
    for name in MIXES:
        if name in one or name in other:
            left, right = one.get(name, {}), other.get(name, {})
            kinds = sorted({*left, *right})
            total[name] = {kind: left.get(kind, 0) + right.get(kind, 0) for kind in kinds}
    return total


def drift(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, float]:
    """How far ``now`` is from ``before`` (both from ``histograms``, maybe through JSON), never negative.

    ``rows``: the absolute logarithm of the ratio of row counts (infinite where one has none). ``length``, ``label``, ``source``,
    ``language``: the population stability index; left out where one of the two has counted nothing.
    """
    found = {"rows": _rows(now["rows"], before["rows"])}
    for name in MIXES:
        if sum(now.get(name, {}).values()) and sum(before.get(name, {}).values()):
            found[name] = stability(now[name], before[name])
    return found


def stability(now: Mapping[str, int], before: Mapping[str, int]) -> float:
    """The population stability index of two mixes."""
    kinds = sorted({*now, *before})
    totals = [sum(mix.values()) + 0.5 * len(kinds) for mix in (now, before)]
    shares = [((now.get(kind, 0) + 0.5) / totals[0], (before.get(kind, 0) + 0.5) / totals[1]) for kind in kinds]
    return math.fsum((p - q) * math.log(p / q) for p, q in shares)


def _rows(now: int, before: int) -> float:
    if now == before:
        return 0.0
    return abs(math.log(now / before)) if now and before else math.inf
