"""Which rows an optimiser step sees, in which order, cut into micro-batches.

The order is a pure function of (seed, epoch): rows sorted by SHA-256 of seed, epoch and index. It depends on no
library's random generator, no number of processes and no packing, so that a step can be replayed years later.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from training.data.encode import Encoded
from training.data.split import digest_in_holdout


@dataclass(frozen=True)
class Plan:
    """The rows of every step: ``batch`` rows a step out of ``rows``, ``total`` row visits in all."""

    seed: int
    rows: int
    batch: int
    total: int

    @property
    def steps(self) -> int:
        return math.ceil(self.total / self.batch)

    def indices(self, step: int) -> list[int]:
        """Row indices of a step (0-based). The last step may be short; an epoch's rest joins the next one's start."""
        first = step * self.batch
        return [self._index(position) for position in range(first, min(first + self.batch, self.total))]

    def _index(self, position: int) -> int:
        return epoch_order(self.seed, position // self.rows, self.rows)[position % self.rows]


def plan(seed: int, rows: int, batch: int, *, steps: int | None, epochs: float | None) -> Plan:
    """Exactly one of ``steps`` and ``epochs`` is given."""
    total = steps * batch if steps is not None else max(1, round(rows * (epochs or 0)))
    return Plan(seed, rows, batch, total)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, rows: int) -> tuple[int, ...]:
    """A permutation of ``range(rows)``, the same on every machine."""
    stem = hashlib.sha256(f"alignmill order {seed} {epoch}".encode())

    def key(index: int) -> bytes:
        digest = stem.copy()
        digest.update(index.to_bytes(8, "big"))
        return digest.digest()

    return tuple(sorted(range(rows), key=key))


def set_aside(rows: Sequence[Encoded], share: float) -> tuple[list[Encoded], list[Encoded]]:
    """(rows to train on, rows to judge on): a prompt is judged on where its digest, read as a number in [0, 1), is below
    ``share``. It depends on the prompt alone, so that equal prompts stay together whatever else is there."""

    def judged(row: Encoded) -> bool:
        return digest_in_holdout(hashlib.sha256(f"alignmill set aside {row.prompt}".encode()).hexdigest(), share)

    return [row for row in rows if not judged(row)], [row for row in rows if judged(row)]


def micro_batches(
    rows: Sequence[Encoded], token_budget: int, tokens: Callable[[Encoded, Encoded], int]
) -> list[list[Encoded]]:
    """``rows`` cut into micro-batches of at most ``token_budget`` tokens; similar lengths stand together.

    ``tokens(row, longest)``: what a row costs beside the longest row of its micro-batch. One that is larger than the
    budget stands alone.
    """
    cut: list[list[Encoded]] = []
    left = 0
    for row in sorted(rows, key=lambda row: (-row.longest, row.record_id)):
        cost = tokens(row, cut[-1][0]) if cut else 0
        if not cut or cost > left:
            cut.append([])
            left, cost = token_budget, tokens(row, row)
        cut[-1].append(row)
        left -= cost
    return cut


def share_out(cut: list[list[Encoded]], processes: int) -> list[list[list[Encoded]]]:
    """Each process's micro-batches, the same number for all, because they work in step.

    Large micro-batches are halved to even out; a process that would still stand idle computes a micro-batch again whose
    rows weigh nothing. Law: with one process it is the list itself.
    """
    if processes == 1:
        return [list(cut)]
    cut = list(cut)
    while cut and len(cut) % processes and any(len(micro) > 1 for micro in cut):
        largest = max(cut, key=lambda micro: (len(micro) > 1, sum(row.unique for row in micro)))
        cut.remove(largest)
        cut += [largest[::2], largest[1::2]]
    cut.sort(key=lambda micro: -sum(row.unique for row in micro))
    idle = [[replace(row, weight=0.0) for row in cut[-1][:1]]] * (-len(cut) % processes) if cut else []
    cut += idle
    return [cut[rank::processes] for rank in range(processes)]
