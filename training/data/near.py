"""Near-duplicates of a part, found from the sketches that ``training.data.facts.near`` made of every row.

Rows that share a band are candidates. A band is sorted as 64-bit numbers, and of a run of equal numbers a row is compared
with a few others only: in a short run with all, in a long one with the first, with its neighbour, and with the first and
the neighbour among those that share the next band too. So a million equal rows cost no more than a million different ones. A
candidate counts where the sketches say so (see ``Sketches.same``); rows that hang together are one cluster, of which
the first stays.

The sketches lie in one memory-mapped file, bands are worked on one at a time, and nothing depends on how rows are split into
segments.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.facts.near import ALWAYS, SLOTS, STRICTLY, Near

if TYPE_CHECKING:
    import numpy as np

# A column of facts of all rows of a part in stored order, segment by segment.
Read = Callable[[str], "Iterable[np.ndarray[Any, Any]]"]

MARGIN = 0.1  # below the threshold; an estimate is accepted from there on, so that few rows at the threshold are missed
AGREE = 0.5  # from where the sketches of answers and of the prompts' ends agree
AGREE_STRICTLY = 0.75  # the same for the prompts' ends of small rows
ALIKE = 4  # rows that begin alike: with more of them, the prompts' ends have to agree too
_SHORT = 8  # rows that share a band and are all compared with each other
_PAIRS = 1 << 16  # candidates that are judged together
_CHANCE = 1 / 256  # that two different minima have the same eight bits


@dataclass(frozen=True)
class Sketches:
    """The sketches of all rows: ``numbers`` (rows x columns, memory-mapped uint64), heads, and who begins alike."""

    numbers: "np.memmap[Any, Any]"
    bands: int
    width: int
    heads: "np.ndarray[Any, Any]"
    crowded: "np.ndarray[Any, Any]"  # whether many rows begin as this one does

    def band(self, number: int) -> "np.ndarray[Any, Any]":
        import numpy as np

        found = np.array(self.numbers[:, number])
        self._forget()
        return found

    def same(self, one: "np.ndarray[Any, Any]", other: "np.ndarray[Any, Any]", least: float) -> Any:
        """Whether rows ``one[i]`` and ``other[i]`` are near: their content agrees in ``least``, their answers in half,
        and, where many rows begin as they do or their answers are short, the ends of their prompts in half as well."""
        import numpy as np

        found = np.empty(len(one), bool)
        for low in range(0, len(one), _PAIRS):
            left, right = one[low : low + _PAIRS], other[low : low + _PAIRS]
            equal = _equal_bytes(self.numbers[left], self.numbers[right])
            self._forget()
            content, answers, tails = np.add.reduceat(equal, (0, self.bands, self.bands + SLOTS // 8), axis=1).T
            content = content - self.bands * (8 - self.width)  # the bytes that no minimum fills are equal
            near = (_jaccard(content, self.bands * self.width) >= least) & (_jaccard(answers, SLOTS) >= AGREE)
            found[low : low + _PAIRS] = near & (_jaccard(tails, SLOTS) >= self._ends(left, right))
        return found

    def _ends(self, one: Any, other: Any) -> Any:
        """How much the ends of the prompts have to agree."""
        import numpy as np

        left, right = self.heads[one], self.heads[other]
        needed = ((left == right) & self.crowded[one]) | (left == ALWAYS) | (right == ALWAYS)
        strict = (left == STRICTLY) | (right == STRICTLY)
        return np.where(strict, AGREE_STRICTLY, np.where(needed, AGREE, -1.0))

    def _forget(self) -> None:
        """Give mapped pages back: they stay in the system's cache and don't count as this process's memory."""
        import mmap

        self.numbers._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def near_duplicates(read: Read, ids: "np.ndarray[Any, Any]", maker: Near, scratch: Path) -> "np.ndarray[Any, Any]":
    """Per row of a part 1.0 for a near-duplicate of an earlier row that is no exact copy of the cluster's first, else 0.0.

    ``ids``: the first 64 bits of every row's id. ``scratch``: a folder for a file of ``8 x (columns - 1)`` bytes a
    row, which is deleted. The first row of every cluster and its exact copies (those are ``duplicate``) have 0.
    Raises ValueError where a column has other rows than ``ids``.
    """
    import numpy as np

    label = np.arange(len(ids), dtype="int64")  # each row's cluster, named after its first row
    if not len(ids):
        return np.zeros(0)
    path = scratch / "near-sketches"
    try:
        sketches = _gather(read, len(ids), maker, path)
        with ThreadPoolExecutor(1) as ahead:  # sorting lets other threads work
            coming = ahead.submit(_candidates, sketches, 0)
            for number in range(sketches.bands):
                one, other = coming.result()
                if number + 1 < sketches.bands:
                    coming = ahead.submit(_candidates, sketches, number + 1)
                _unite(label, one, other, sketches, max(maker.threshold - MARGIN, 0.0))
    finally:
        path.unlink(missing_ok=True)
    found: np.ndarray[Any, Any] = (ids[label] != ids).astype("float64")
    return found


