"""Which rows an optimiser step sees, in which order, cut into micro-batches.

The order is a pure function of (seed, epoch): rows sorted by SHA-256 of seed, epoch and index. It depends on no
library's random generator, no number of processes and no packing, so that a step can be replayed years later.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from training.data.encode import Encoded


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


def micro_batches(rows: Sequence[Encoded], token_budget: int) -> list[list[Encoded]]:
    """Rows of similar length together, so that each micro-batch's padded size stays within ``token_budget`` tokens.

    A row of K completions takes K padded rows. One that is larger than the budget stands alone.
    """
    packed: list[list[Encoded]] = []
    sizes = 0
    for row in sorted(rows, key=lambda row: (-row.longest, row.record_id)):
        branches = len(row.completions)
        if packed and (sizes + branches) * packed[-1][0].longest <= token_budget:
            packed[-1].append(row)
            sizes += branches
        else:
            packed.append([row])
            sizes = branches
    return packed
