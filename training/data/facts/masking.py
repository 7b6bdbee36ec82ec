"""Masking: no report, log or excerpt shows what names a person, an account or a key."""

import re

from training.data.facts.people import KINDS, find

_EXCERPT = 80
_WINDOW = 4000  # characters looked at, so that a key or an address that is cut off is seen whole
_MAIL = re.compile(r"\S*@\S*")
_MASKS = {kind.name: kind.mask for kind in KINDS}


def mask(text: str) -> str:
    """``text`` with everything that ``people.find`` finds replaced by its name in <>, digits by '#', '@' with its word.

    Digits and '@' go as a matter of course: what no detector knows may be a person's all the same.
    Laws: ``find(mask(text)) == []``; ``mask(mask(text)) == mask(text)``.
    """
    text = _hidden(text)
    while find(text):  # a mask may have made a key of what stood beside it
        text = _hidden(text)
    return text


def _hidden(text: str) -> str:
    parts, last = [], 0
    for item in find(text):
        parts += [text[last : item.start], _MASKS[item.kind]]
        last = item.end
    return re.sub(r"\d", "#", _MAIL.sub("<e-mail>", "".join(parts) + text[last:]))


def excerpt(text: str) -> str:
    """At most 80 characters of the beginning, masked, control characters as spaces."""
    start = text[:_WINDOW]
    if len(text) > len(start):
        start = start.rpartition(" ")[0]  # a mail address may have been cut before its '@'
    start = mask(start)
    start = " ".join("".join(c if c.isprintable() else " " for c in start).split())
    return start if len(start) <= _EXCERPT else start[: _EXCERPT - 1] + "…"
