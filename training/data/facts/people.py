"""People and secrets: what in a text names a person, an account or a key, and how much of it each row holds."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from training.data.facts import address, credentials, payment, phone
from training.data.facts.base import Batch
from training.data.facts.screen import Screen, per_row

if TYPE_CHECKING:
    import numpy as np


class Found(NamedTuple):
    """``text[start:end]`` is a ``kind``."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Kind:
    """Something to find. Every text in which ``places`` finds something matches one of ``screens`` (RE2).

    ``mask`` is what stands in its place in a report.
    """

    name: str
    mask: str
    screens: tuple[str, ...]
    places: Callable[[str], Iterator[tuple[int, int]]]


# In the order of precedence: what an earlier kind has taken is nothing else as well.
KINDS = (
    Kind("private_key", "<secret>", (credentials.PRIVATE_KEY_SCREEN,), credentials.private_keys),
    Kind("api_key", "<secret>", (credentials.API_KEY_SCREEN, credentials.LONG_KEY_SCREEN), credentials.api_keys),
    Kind("email", "<e-mail>", (address.EMAIL_SCREEN,), address.emails),
    Kind("iban", "<IBAN>", (payment.IBAN_SCREEN,), payment.ibans),
    Kind("card", "<card>", (payment.CARD_SCREEN,), payment.cards),
    Kind("ip_address", "<IP address>", (address.IP_SCREEN,), address.ips),
    Kind("phone", "<phone>", (phone.SCREEN,), phone.find),
)
# Kinds whose screens go well into one pattern: texts that it does not match, as most, are passed over once for all.
_TOGETHER = (("private_key", "email", "iban", "ip_address"), ("card", "phone"), ("api_key",))


def find(text: str, kinds: Sequence[Kind] = KINDS) -> list[Found]:
    """Everything of these kinds in the text, by place; nothing overlaps."""
    taken: list[Found] = []
    for kind in kinds:
        last = 0
        for start, end in kind.places(text):
            if start >= last and not any(start < other.end and other.start < end for other in taken):
                taken.append(Found(kind.name, start, end))
                last = end
    return sorted(taken, key=lambda found: found.start)


@cache
def _libraries() -> str:
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("phonenumbers", "python-stdnum"))


@dataclass(frozen=True)
class People:
    """How often each kind stands in the row's texts; null where a line is no record."""

    name: str = "people"
    columns: tuple[str, ...] = ("email", "phone", "card", "iban", "ip_address", "api_key", "private_key")

    @property
    def key(self) -> str:
        """The versions of the libraries that know numbers of phones and banks."""
        return _libraries()

    def __call__(self, batch: Batch) -> "Mapping[str, np.ndarray[Any, Any]]":
        import numpy as np

        flat = batch.flat
        screen = Screen(flat.texts)
        counts = {kind.name: np.zeros(len(flat.texts)) for kind in KINDS}
        suspects: dict[int, set[str]] = {}
        for names in _TOGETHER:
            _suspect(screen, [kind for kind in KINDS if kind.name in names], suspects)
        for place, names_of in suspects.items():
            for found in find(flat.texts[place], [kind for kind in KINDS if kind.name in names_of]):
                counts[found.kind][place] += 1
        columns = {name: per_row(flat.row, counts[name], len(batch)) for name in self.columns}
        null = np.array([record is None for record in batch.records], dtype=bool)
        for values in columns.values():
            values[null] = math.nan
        return columns


def _suspect(screen: Screen, kinds: list[Kind], suspects: dict[int, set[str]]) -> None:
    """Add to ``suspects`` (place of a text → names of kinds) the texts that the kinds' screens pass."""
    if len(kinds) == 1:
        (kind,) = kinds
        for pattern in kind.screens:
            for place in screen.matches(pattern).nonzero()[0].tolist():
                suspects.setdefault(place, set()).add(kind.name)
        return
    either = "|".join(f"(?:{pattern})" for kind in kinds for pattern in kind.screens)
    places = screen.matches(either).nonzero()[0].tolist()
    some = Screen([screen.texts[place] for place in places])
    for kind in kinds:
        within: dict[int, set[str]] = {}
        _suspect(some, [kind], within)
        for number in within:
            suspects.setdefault(places[number], set()).add(kind.name)
