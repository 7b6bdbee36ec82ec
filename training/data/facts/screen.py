"""Cheap questions to many texts at once: which of them match a pattern, and how often.

The patterns are RE2's (through Arrow): one pass over the bytes, whatever the pattern and whatever the text, so that no
text can make a screen slow. A screen may say yes too often; what it passes is looked at exactly.
"""

from collections.abc import Iterator
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_BLOCK = 4096


def plain(text: str) -> str:
    """``text`` with every digit of any script, and the full-width signs, as ASCII; nothing changes its place."""
    return text if text.isascii() else text.translate(_ascii())


@cache
def _ascii() -> dict[int, int]:
    import sys
    import unicodedata

    digits = (code for code in range(128, sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Nd")
    wide = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
    return wide | {code: 0x30 + unicodedata.digit(chr(code)) for code in digits}


class Screen:
    """Texts as Arrow blocks, built once and asked often. Answers have one entry a text."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    @cached_property
    def _blocks(self) -> "list[pa.Array]":
        import pyarrow as pa

        starts = range(0, len(self.texts), _BLOCK)
        return [pa.array(self.texts[start : start + _BLOCK], pa.large_string()) for start in starts]

    def matches(self, pattern: str) -> "np.ndarray[Any, Any]":
        """Whether each text holds a match of the RE2 ``pattern``."""
        import pyarrow.compute as pc

        return self._joined((pc.match_substring_regex(block, pattern) for block in self._blocks), "bool")

    def counts(self, part: str) -> "np.ndarray[Any, Any]":
        """How often each text holds ``part``, a plain string."""
        import pyarrow.compute as pc

        return self._joined((pc.count_substring(block, part) for block in self._blocks), "int64")

    def _joined(self, answers: "Iterator[pa.Array]", kind: str) -> "np.ndarray[Any, Any]":
        import numpy as np

        parts = [answer.to_numpy(zero_copy_only=False) for answer in answers]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=kind)


def per_row(rows: "np.ndarray[Any, Any]", values: Any, batch: int) -> "np.ndarray[Any, Any]":
    """The sum of ``values`` (one a text, which belongs to row ``rows[i]``) for each of ``batch`` rows, as float64."""
    import numpy as np

    return np.bincount(rows, weights=np.asarray(values, dtype="float64"), minlength=batch).astype("float64")
