"""What a row is to the other rows: a copy of an earlier one, the opposite of another one, a prompt that is held out.

The joins are sorts of numbers (``training.data.facts.keys``); no text is read, and nothing depends on how the rows are split
into segments.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.data.facts.keys import Edges

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Prompts:
    """The prompts of a part's rows: ``hi`` and ``lo`` of their digests, and which rows are records at all."""

    hi: "np.ndarray[Any, Any]"
    lo: "np.ndarray[Any, Any]"
    record: "np.ndarray[Any, Any]"  # bool


def occurrences(hi: "np.ndarray[Any, Any]", lo: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Per row the how-manieth of its id it is (float64): 1 for the first of equal ids, 2 for the next, …"""
    import numpy as np

    found = np.ones(len(hi))
    order, begins = _sorted(hi, lo)
    if begins.all():
        return found
    starts = np.flatnonzero(begins)
    place = np.arange(len(hi)) - starts[np.cumsum(begins) - 1]
    found[order] = place + 1.0
    return found


def contradictions(rows: int, edges: Edges) -> "np.ndarray[Any, Any]":
    """Per row how many of its preferences another row has the other way round (float64)."""
    import numpy as np

    count = len(edges.row)
    number = _numbered(
        np.concatenate([edges.edge_hi, edges.reverse_hi]), np.concatenate([edges.edge_lo, edges.reverse_lo])
    )
    edge, reverse = number[:count], number[count:]
    holders = np.bincount(edge, minlength=int(number.max()) + 1 if count else 0)
    holder = np.zeros(len(holders), "int64")
    holder[edge] = edges.row  # the only one, where there is one
    others = holders[reverse]
    # A row has an edge once, so two holders are two rows, of which at least one is another one.
    opposed = (others > 1) | ((others == 1) & (holder[reverse] != edges.row))
    return np.bincount(edges.row[opposed], minlength=rows).astype("float64")


def in_split(prompts: Prompts, part: str, share: float | None) -> "np.ndarray[Any, Any]":
    """Which rows of a part are held out (bool): records of 'holdout', and of 'preferences' those whose prompt's first 64
    bits, read as a number in [0, 1), are below ``share``; exactly as ``training.data.split`` decides."""
    import numpy as np

    if part == "holdout":
        return prompts.record.copy()
    if part != "preferences" or share is None:
        return np.zeros(len(prompts.hi), bool)
    return prompts.record & (prompts.hi < np.uint64(math.ceil(share * 2.0**64)))  # share < 1, and the product is exact


def prompts_in_holdout(prompts: Mapping[str, Prompts], share: float | None) -> "dict[str, np.ndarray[Any, Any]]":
    """Per part and row 1.0 where a training row's prompt is held out in any part, else 0.0 (float64).

    NaN for rows that are held out themselves and for lines that are no record.
    """
    import numpy as np

    held = {part: in_split(rows, part, share) for part, rows in prompts.items()}
    hi = np.concatenate([rows.hi[held[part]] for part, rows in prompts.items()])
    lo = np.concatenate([rows.lo[held[part]] for part, rows in prompts.items()])
    order, begins = _sorted(hi, lo)
    hi, lo = hi[order][begins], lo[order][begins]
    return {
        part: np.where(rows.record & ~held[part], _among(rows, hi, lo).astype("float64"), np.nan)
        for part, rows in prompts.items()
    }


# ------------------------------------------------------------------------------------------------ joins on 128 bits


def _sorted(hi: Any, lo: Any) -> "tuple[Any, Any]":
    """The order by (hi, lo), equal ones as they stand, and which places in that order begin a new key."""
    import numpy as np

    order = np.argsort(hi, kind="stable")
    first, second = hi[order], lo[order]
    begins = np.ones(len(hi), bool)
    same = first[1:] == first[:-1]
    begins[1:] = ~same
    if (same & (second[1:] != second[:-1])).any():  # two keys that share 64 bits
        order = np.lexsort((lo, hi))
        first, second = hi[order], lo[order]
        begins[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return order, begins


def _numbered(hi: Any, lo: Any) -> Any:
    """A number from 0 for each key, the same for equal keys."""
    import numpy as np

    order, begins = _sorted(hi, lo)
    number = np.empty(len(hi), "int64")
    number[order] = np.cumsum(begins) - 1
    return number


def _among(rows: Prompts, hi: Any, lo: Any) -> Any:
    """Which prompts are among the distinct keys (hi, lo), sorted by hi and then lo."""
    import numpy as np

    found = np.zeros(len(rows.hi), bool)
    place = np.searchsorted(hi, rows.hi)
    left = np.flatnonzero(place < len(hi))
    while len(left):  # again only where two keys share their first 64 bits
        left = left[hi[place[left]] == rows.hi[left]]
        found[left] |= lo[place[left]] == rows.lo[left]
        place[left] += 1
        left = left[~found[left] & (place[left] < len(hi))]
    return found
