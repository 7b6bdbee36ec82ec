"""The index of benchmark texts: which items have which 13-grams, and which short items are which words."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.facts.words import Words, ngrams, spans, whole, words
from training.digest import digest_file
from training.strict import Refused

if TYPE_CHECKING:
    import numpy as np

GRAM = 13  # words
LEAST_INSIDE = 8  # words of an item that is looked for within a text
LEAST_WHOLE = 4  # words of an item that is looked for as a whole text
BOILERPLATE = 10  # items that may share a 13-gram
_LINES = 4096  # that are worked on together


@dataclass(frozen=True)
class Lookup:
    """Hashes of one kind, sorted, with the items that have each: ``items[offsets[i] : offsets[i + 1]]``.

    ``screen`` is a Bloom filter of one hash: most of what is asked for is not there and is told so by one bit.
    """

    hashes: "np.ndarray[Any, Any]"
    offsets: "np.ndarray[Any, Any]"
    items: "np.ndarray[Any, Any]"
    screen: "np.ndarray[Any, Any]"

    def places(self, values: "np.ndarray[Any, Any]") -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
        """Which values are there, and at which place each of those stands."""
        import numpy as np

        bit = values & np.uint64(len(self.screen) * 8 - 1)
        byte = self.screen[(bit >> np.uint64(3)).astype("int64")]
        maybe = np.flatnonzero(byte >> (bit & np.uint64(7)).astype("uint8") & 1)
        place = np.minimum(np.searchsorted(self.hashes, values[maybe]), len(self.hashes) - 1)
        there = self.hashes[place] == values[maybe]
        return maybe[there], place[there]


@dataclass(frozen=True)
class Index:
    """A file of benchmark texts. ``item[i]``: a number for the item of line i; ``first[i]``: the first line of the same words.

    ``grams``: how many 13-grams of each line count. ``inside``: length in words → lines of 8 to 12 words of that length.
    """

    benchmarks: tuple[str, ...]
    item: "np.ndarray[Any, Any]"
    first: "np.ndarray[Any, Any]"
    too_short: "np.ndarray[Any, Any]"
    grams: "np.ndarray[Any, Any]"
    by_gram: Lookup | None
    inside: Mapping[int, Lookup]
    alone: Lookup | None


@lru_cache(maxsize=2)
def index_of(texts_file: str, digest: str) -> Index:
    """The index of a file, kept for this process. Raises Refused where the file is broken or another one."""
    import numpy as np

    benchmarks, item, content = _read(Path(texts_file), digest)
    counts = content.counts
    texts = np.concatenate(
        [np.zeros(0, "uint64"), *(whole(_only(content, some)) for some in _blocks(np.arange(len(item))))]
    )
    _, where, number = np.unique(texts, return_index=True, return_inverse=True)
    first = where[number]
    own = (first == np.arange(len(first))) & (counts >= LEAST_WHOLE)
    by_gram, totals = _grams(content, item, np.flatnonzero(own & (counts >= GRAM)))
    inside = {}
    for n in range(LEAST_INSIDE, GRAM):
        lines = np.flatnonzero(own & (counts == n))
        lookup = _table(ngrams(_only(content, lines), n).hashes, lines)  # one n-gram each
        if lookup is not None:
            inside[n] = lookup
    alone = np.flatnonzero(own & (counts < LEAST_INSIDE))
    short = _table(texts[alone], alone)
    return Index(benchmarks, item, first, counts < LEAST_WHOLE, totals, by_gram, inside, short)


def _read(path: Path, digest: str) -> "tuple[tuple[str, ...], np.ndarray[Any, Any], Words]":
    import numpy as np
    import orjson

    try:
        found = digest_file(path).value
    except OSError as error:
        raise Refused(f"{path}: the benchmark texts cannot be read ({error.strerror}). Write the file again") from None
    if found != digest.removeprefix("sha256:"):
        raise Refused(f"{path}: the benchmark texts have the digest {found}, not {digest}: the file was changed since")
    benchmarks: list[str] = []
    texts: list[str] = []
    items: dict[tuple[str, str], int] = {}
    numbers: list[int] = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                item = orjson.loads(line)
            except orjson.JSONDecodeError:
                raise Refused(f"{path}:{number}: the line is no JSON object with benchmark, item and text") from None
            for name in ("benchmark", "text"):
                if not isinstance(item, dict) or not isinstance(item.get(name), str):
                    raise Refused(f"{path}:{number}: '{name}' is missing or no text; needed are benchmark, item, text")
            benchmarks.append(item["benchmark"])
            texts.append(item["text"])
            own = repr(item["item"]) if "item" in item else f"line {number}"
            numbers.append(items.setdefault((item["benchmark"], own), len(items)))
    return tuple(benchmarks), np.array(numbers, "int64"), words(texts)


def _only(content: Words, lines: Any) -> Words:
    """The words of some lines."""
    import numpy as np

    counts = content.counts[lines]
    return Words(content.hashes[spans(content.offsets[lines], counts)], np.concatenate([[0], np.cumsum(counts)]))


def _blocks(lines: Any) -> "list[Any]":
    """Some lines at a time, so that what is needed in between stays small."""
    return [lines[low : low + _LINES] for low in range(0, len(lines), _LINES)]


def _grams(content: Words, item: Any, long: Any) -> "tuple[Lookup | None, Any]":
    """The lookup of 13-grams of the lines ``long``, and how many count for each line."""
    import numpy as np

    made = [ngrams(_only(content, lines), GRAM) for lines in _blocks(long)]
    hashes = np.concatenate([np.zeros(0, "uint64"), *(part.hashes for part in made)])
    values, owner = _once(hashes, np.repeat(long, np.concatenate([long[:0], *(part.counts for part in made)])))
    del made, hashes
    apart = len(item) == len(np.unique(item))  # no item has several lines
    sharing = values if apart else _once(values, item[owner])[0]
    kept = _rare(sharing)[np.cumsum(_new(values)) - 1]
    nothing_left = np.bincount(owner[kept], minlength=len(item)) == 0
    kept |= nothing_left[owner]
    return _table(values[kept], owner[kept]), np.bincount(owner[kept], minlength=len(item))


def _once(values: Any, owner: Any) -> "tuple[Any, Any]":
    """Every (value, owner) once, sorted."""
    import numpy as np

    order = np.lexsort((owner, values)) if (owner[1:] < owner[:-1]).any() else np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    new = _new(values)
    new[1:] |= owner[1:] != owner[:-1]
    return values[new], owner[new]


def _new(values: Any) -> Any:
    """Where a value of sorted values stands for the first time."""
    import numpy as np

    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    return new


def _rare(values: Any) -> Any:
    """Per different value of sorted values, whether few items have it."""
    import numpy as np

    return np.diff(np.append(np.flatnonzero(_new(values)), len(values))) <= BOILERPLATE


def _table(values: Any, items: Any) -> Lookup | None:
    """The lookup of values (in any order) that belong to items; None where there are none."""
    import numpy as np

    if not len(values):
        return None
    if (values[1:] < values[:-1]).any():
        order = np.argsort(values, kind="stable")
        values, items = values[order], items[order]
    starts = np.flatnonzero(_new(values))
    hashes = values[starts]
    size = 1 << max(13, int(16 * len(hashes) - 1).bit_length())  # bits, so that one in 16 says maybe without need
    screen = np.zeros(size // 8, "uint8")
    bit = hashes & np.uint64(size - 1)
    np.bitwise_or.at(screen, (bit >> np.uint64(3)).astype("int64"), np.uint8(1) << (bit & np.uint64(7)).astype("uint8"))
    return Lookup(hashes, np.append(starts, len(values)), items, screen)
