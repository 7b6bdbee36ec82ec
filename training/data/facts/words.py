"""Words of texts as 64-bit hashes, and hashes of n words in a row: what near-duplicates and contamination compare.

A word is a maximal run of ASCII letters (case folded), ASCII digits and characters beyond ASCII. Three kinds of
characters beyond ASCII are different: the punctuation listed in ``_PUNCTUATION`` separates words as ASCII punctuation
and white space do (so that typographic quotes and dashes change nothing), and every character of three UTF-8 bytes that
begin with E3 to ED (Chinese, Japanese, Korean) is a word of its own. A run of more than ``LONGEST`` bytes, which is no
word, counts as several words of that length.

The hash of a word reads eight bytes c0, c1, … at a time (little-endian, zeros after the end) and is
splitmix64(… splitmix64(splitmix64(c0) ^ c1) …): all words at once, the first eight bytes of each, then the next eight of
those that are longer. Nothing here may ever change: stored facts of different days are compared by these hashes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from training.data.facts.base import Batch

if TYPE_CHECKING:
    import numpy as np

LONGEST = 1024  # bytes
_GRAM = 0xD1342543DE82EF95  # the multiplier of n words in a row
_SLICE = 1 << 18  # characters of texts that are worked on together; small, so that they stay in the cache
_PAD = 8  # bytes after the last text, so that eight can be read from any place
# First and last three-byte sequences of ranges that separate words: general punctuation, CJK punctuation, full-width
# and half-width forms of punctuation. All of U+0080 to U+00BF (two bytes from C2) separates too.
_PUNCTUATION = (
    (0xE28080, 0xE281AF),
    (0xE38080, 0xE38084),
    (0xE38088, 0xE380A0),
    (0xE383BB, 0xE383BB),
    (0xEFBC81, 0xEFBC8F),
    (0xEFBC9A, 0xEFBCA0),
    (0xEFBCBB, 0xEFBD80),
    (0xEFBD9B, 0xEFBDA5),
    (0xEFBBBF, 0xEFBBBF),
)


@dataclass(frozen=True)
class Words:
    """Hashes (uint64) of the words of texts, one text after the other.

    Text i has ``hashes[offsets[i] : offsets[i + 1]]``; ``offsets`` is int64, one longer than there are texts.
    """

    hashes: "np.ndarray[Any, Any]"
    offsets: "np.ndarray[Any, Any]"

    @property
    def counts(self) -> "np.ndarray[Any, Any]":
        """How many words each text has."""
        found: np.ndarray[Any, Any] = self.offsets[1:] - self.offsets[:-1]
        return found


def words(texts: Sequence[str]) -> Words:
    """The words of every text. Laws: a text's hashes don't depend on the texts beside it; joining texts by a space
    joins their words."""
    import numpy as np

    ends = np.cumsum(np.fromiter(map(len, texts), "int64", len(texts)))
    cuts = np.unique(np.searchsorted(ends, np.arange(0, int(ends[-1]) if len(texts) else 0, _SLICE)))
    cuts = np.unique([0, *cuts.tolist(), len(texts)])
    slices = [_words(texts[low:high]) for low, high in pairwise(cuts)]
    if not slices:
        return Words(np.zeros(0, "uint64"), np.zeros(1, "int64"))
    before = np.cumsum([0] + [len(part.hashes) for part in slices])
    offsets = [part.offsets[:-1] + count for part, count in zip(slices, before[:-1], strict=True)]
    return Words(np.concatenate([part.hashes for part in slices]), np.concatenate([*offsets, before[-1:]]))


def words_of(batch: Batch) -> Words:
    """The words of ``batch.flat.texts``, computed once and kept on the batch, as ``flat`` itself is."""
    kept = vars(batch)
    if "words" not in kept:
        kept["words"] = words(batch.flat.texts)
    found: Words = kept["words"]
    return found


def ngrams(found: Words, n: int) -> Words:
    """Hashes of every ``n`` words in a row within each text; a text of fewer than n words has none."""
    import numpy as np

    if n < 1:
        raise ValueError(f"n-grams of {n} words: n must be 1 or more")
    grams = _rolled(found.hashes, n)
    counts = np.maximum(found.counts - (n - 1), 0)
    offsets = np.zeros(len(counts) + 1, "int64")
    np.cumsum(counts, out=offsets[1:])
    return Words(grams[spans(found.offsets[:-1], counts)], offsets)


def whole(found: Words) -> "np.ndarray[Any, Any]":
    """One hash (uint64) for all words of each text in their order, whatever their number; 0 for a text without words."""
    import numpy as np

    if not len(found.hashes):
        return np.zeros(len(found.offsets) - 1, "uint64")
    # Words may be more than the powers that are held: the position within the text counts, by repeated squaring.
    counts = found.counts
    place = np.arange(len(found.hashes)) - np.repeat(found.offsets[:-1], counts)
    sums = np.zeros(len(found.hashes) + 1, "uint64")
    np.cumsum(found.hashes * power(_GRAM, place), out=sums[1:])
    totals = sums[found.offsets[1:]] - sums[found.offsets[:-1]]
    return np.where(counts > 0, mixed(totals + counts.astype("uint64")), np.uint64(0))


def spans(starts: "np.ndarray[Any, Any]", counts: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """The positions starts[i], starts[i] + 1, … (counts[i] of them) of all i, one after the other."""
    import numpy as np

    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))


def mixed(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """splitmix64's finaliser: every bit of the result depends on every bit of the value. A bijection of uint64."""
    import numpy as np

    z = values + np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def power(base: int, exponents: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """base^exponent modulo 2^64 for every exponent (whole numbers from 0)."""
    import numpy as np

    if not len(exponents):
        return np.zeros(0, "uint64")
    table = np.full(int(exponents.max()) + 1, base, "uint64")
    table[0] = 1
    np.cumprod(table, out=table)
    found: np.ndarray[Any, Any] = table[exponents]
    return found


# ------------------------------------------------------------------------------------------------ steps


def _words(texts: Sequence[str]) -> Words:
    import numpy as np

    data, begins = _utf8(texts)
    folded = np.frombuffer(bytearray(data.translate(_folding())), "uint8")
    own = _beyond_ascii(np.frombuffer(data, "uint8"), folded)
    inside = folded != 0
    if own is None:
        edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1  # the first byte separates: beginnings and ends in turn
        starts, ends = edges[0::2], edges[1::2]
    else:
        cut = np.zeros(len(folded), bool)
        cut[own] = cut[own + 3] = True
        starts = np.flatnonzero(inside[1:] & (~inside[:-1] | cut[1:])) + 1
        ends = np.flatnonzero(inside[:-1] & (~inside[1:] | cut[1:])) + 1
    if len(starts) and int((ends - starts).max()) > LONGEST:
        starts, ends = _pieces(starts, ends)
    return Words(_hashes(folded, starts, ends), np.searchsorted(starts, begins).astype("int64"))


@cache
def _folding() -> bytes:
    """Byte → folded byte; 0 separates."""
    kept = b"0123456789abcdefghijklmnopqrstuvwxyz" + bytes(range(0x80, 0x100))
    return bytes(byte if byte in kept else byte + 32 if 0x41 <= byte <= 0x5A else 0 for byte in range(256))


def _utf8(texts: Sequence[str]) -> "tuple[bytes, np.ndarray[Any, Any]]":
    """The bytes of all texts, with a separator before each and some at the end; where each text begins, and the end."""
    import numpy as np

    joined = "\n".join(["", *texts, "\n" * (_PAD - 1)])
    data = joined.encode("utf-8", "surrogatepass")
    begins = np.ones(len(texts) + 1, "int64")
    begins[1:] += np.cumsum(np.fromiter(map(len, texts), "int64", len(texts)) + 1)
    if len(data) != len(joined):  # characters are not bytes
        begins = np.flatnonzero((np.frombuffer(data, "uint8") & 0xC0) != 0x80)[begins]
    return data, begins


def _beyond_ascii(data: "np.ndarray[Any, Any]", folded: "np.ndarray[Any, Any]") -> Any:
    """Blank out punctuation beyond ASCII in ``folded``; where the characters begin that are words of their own."""
    import numpy as np

    high = np.flatnonzero(data >= 0xC2)
    high = high[data[high] <= 0xEF]
    if not len(high):
        return None
    leads = data[high]
    two = high[leads == 0xC2]
    folded[two] = folded[two + 1] = 0
    three = high[leads >= 0xE2]
    value = data[three].astype("uint32") << 16 | data[three + 1].astype("uint32") << 8 | data[three + 2]
    separates = np.zeros(len(three), bool)
    for low, top in _PUNCTUATION:
        separates |= (value >= low) & (value <= top)
    for byte in range(3):
        folded[three[separates] + byte] = 0
    return three[~separates & (value >= 0xE30000) & (value < 0xEE0000)]


def _pieces(starts: "np.ndarray[Any, Any]", ends: "np.ndarray[Any, Any]") -> "tuple[Any, Any]":
    """Words in pieces of at most LONGEST bytes."""
    import numpy as np

    parts = -(-(ends - starts) // LONGEST)
    number = np.arange(int(parts.sum())) - np.repeat(np.cumsum(parts) - parts, parts)
    begin = np.repeat(starts, parts) + number * LONGEST
    return begin, np.minimum(begin + LONGEST, np.repeat(ends, parts))


def _hashes(folded: "np.ndarray[Any, Any]", starts: "np.ndarray[Any, Any]", ends: "np.ndarray[Any, Any]") -> Any:
    import numpy as np

    eight = np.ndarray((len(folded) - 7,), "<u8", folded, strides=(1,))  # what begins at each byte
    lengths = ends - starts
    masks = np.array([(1 << 8 * size) - 1 for size in range(9)], "uint64")
    found = mixed(eight[starts] & masks[np.minimum(lengths, 8)])
    longer = np.flatnonzero(lengths > 8)
    done = 8
    while len(longer):
        chunk = eight[starts[longer] + done] & masks[np.minimum(lengths[longer] - done, 8)]
        found[longer] = mixed(found[longer] ^ chunk)
        done += 8
        longer = longer[lengths[longer] > done]
    return found


def _rolled(hashes: "np.ndarray[Any, Any]", n: int) -> Any:
    """The polynomial of ``n`` hashes from each place on (places too near the end: what is left), mixed.

    By doubling: what stands for a words and what stands for b words make what stands for a + b.
    """
    import numpy as np

    if n == 1:
        return hashes

    def joined(left: Any, right: Any, size: int, shift: int) -> Any:
        both = left * np.uint64(pow(_GRAM, size, 1 << 64))
        both[: len(hashes) - shift] += right[shift:]
        return both

    done: Any = None
    size, double = 0, hashes
    width = 1
    while width <= n:
        if n & width:
            done = double if done is None else joined(done, double, width, min(size, len(hashes)))
            size += width
        if width * 2 <= n:
            double = joined(double, double, width, min(width, len(hashes)))
        width *= 2
    return mixed(done)
