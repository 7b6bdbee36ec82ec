"""What an encoded row says as pairs, as ratings, as a ranking: each view's examples, or why there are none.

A row is one prompt with K graded completions. Graded or ranked completions become pairs, ratings and rankings; a pair
is a ranking of two; labels are ratings, and pairs where a prompt has both. What a row cannot say gives no example.
"""

from fractions import Fraction
from itertools import combinations

from training.data.encode import Encoded


def pairs(row: Encoded) -> list[tuple[int, int]]:
    """(better, worse) places of every two completions with different grades, best first. A tie is no pair."""
    places = sorted(range(len(row.grades)), key=lambda place: -row.grades[place])
    return [(i, j) for i, j in combinations(places, 2) if row.grades[i] > row.grades[j]]


def ratings(row: Encoded, desirable_from: float | None) -> list[tuple[int, bool]]:
    """(place, desirable) of every completion that can be rated.

    A label says it. A score of at least ``desirable_from`` is desirable. Ranks, and scores without that border, are
    relative: above the middle between the row's best and worst grade is desirable, below it is not, on it says nothing.
    """
    if row.kind == "label":
        return [(place, grade > 0.5) for place, grade in enumerate(row.grades)]
    if row.kind == "score" and desirable_from is not None:
        return [(place, grade >= desirable_from) for place, grade in enumerate(row.grades)]
    if not row.grades:
        return []
    # Exact, and of the numbers as they are written: 0.15 is the middle of 0.1 and 0.2, which in floats it is not.
    written = [Fraction(repr(grade)) for grade in row.grades]
    middle = (max(written) + min(written)) / 2
    return [(place, grade > middle) for place, grade in enumerate(written) if grade != middle]


def ranking(row: Encoded) -> list[int]:
    """The places of a row whose grades differ somewhere; none where all are tied."""
    return list(range(len(row.grades))) if len(set(row.grades)) > 1 else []
