"""The views of a micro-batch: which of its completions a loss sees, and how much each example weighs.

A micro-batch is a list of rows; its completions lie flat, row after row. A view turns their log-probabilities into what
a loss of that view reads. Weights are not yet divided by the whole step's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.data import views
from training.data.encode import Encoded
from training.losses.base import Logps, LossSettings, PairLogps, RankedLogps, RatedLogps

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Flat:
    """Log-probabilities of all completions of a micro-batch, shape (completions,); ``reference`` totals or None."""

    policy: Logps
    reference: "Tensor | None"
    baseline: "Tensor | None" = None

    def at(self, places: Any) -> tuple[Logps, Logps | None]:
        """(policy, reference) at some places; the shape is that of ``places``."""
        policy = Logps(self.policy.total[places], self.policy.length[places])
        if self.reference is None:
            return policy, None
        return policy, Logps(self.reference[places], policy.length)


class View:
    """How rows become examples. ``weight(row)`` is what a row's examples weigh together, 0 where it has none."""

    def weight(self, row: Encoded) -> float:
        raise NotImplementedError

    def preferred(self, row: Encoded) -> list[tuple[int, float]]:
        """(place, weight) of the completions whose likelihood the NLL term raises."""
        raise NotImplementedError

    def losses(self, loss: Any, rows: Sequence[Encoded], flat: Flat) -> tuple["Tensor", "Tensor"]:
        """(loss, weight) of every example, shape (examples,)."""
        raise NotImplementedError


class Pairs(View):
    """Every two completions of different grade; a row's pairs share its weight, so that a prompt counts once."""

    def weight(self, row: Encoded) -> float:
        return row.weight if views.pairs(row) else 0.0

    def preferred(self, row: Encoded) -> list[tuple[int, float]]:
        found = views.pairs(row)
        return [(better, row.weight / len(found)) for better, _ in found]

    def losses(self, loss: Any, rows: Sequence[Encoded], flat: Flat) -> tuple["Tensor", "Tensor"]:
        policy, reference, weight = self.pairs(rows, flat)
        return loss(policy, reference), weight

    def pairs(self, rows: Sequence[Encoded], flat: Flat) -> tuple[PairLogps, PairLogps | None, "Tensor"]:
        """(policy, reference, weight) of every pair."""
        import torch

        found = [
            (
                start + i,
                start + j,
                row.grades[i] - row.grades[j] if row.kind == "score" else float("nan"),
                row.weight / len(places),
            )
            for start, row in _starts(rows)
            for places in [views.pairs(row)]
            for i, j in places
        ]
        device = flat.policy.total.device
        better, worse = (torch.tensor([pair[k] for pair in found], dtype=torch.long, device=device) for k in (0, 1))
        gap, weight = (torch.tensor([pair[k] for pair in found], device=device) for k in (2, 3))
        (chosen, chosen_reference), (rejected, rejected_reference) = flat.at(better), flat.at(worse)
        reference = None
        if chosen_reference is not None and rejected_reference is not None:
            reference = PairLogps(chosen_reference, rejected_reference)
        return PairLogps(chosen, rejected, gap), reference, weight


class Ratings(View):
    """Single completions, desirable or not; each weighs what its row weighs."""

    def __init__(self, desirable_from: float | None) -> None:
        self.desirable_from = desirable_from

    def rated(self, row: Encoded) -> list[tuple[int, bool]]:
        return views.ratings(row, self.desirable_from)

    def weight(self, row: Encoded) -> float:
        return row.weight * len(self.rated(row))

    def preferred(self, row: Encoded) -> list[tuple[int, float]]:
        return [(place, row.weight) for place, desirable in self.rated(row) if desirable]

    def losses(self, loss: Any, rows: Sequence[Encoded], flat: Flat) -> tuple["Tensor", "Tensor"]:
        places, desirable, weight = self.ratings(rows, flat.policy.total.device)
        policy, reference = flat.at(places)
        other = RatedLogps(reference, desirable) if reference is not None else None
        return loss(RatedLogps(policy, desirable, flat.baseline), other), weight

    def ratings(self, rows: Sequence[Encoded], device: Any) -> tuple["Tensor", "Tensor", "Tensor"]:
        """(places, desirable, weight) of every rating, shape (ratings,)."""
        import torch

        found = [
            (start + place, desirable, row.weight)
            for start, row in _starts(rows)
            for place, desirable in self.rated(row)
        ]
        places, desirable, weight = (
            torch.tensor([rating[k] for rating in found], dtype=dtype, device=device)
            for k, dtype in enumerate((torch.long, torch.bool, torch.float32))
        )
        return places, desirable, weight


