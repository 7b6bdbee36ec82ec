"""How much of a benchmark item stands in a row: benchmarks are only worth something on text that was not trained on.

An item's text (its question with its answer) is compared by words, so that case, punctuation and white space don't count:

- an item of 13 words or more by its 13-grams, as in GPT-3 (arXiv 2005.14165, appendix C): the share of the item's
  different 13-grams that stand in the row. A 13-gram that stands in more than 10 items is the benchmark's boilerplate
  and is left out (there: one that stands in more than 10 documents); an item of which nothing is left keeps its own;
- an item of 8 to 12 words as a whole (8 is the least n of that appendix);
- an item of 4 to 7 words only where it is a whole text of the row, or the row's last message followed by a completion;
- an item of fewer words ("yes", "Paris") is never found: it is in everything.

What a completion follows is the end of the prompt, so that question and answer are found where they stand in two texts.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.data.facts.base import PROMPT, Batch
from training.data.facts.benchmark_index import GRAM, Index, Lookup, index_of
from training.data.facts.words import Words, ngrams, spans, whole, words_of

if TYPE_CHECKING:
    import numpy as np

_ROWS = 1024  # rows that are worked on together


@dataclass(frozen=True)
class Contamination:
    """Columns: ``contaminated`` (0 to 1: the largest share of a benchmark item that stands in the row) and
    ``contaminated_item`` (that item's line in the file, from 0, of several the first; NaN for none).

    ``texts_file`` is JSON Lines of {benchmark, item, text}; ``digest`` its SHA-256 in hex. Both are NaN for lines that are no
    record. Raises Refused on a file that is broken or not the one of ``digest``.
    """

    texts_file: str
    digest: str
    name: str = "contamination"
    columns: tuple[str, ...] = ("contaminated", "contaminated_item")

    @property
    def key(self) -> str:
        return self.digest

    def __call__(self, batch: Batch) -> "dict[str, np.ndarray[Any, Any]]":
        import numpy as np

        readable = np.array([record is not None for record in batch.records], bool)
        share = np.where(readable, 0.0, np.nan)
        item = np.full(len(batch), np.nan)
        found = self.found(batch)
        best = np.lexsort((found.item, -found.share, found.row))
        rows, first = np.unique(found.row[best], return_index=True)
        share[rows], item[rows] = found.share[best][first], found.item[best][first]
        return {"contaminated": share, "contaminated_item": item}

    def found(self, batch: Batch) -> "Found":
        """Every item of which something stands in a row of the batch, computed once and kept on the batch."""
        kept = vars(batch)
        name = f"found in {self.texts_file} {self.digest}"
        if name not in kept:
            kept[name] = _found(batch, index_of(self.texts_file, self.digest))
        result: Found = kept[name]
        return result


@dataclass(frozen=True)
class Found:
    """What was found: the share of item ``item[i]`` that stands in row ``row[i]``, ordered by row and item."""

    row: "np.ndarray[Any, Any]"  # int64
    item: "np.ndarray[Any, Any]"  # int64: the line in the file, from 0
    share: "np.ndarray[Any, Any]"  # float64, more than 0


@dataclass(frozen=True)
class BenchmarkShare:
    """Of a benchmark's ``items``: how many stand in the data as a whole (``exact``), and how many with at least the asked share
    of their 13-grams (``overlapping``, the exact ones among them). ``too_short``: items that can never be found."""

    items: int
    exact: int
    overlapping: int
    too_short: int

    @property
    def share(self) -> float:
        """The share of the items that overlap."""
        return self.overlapping / self.items


def benchmark_shares(
    texts_file: str, digest: str, found: "Iterable[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]", at_least: float
) -> dict[str, BenchmarkShare]:
    """How much of each benchmark stands in the data. ``found``: (items, shares), batch by batch, of ``Contamination.found``.

    Lines of one benchmark with the same ``item`` are one item, which is found where one of its lines is. Of the columns
    (contaminated_item, contaminated) only the item counts that each row has most of.
    """
    import numpy as np

    index = index_of(texts_file, digest)
    best = np.zeros(len(index.benchmarks))
    for items, shares in found:
        here = ~np.isnan(items)
        np.maximum.at(best, items[here].astype("int64"), shares[here])
    best = best[index.first]  # a text that stands in the file several times is found each time
    share = np.zeros(int(index.item.max()) + 1 if len(index.item) else 0)
    np.maximum.at(share, index.item, best)
    short = np.ones(len(share), bool)
    np.logical_and.at(short, index.item, index.too_short)
    _, lines = np.unique(index.item, return_index=True)
    table: dict[str, list[int]] = {}
    for line, most, hidden in zip(lines.tolist(), share.tolist(), short.tolist(), strict=True):
        counts = table.setdefault(index.benchmarks[line], [0, 0, 0, 0])
        for place, true in enumerate((True, most >= 1.0, most > 0 and most >= at_least, hidden)):
            counts[place] += true
    return {name: BenchmarkShare(*counts) for name, counts in table.items()}


# ------------------------------------------------------------------------------------------------ the search


def _found(batch: Batch, index: Index) -> Found:
    import numpy as np

    flat, content = batch.flat, words_of(batch)
    texts = np.searchsorted(flat.row, np.arange(len(batch) + 1))
    parts = []
    for low in range(0, len(batch), _ROWS):
        high = min(low + _ROWS, len(batch))
        first, last = texts[low], texts[high]
        at = content.offsets[first : last + 1]
        here = Words(content.hashes[at[0] : at[-1]], at - at[0])
        parts.append(_search(here, flat.row[first:last], flat.kind[first:last] == PROMPT, index))
    if not parts:
        return Found(np.zeros(0, "int64"), np.zeros(0, "int64"), np.zeros(0))
    return Found(*(np.concatenate(side) for side in zip(*parts, strict=True)))


def _search(here: Words, row: Any, prompt: Any, index: Index) -> "tuple[Any, Any, Any]":
    """(row, item, share) of what stands in some rows, of which the texts are given."""
    import numpy as np

    runs, owner = _runs(here, row, prompt)
    rows, items, shares = [], [], []
    if index.by_gram is not None:
        grams = ngrams(runs, GRAM)
        which, place = index.by_gram.places(grams.hashes)
        of = np.repeat(owner, grams.counts)[which]
        size = len(index.by_gram.hashes)
        hits = np.unique(of * size + place)  # a gram that stands in a row several times counts once
        of, lines = _lines(index.by_gram, hits // size, hits % size)
        pairs, counts = np.unique(of * len(index.first) + lines, return_counts=True)
        rows.append(pairs // len(index.first))
        items.append(pairs % len(index.first))
        shares.append(counts / index.grams[items[-1]])
    exact = [(lookup, ngrams(runs, n), owner) for n, lookup in index.inside.items()]
    if index.alone is not None:
        questions, owners = _questions(here, row, prompt)
        for texts, of in ((here, row), (questions, owners)):
            exact.append((index.alone, Words(whole(texts), np.arange(len(of) + 1)), of))
    for lookup, grams, of in exact:
        which, place = lookup.places(grams.hashes)
        of, lines = _lines(lookup, np.repeat(of, grams.counts)[which], place)
        rows.append(of)
        items.append(lines)
        shares.append(np.ones(len(of)))
    if not rows:
        return np.zeros(0, "int64"), np.zeros(0, "int64"), np.zeros(0)
    row, item, share = (np.concatenate(side) for side in (rows, items, shares))
    pairs, first = np.unique(row * len(index.first) + item, return_index=True)
    return row[first], item[first], share[first]


def _lines(lookup: Lookup, of: Any, place: Any) -> "tuple[Any, Any]":
    """Each row with every line that has what it has at ``place``."""
    import numpy as np

    counts = lookup.offsets[place + 1] - lookup.offsets[place]
    return np.repeat(of, counts), lookup.items[spans(lookup.offsets[place], counts)]


def _runs(here: Words, row: Any, prompt: Any) -> "tuple[Words, Any]":
    """The prompt of every row as one run of words, and every completion after the last 12 words of its prompt."""
    import numpy as np

    owners, first, number = np.unique(row, return_index=True, return_inverse=True)
    begin = here.offsets[first]
    end = here.offsets[first + np.bincount(number[prompt], minlength=len(owners))]
    answers = np.flatnonzero(~prompt)
    tail = np.minimum(end - begin, GRAM - 1)[number[answers]]
    return _joined(
        here,
        [(begin, end - begin), (end[number[answers]] - tail, tail), (here.offsets[answers], here.counts[answers])],
        np.concatenate([owners, row[answers]]),
    )


def _questions(here: Words, row: Any, prompt: Any) -> "tuple[Words, Any]":
    """Every completion after the last message of its prompt."""
    import numpy as np

    owners, first, number = np.unique(row, return_index=True, return_inverse=True)
    messages = np.bincount(number[prompt], minlength=len(owners))
    answers = np.flatnonzero(~prompt & (messages[number] > 0))
    last = (first + messages - 1)[number[answers]]
    none = np.zeros(0, "int64")
    return _joined(
        here,
        [(none, none), (here.offsets[last], here.counts[last]), (here.offsets[answers], here.counts[answers])],
        row[answers],
    )


def _joined(here: Words, parts: "list[tuple[Any, Any]]", owner: Any) -> "tuple[Words, Any]":
    """Runs of words, given as (starts, counts): the first part's runs alone, then of the others one behind the other."""
    import numpy as np

    (alone, sizes), (left, before), (right, after) = parts
    starts = np.concatenate([alone, np.stack([left, right], 1).ravel()])
    counts = np.concatenate([sizes, np.stack([before, after], 1).ravel()])
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([sizes, before + after]))]).astype("int64")
    return Words(here.hashes[spans(starts, counts)], offsets), owner
