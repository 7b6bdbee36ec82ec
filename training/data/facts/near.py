"""Sketches of a row by which near-duplicates are found over the whole set, without its text.

What is compared is the row's whole content: the shingles (5 words in a row; a text of fewer words is one shingle) of its
prompt and its completions together, by MinHash (Broder 1997), eight bits of each minimum (b-bit MinHash, Li and König,
WWW 2010), ``rows`` minima in a band (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4). Two more sketches
say when much common text does not make two rows the same:

- ``answer``: the words of the completions, each marked with how its completion was graded. Rows that share a long
  prompt and answer otherwise are not the same, and neither are rows that prefer the same two texts the other way
  round: that is a contradiction.
- ``tail`` and ``head``: the words at the prompt's end, and a hash of those at its beginning. Where many rows begin alike
  (a system prompt, a preamble of worked examples, a template), and where the answers or the rows are too short to tell
  rows apart, the ends have to agree as well: the question stands there.
"""

import importlib.metadata
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from training.data.facts.base import PROMPT, Batch
from training.data.facts.words import Words, mixed, ngrams, spans, whole, words_of
from training.data.records import Record, merit

if TYPE_CHECKING:
    import numpy as np

SHINGLE = 5  # words
HEAD = 16  # words of the prompt
TAIL = 24  # words of the prompt; a prompt without HEAD + TAIL words has no head
SHORT = 10  # words of all completions: with fewer, the tail decides too
SMALL = 64  # words of a row: with fewer, a prompt of at most TAIL words decides too, and more strictly
FEWEST = 24  # words of a row: with fewer, one word is too much of it to call rows near
SLOTS = 32  # minima in the sketches of answer and tail
# Heads that are no hashes: none; the tails have to agree whoever else begins alike; and more strictly.
NONE, ALWAYS, STRICTLY = 0, 1, 2
_SEED = 20  # of rensa's permutations
_MISSED = 0.01  # of the rows that are exactly as near as the threshold, by the bands
_ROWS = 1024  # rows that are worked on together