def _gather(read: Read, rows: int, maker: Near, path: Path) -> Sketches:
    """All columns but the last as rows of one file, written segment by segment; the last (the heads) in memory."""
    import numpy as np

    *columns, last = maker.columns
    with open(path, "wb") as file:
        for parts in zip(*(read(name) for name in columns), strict=True):
            if len({len(part) for part in parts}) > 1:
                raise ValueError(
                    "the columns of near have segments of different lengths: their facts don't belong together"
                )
            np.stack(parts, axis=1).astype("uint64").tofile(file)
        found = file.tell() // (8 * len(columns))
    heads = np.concatenate([np.zeros(0, "uint64"), *read(last)])
    if not rows == found == len(heads):
        raise ValueError(f"the columns of near have {found} and {len(heads)} rows, the part has {rows}")
    numbers = np.memmap(path, "uint64", "r", shape=(rows, len(columns)))
    values, group, counts = np.unique(heads, return_inverse=True, return_counts=True)
    crowded = (counts > ALIKE) & (values > STRICTLY)
    return Sketches(numbers, *maker.bands, heads, crowded[group])


def _candidates(sketches: Sketches, number: int) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """Pairs of rows that share the band."""
    import numpy as np

    band = sketches.band(number)
    order = np.argsort(band)  # not stable, which is several times as fast; the few rows that stay are sorted again
    ranked = band[order]
    kept = np.zeros(len(band), bool)
    kept[1:] = ranked[1:] == ranked[:-1]
    kept[:-1] |= kept[1:]
    kept &= ranked != 0
    rows, values = order[kept], ranked[kept]
    del band, order, ranked, kept
    again = np.lexsort((rows, values))
    rows, values = rows[again], values[again]
    if not len(rows):
        return rows, rows
    first, size = _runs(values)
    pairs = [(rows[first], rows)]  # the first of the run
    near = np.arange(len(rows))
    short = size <= _SHORT
    for back in range(1, _SHORT):
        here = near[short & (near - first >= back)]
        pairs.append((rows[here - back], rows[here]))
    long = np.flatnonzero(~short)
    if len(long):
        pairs += _in_long_runs(rows[long], first[long], sketches.band((number + 1) % sketches.bands))
    one, other = (np.concatenate(side) for side in zip(*pairs, strict=True))
    different = one != other
    return one[different], other[different]


def _in_long_runs(rows: Any, run: Any, beside: Any) -> "list[tuple[Any, Any]]":
    """Neighbours, and of rows that share another band too the first and the neighbour, for runs of many rows."""
    import numpy as np

    by_band = np.lexsort((rows, beside[rows], run))
    sorted_rows, sorted_runs = rows[by_band], run[by_band]
    inner = beside[sorted_rows]
    begins = np.ones(len(rows), bool)
    begins[1:] = (inner[1:] != inner[:-1]) | (sorted_runs[1:] != sorted_runs[:-1])
    first = np.flatnonzero(begins)[np.cumsum(begins) - 1]
    same = sorted_runs[1:] == sorted_runs[:-1]
    plain = run[1:] == run[:-1]
    return [
        (rows[:-1][plain], rows[1:][plain]),
        (sorted_rows[:-1][same], sorted_rows[1:][same]),
        (sorted_rows[first], sorted_rows),
    ]


def _runs(values: Any) -> "tuple[Any, Any]":
    """Of each place in sorted ``values``: where its run of equal ones begins, and how long the run is."""
    import numpy as np

    begins = np.ones(len(values), bool)
    begins[1:] = values[1:] != values[:-1]
    starts = np.flatnonzero(begins)
    run = np.cumsum(begins) - 1
    return starts[run], np.diff(np.append(starts, len(values)))[run]


def _unite(label: Any, one: Any, other: Any, sketches: Sketches, least: float) -> None:
    """Join the clusters of candidates that are the same; candidates of one cluster already need no look."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    open_ = label[one] != label[other]
    one, other = one[open_], other[open_]
    low, high = np.minimum(one, other), np.maximum(one, other)
    same = sketches.same(low, high, least)
    left, right = label[low[same]], label[high[same]]
    if not len(left):
        return
    names, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    graph = coo_array((np.ones(len(left), "uint8"), (places[: len(left)], places[len(left) :])), (len(names),) * 2)
    count, cluster = connected_components(graph, directed=False)
    first = np.full(count, np.iinfo("int64").max)
    np.minimum.at(first, cluster, names)
    renamed = np.arange(len(label))
    renamed[names] = first[cluster]
    label[:] = renamed[label]


def _equal_bytes(one: Any, other: Any) -> Any:
    """How many of the eight bytes of each number are equal."""
    import numpy as np

    low, high = np.uint64(0x7F7F7F7F7F7F7F7F), np.uint64(0x8080808080808080)
    differ = one ^ other
    return np.bitwise_count(~(((differ & low) + low) | differ) & high).astype("int64")


def _jaccard(equal: Any, slots: int) -> Any:
    """The estimate of the Jaccard similarity from how many eight-bit minima are equal (Li and König 2010, eq. 4)."""
    return (equal / slots - _CHANCE) / (1 - _CHANCE)
