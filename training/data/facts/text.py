"""Text: characters that no text should hold, and text that says the same over and over."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.data.facts.base import Batch
from training.data.facts.screen import Screen, per_row

if TYPE_CHECKING:
    import numpy as np

# Unicode category Cc but tab, newline and carriage return.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_CONTROL_SCREEN = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x{9f}]"
_LINES = 4  # fewer say nothing about repetition
_LOOP = 200  # characters: a shorter text is no loop, whatever it says
_PROBE = 32
_ROUNDS = 4


@dataclass(frozen=True)
class Text:
    """``control_characters`` and ``replacement_characters`` (U+FFFD): how many stand in the row's texts.

    ``repeated_lines``: of the row's texts the largest ``repetition``. All are null where a line is no record.
    """

    name: str = "text"
    columns: tuple[str, ...] = ("control_characters", "replacement_characters", "repeated_lines")
    key: str = ""

    def __call__(self, batch: Batch) -> "Mapping[str, np.ndarray[Any, Any]]":
        import numpy as np

        flat = batch.flat
        texts, screen = flat.texts, Screen(flat.texts)
        control = np.zeros(len(texts))
        for place in screen.matches(_CONTROL_SCREEN).nonzero()[0].tolist():
            control[place] = len(_CONTROL.findall(texts[place]))
        repeated = np.zeros(len(batch))
        lines = screen.counts("\n").tolist()
        for text, row, ends in zip(texts, flat.row.tolist(), lines, strict=True):
            if ends >= _LINES - 1 or len(text) >= _LOOP:
                share = max(repeated_lines(text) if ends >= _LINES - 1 else 0.0, looped(text))
                if share > repeated[row]:
                    repeated[row] = share
        columns = {
            "control_characters": per_row(flat.row, control, len(batch)),
            "replacement_characters": per_row(flat.row, screen.counts("\ufffd"), len(batch)),
            "repeated_lines": repeated,
        }
        null = np.array([record is None for record in batch.records], dtype=bool)
        for values in columns.values():
            values[null] = math.nan
        return columns


def repetition(text: str) -> float:
    """The share of a text that says again what stands before: the larger of ``repeated_lines`` and ``looped``."""
    return max(repeated_lines(text), looped(text))


def repeated_lines(text: str) -> float:
    """The share of a text's non-empty lines that repeat an earlier one; 0 where there are fewer than four.

    White space around a line does not count. Three lines ``a`` and one ``b`` give 2/4.
    """
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    return 1 - len(set(lines)) / len(lines) if len(lines) >= _LINES else 0.0


def looped(text: str) -> float:
    """The share of a text that its end repeats word for word, as a model does that finds no end; else 0.

    The last 32 characters are looked for right before: the distance is the period. Only a period that comes at least
    four times, in a text of at least 200 characters, is a loop; its first round does not count as repeated.
    """
    text = text.rstrip()
    size = len(text)
    if size < _LOOP:
        return 0.0
    before = text.rfind(text[-_PROBE:], 0, size - 1)
    if before < 0:
        return 0.0
    period = size - _PROBE - before
    rounds, end = 1, size - period
    while end >= period and text.startswith(text[-period:], end - period):
        rounds, end = rounds + 1, end - period
    return (rounds - 1) * period / size if rounds >= _ROUNDS else 0.0