class Rankings(View):
    """All graded completions of a prompt at once."""

    def weight(self, row: Encoded) -> float:
        return row.weight if views.ranking(row) else 0.0

    def preferred(self, row: Encoded) -> list[tuple[int, float]]:
        best = [place for place in views.ranking(row) if row.grades[place] == max(row.grades)]
        return [(place, row.weight / len(best)) for place in best]

    def losses(self, loss: Any, rows: Sequence[Encoded], flat: Flat) -> tuple["Tensor", "Tensor"]:
        import torch

        ranked = [(start, row) for start, row in _starts(rows) if views.ranking(row)]
        device = flat.policy.total.device
        if not ranked:
            return torch.zeros(0, device=device), torch.zeros(0, device=device)
        k = max(len(row.grades) for _, row in ranked)
        places = torch.zeros((len(ranked), k), dtype=torch.long)
        grade = torch.full((len(ranked), k), float("-inf"))
        for i, (start, row) in enumerate(ranked):
            places[i, : len(row.grades)] = torch.arange(start, start + len(row.grades))
            # Only the order counts: ranks within the row are exact where a float32 might tie two close scores.
            order = sorted(set(row.grades))
            grade[i, : len(row.grades)] = torch.tensor([float(order.index(value)) for value in row.grades])
        grade, places = grade.to(device), places.to(device)
        absent = grade == float("-inf")
        policy, reference = flat.at(places)
        other = RankedLogps(_filled(reference, absent), grade) if reference is not None else None
        weight = torch.tensor([row.weight for _, row in ranked], device=device)
        return loss(RankedLogps(_filled(policy, absent), grade), other), weight


def _filled(logps: Logps, absent: "Tensor") -> Logps:
    return Logps(logps.total.masked_fill(absent, 0.0), logps.length.masked_fill(absent, 1.0))


def _starts(rows: Sequence[Encoded]) -> list[tuple[int, Encoded]]:
    """(place of the first completion, row)."""
    starts, place = [], 0
    for row in rows:
        starts.append((place, row))
        place += len(row.completions)
    return starts


def preferred(view: View, rows: Sequence[Encoded]) -> list[tuple[int, float]]:
    """(flat place, weight) of all preferred completions of a micro-batch."""
    return [(start + place, weight) for start, row in _starts(rows) for place, weight in view.preferred(row)]


def view_of(loss: LossSettings, desirable_from: float | None) -> View:
    """The view that a loss declares."""
    views: dict[str, View] = {"pairs": Pairs(), "ratings": Ratings(desirable_from), "rankings": Rankings()}
    return views[loss.view]


def why_not(loss: LossSettings, view: View, rows: Sequence[Encoded]) -> str | None:
    """Why a loss cannot be trained on these rows, or None."""
    if loss.needs_scores and (
        unscored := next((row for row in rows if view.weight(row) and row.kind != "score"), None)
    ):
        return (
            f"it needs a score for each completion, and record {unscored.record_id} has a {unscored.kind}; use dpo, or give "
            "data with 'score'"
        )
    if any(view.weight(row) for row in rows):
        return None
    kinds = ", ".join(sorted({row.kind or "no grades" for row in rows})) or "no rows"
    needed = {
        "pairs": "two completions of one prompt with different grades",
        "ratings": "a label, or a score or rank that differs from the others of its prompt (or 'desirable_from')",
        "rankings": "completions of one prompt with different grades",
    }[loss.view]
    return f"no row can be seen as {loss.view}: it takes {needed}; found {len(rows)} row(s) with {kinds}"
