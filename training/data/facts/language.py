"""Language of a sample of the rows: enough to see that the mix has changed, at little cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.data.facts.base import Batch
from training.data.records import Record

if TYPE_CHECKING:
    import numpy as np

# Codes (ISO 639) as py3langid has them; zxx is no language (code, numbers). A language's number is its place here, for
# good: stored facts are compared, so new ones go to the end.
_CODES = (
    "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr fuv fy"
    " ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky la lb"
    " lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si"
    " sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu zxx"
)
LANGUAGES = tuple(_CODES.split())
EVERY = 32  # one row in so many is looked at
_CHARACTERS = 300
_FEWEST = 20  # letters: less text has no language to speak of


@dataclass(frozen=True)
class Language:
    """``language``: the place in ``LANGUAGES`` of what a row is written in, for one row in ``EVERY``; else null.

    Which rows are looked at depends on their ids alone (they are digests), so a row keeps its answer whatever stands
    beside it. Null, too, where a line is no record, has fewer than 20 letters, or in a language without a place.
    """

    name: str = "language"
    columns: tuple[str, ...] = ("language",)

    @property
    def key(self) -> str:
        """The version of the library's model."""
        from importlib.metadata import version

        return f"py3langid {version('py3langid')}, 1 in {EVERY}"

    def __call__(self, batch: Batch) -> "Mapping[str, np.ndarray[Any, Any]]":
        import numpy as np

        found = np.full(len(batch), math.nan)
        for row, (identity, record) in enumerate(zip(batch.ids, batch.records, strict=True)):
            if record is not None and sampled(identity):
                found[row] = number(_beginning(record))
        return {"language": found}


def sampled(identity: str) -> bool:
    """Whether the row of this id (a SHA-256 in hex) is one that is looked at."""
    return int(identity[-8:], 16) % EVERY == 0


def number(text: str) -> float:
    """The place in ``LANGUAGES`` of the language of a text, or NaN."""
    if sum(map(str.isalpha, text)) < _FEWEST:
        return math.nan
    from py3langid import classify

    language = classify(text)[0]
    return float(LANGUAGES.index(language)) if language in LANGUAGES else math.nan


def _beginning(record: Record) -> str:
    """The beginnings of what a row says, of each text as much as of the others."""
    texts = [message.content for message in record.prompt[-1:]] + [c.text for c in record.completions[:2]]
    each = _CHARACTERS // max(1, len(texts))
    return "\n".join(text.strip()[:each] for text in texts)