@dataclass(frozen=True)
class Near:
    """Columns (all uint64): ``band_00`` … , ``answer_0`` … , ``tail_0`` … , ``head``.

    ``threshold`` is the Jaccard similarity from which rows are near. A band of b minima holds them in its lowest b
    bytes. Rows of fewer than ``FEWEST`` words, and lines that are no record, have zeros and are near to nothing.
    """

    threshold: float
    name: str = "near"

    @cached_property
    def bands(self) -> tuple[int, int]:
        """How many bands, and how many minima in each: two rows share a band with chance 1 - (1 - J^rows)^bands.

        The most minima in a band (the fewest needless candidates) of which rows at the threshold are missed in at
        most 1 of 100 cases; 20 bands where that leaves enough minima to judge candidates by, else 40.
        """
        for bands in (20, 40):
            share = 1 - _MISSED ** (1 / bands)
            rows = min(8, int(math.log(share) / math.log(self.threshold)))
            if rows * bands >= 128:
                break
        return bands, max(rows, 1)

    @property
    def columns(self) -> tuple[str, ...]:
        places = range(SLOTS // 8)
        bands = tuple(f"band_{number:02d}" for number in range(self.bands[0]))
        return (*bands, *(f"answer_{place}" for place in places), *(f"tail_{place}" for place in places), "head")

    @property
    def key(self) -> str:
        return f"{self.bands[0]} x {self.bands[1]}, rensa {importlib.metadata.version('rensa')}"

    def __call__(self, batch: Batch) -> "dict[str, np.ndarray[Any, Any]]":
        import numpy as np

        found = {column: np.zeros(len(batch), "uint64") for column in self.columns}
        flat, content = batch.flat, words_of(batch)
        texts = np.searchsorted(flat.row, np.arange(len(batch) + 1))  # where each row's texts begin
        prompts = texts[:-1] + _within(flat.kind == PROMPT, texts)  # where its completions begin
        marks = _marks(batch.records)
        for low in range(0, len(batch), _ROWS):
            rows = slice(low, min(low + _ROWS, len(batch)))
            self._fill(found, rows, content, texts, prompts, marks)
        return found

    def _fill(self, found: Any, rows: slice, content: Words, texts: Any, prompts: Any, marks: Any) -> None:
        import numpy as np

        first, last = texts[rows.start], texts[rows.stop]
        at = content.offsets[first : last + 1]
        here = Words(content.hashes[at[0] : at[-1]], at - at[0])
        begins = here.offsets[texts[rows.start : rows.stop + 1] - first]  # of each row's words
        answers = here.offsets[prompts[rows] - first]  # and of its completions' words
        enough = begins[1:] - begins[:-1] >= FEWEST

        shingles = _shingles(here)
        parts = shingles.offsets[texts[rows.start : rows.stop + 1] - first]
        bands, width = self.bands
        signature = _minima(shingles.hashes, parts, bands * width)
        padded = np.zeros((len(signature), bands, 8), "uint8")
        padded[:, :, :width] = signature.reshape(-1, bands, width)
        _store(found, "band_{:02d}", padded.reshape(len(signature), -1), rows, enough)

        spoken = spans(answers, begins[1:] - answers)
        marked = here.hashes ^ np.repeat(marks[first:last], here.counts)
        offsets = np.concatenate([[0], np.cumsum(begins[1:] - answers)])
        _store(found, "answer_{}", _minima(mixed(marked[spoken]), offsets, SLOTS), rows, enough)

        sizes = np.minimum(answers - begins[:-1], TAIL)
        tails = here.hashes[spans(answers - sizes, sizes)]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        _store(found, "tail_{}", _minima(tails, offsets, SLOTS), rows, enough)
        found["head"][rows] = np.where(enough, _heads(here.hashes, begins, answers), 0)


def minima(values: "np.ndarray[Any, Any]", offsets: "np.ndarray[Any, Any]", slots: int) -> "np.ndarray[Any, Any]":
    """rensa's MinHash of each set ``values[offsets[i] : offsets[i + 1]]`` as ``slots`` numbers of 32 bits."""
    import numpy as np
    import rensa

    made = rensa.RMinHash.digest_matrix_from_flat_token_hashes(values, offsets.astype("uint64"), slots, _SEED)
    count = len(offsets) - 1
    return np.fromiter(chain.from_iterable(made.to_rows()), "uint32", count * slots).reshape(count, slots)


def _minima(values: Any, offsets: Any, slots: int) -> Any:
    return (minima(values, offsets, slots) & 0xFF).astype("uint8")


def _store(found: Any, name: str, sketch: Any, rows: slice, enough: Any) -> None:
    """Eight minima to a column; zeros where a row hasn't enough words."""
    import numpy as np

    numbers = np.ascontiguousarray(sketch).view("<u8")
    for place in range(numbers.shape[1]):
        found[name.format(place)][rows] = np.where(enough, numbers[:, place], 0)


def _within(marked: Any, texts: Any) -> Any:
    """How many of each row's texts are marked."""
    import numpy as np

    sums = np.concatenate([[0], np.cumsum(marked)])
    return sums[texts[1:]] - sums[texts[:-1]]


def _shingles(here: Words) -> Words:
    """The shingles of each text; a text of fewer words than a shingle is one."""
    import numpy as np

    grams = ngrams(here, SHINGLE)
    short = (here.counts > 0) & (here.counts < SHINGLE)
    if not short.any():
        return grams
    counts = grams.counts + short
    offsets = np.concatenate([[0], np.cumsum(counts)])
    values = np.empty(int(offsets[-1]), "uint64")
    values[offsets[:-1][short]] = whole(here)[short]
    values[spans(offsets[:-1], grams.counts)] = grams.hashes
    return Words(values, offsets)


def _heads(hashes: Any, begins: Any, answers: Any) -> Any:
    import numpy as np

    has = answers - begins[:-1] >= HEAD + TAIL
    opening = Words(
        hashes[spans(begins[:-1], has * HEAD)], np.concatenate([[0], np.cumsum(has * HEAD)]).astype("int64")
    )
    heads = np.where(has, whole(opening), np.uint64(0))
    heads[has & (heads <= STRICTLY)] = STRICTLY + 1
    heads[begins[1:] - answers < SHORT] = ALWAYS
    heads[(begins[1:] - begins[:-1] < SMALL) & (answers - begins[:-1] <= TAIL)] = STRICTLY
    return heads


def _marks(records: Sequence[Record | None]) -> Any:
    """A number for each text of the batch: of a completion, one for its grade among the record's grades."""
    import numpy as np

    marks: list[int] = []
    for record in records:
        if record is not None:
            marks += [0] * len(record.prompt)
            marks += _places(record)
    return mixed(np.array(marks, "uint64"))


def _places(record: Record) -> list[int]:
    """Per completion: 1 ungraded, 2 labelled bad, 3 labelled good, 4 the best score or rank, 5 the next one, …"""
    grades = [merit(completion) for completion in record.completions]
    if grades == [("rank", -1.0), ("rank", -2.0)]:
        return [4, 5]
    order = {
        grade: 4 + place
        for kind in ("score", "rank")
        for place, grade in enumerate(sorted({g for g in grades if g and g[0] == kind}, reverse=True))
    }
    return [1 if grade is None else order.get(grade, 2 + int(grade[1])) for grade in grades]
