"""Shape: whether a row is a record, whether its texts say anything, and what its grades say."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from training.data.facts.base import Batch
from training.data.records import Completion, Message, Record, ordered, teaches

if TYPE_CHECKING:
    import numpy as np

_NULL = math.nan
# Drawn as nothing though Unicode calls them letters, symbols or marks: fillers, the empty Braille cell, selectors.
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10)))
_COLUMNS = (
    "unreadable",
    "question_characters",
    "shortest_completion",
    "wrong_roles",
    "completions",
    "missing_completions",
    "missing_grades",
    "ordered_pairs",
    "identical_pairs",
    "pairs",
    "characters",
    "rated",
    "desirable",
)


@cache
def invisible() -> frozenset[str]:
    """Every character that shows nothing: white space, control (Cc) and format (Cf) characters, and blank letters."""
    import unicodedata

    # Cc, Cf and the selectors lie in these planes alone; the others hold ideographs and private use.
    planes = (range(0x20000), range(0xE0000, 0xE1000))
    letters = (chr(code) for plane in planes for code in plane)
    return frozenset(c for c in letters if c.isspace() or unicodedata.category(c) in ("Cc", "Cf")) | frozenset(_BLANK)


@cache
def _stripped() -> str:
    return "".join(sorted(invisible()))


def visible(text: str) -> str:
    """``text`` without white space around it; empty where it holds nothing that can be seen.

    Laws: ``visible(text) in ("", text.strip())``; empty iff every character is ``invisible``.
    """
    text = text.strip()
    if text and text[0] in invisible() and not text.strip(_stripped()):
        return ""
    return text


@dataclass(frozen=True)
class Shape:
    """Facts of a row's form; a line that is no record has ``unreadable`` = 1 and nothing else.

    - ``question_characters``: visible length of the prompt's last message; null where there is no prompt (plain text).
    - ``shortest_completion``: visible length of the shortest completion; null without completions.
    - ``wrong_roles``: turns that are not the one expected there.
    - ``completions``, ``missing_completions``: how many there are and how many more are needed. One labelled completion
      is a whole rating, and needs no other; for SFT it is none where it is labelled undesirable.
    - ``missing_grades``: 1 where some completions are graded and others are not, or grades are of several kinds.
    - ``ordered_pairs``: (better, worse) among the completions; null where there is but one, and for ratings (all
      labelled) that are all alike: those are learnt from one by one. ``identical_pairs``: those of the same text.
      ``pairs``: those that training gets.
    - ``characters``: of the prompt and the longest completion. ``rated``: completions with a label; ``desirable``: true.

    What speaks of grades and pairs is null where one completion is enough (SFT).
    """

    name: str = "shape"
    columns: tuple[str, ...] = _COLUMNS
    key: str = ""

    def __call__(self, batch: Batch) -> "Mapping[str, np.ndarray[Any, Any]]":
        import numpy as np

        nothing = (_NULL,) * (len(_COLUMNS) - 1)
        rows = [(1.0, *nothing) if record is None else (0.0, *_facts(record, batch.needed)) for record in batch.records]
        table = np.array(rows, dtype="float64").reshape(len(rows), len(_COLUMNS))
        return {name: np.ascontiguousarray(table[:, place]) for place, name in enumerate(_COLUMNS)}


def _facts(record: Record, needed: int) -> tuple[float, ...]:
    prompt, completions = record.prompt, record.completions
    lengths = [len(completion.text) for completion in completions]
    shown = [visible(completion.text) for completion in completions]
    alone = len(completions) == 1 and completions[0].label is not None
    missing = max(0, needed - len(completions)) if needed > 1 else int(not teaches(record))
    return (
        len(visible(prompt[-1].content)) if prompt else _NULL,
        min(map(len, shown)) if shown else _NULL,
        wrong_roles(prompt),
        len(completions),
        0 if alone and needed > 1 else missing,
        *(_grades(record, shown) if needed > 1 else (_NULL, _NULL, _NULL, _NULL)),
        sum(len(message.content) for message in prompt) + max(lengths, default=0),
        *_labels(completions),
    )


def _labels(completions: tuple[Completion, ...]) -> tuple[int, int]:
    labels = [completion.label for completion in completions]
    return len(labels) - labels.count(None), labels.count(True)


def _grades(record: Record, shown: list[str]) -> tuple[float, float, float, float]:
    """missing_grades, ordered_pairs, identical_pairs, pairs."""
    completions = record.completions
    if len(completions) == 2:
        first, second = completions
        scores = first.score is None and second.score is None
        if scores and first.rank is not None and second.rank is not None and first.rank != second.rank:  # most data
            return 0, 1, shown[0] == shown[1], first.text != second.text
    kinds = {_kind(completion) for completion in completions}
    both = ordered(record)
    ratings = kinds == {"label"} and not both
    return (
        len(kinds) > 1,
        len(both) if len(completions) > 1 and not ratings else _NULL,
        sum(visible(better.text) == visible(worse.text) for better, worse in both),
        sum(better.text != worse.text for better, worse in both),
    )


def _kind(completion: Completion) -> str | None:
    return next((kind for kind in ("score", "rank", "label") if getattr(completion, kind) is not None), None)


def wrong_roles(prompt: tuple[Message, ...]) -> int:
    """How many turns are not the one expected there: a system message or none, then user and assistant in turn.

    A user has the last word. A prompt without messages has no wrong role; a system message alone has one.
    """
    if len(prompt) == 1 and prompt[0].role == "user":
        return 0
    roles = [message.role for message in prompt]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns:
        return len(roles)
    before = ["assistant", *turns[:-1]]
    faults = sum(
        turn != ("user" if last == "assistant" else "assistant") for turn, last in zip(turns, before, strict=True)
    )
    return faults + (turns[-1] != "user")
