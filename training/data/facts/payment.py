"""Numbers of payment cards and bank accounts (IBAN) in running text, by their check digits."""

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

from training.data.facts.screen import plain

CARD_SCREEN = r"\p{Nd}(?:[ \-\x{a0}\x{202f}\x{2010}-\x{2014}\x{ff0d}\x{ff0e}.]?\p{Nd}){11}"
IBAN_SCREEN = r"[A-Za-z]{2}[0-9]{2}(?:[ \x{a0}\x{202f}\-]?[A-Za-z0-9]){11}"

# ---------------------------------------------------------------------------------------------- card

_DIGITS = re.compile(r"(?<![A-Za-z0-9])\d(?:[ \u00a0\u202f\-\u2010-\u2014]?\d){11,}(?![A-Za-z0-9])")
_DOTTED = re.compile(r"(?<![A-Za-z0-9.,])\d{4}\.\d{4}\.\d{4}\.\d{4}(?![A-Za-z0-9]|[.,]\d)")
_GROUP = re.compile(r"\d+")
# First digits of issuers and the lengths of their numbers: Visa, Mastercard, American Express, Diners Club, Discover,
# JCB, UnionPay, Mir, RuPay, Maestro (12 digits and more) and the national schemes on its ranges.
_ISSUERS = re.compile(
    r"""(?x) 4(?:\d{12}|\d{15}|\d{18}) | 5[1-5]\d{14} | 2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}
    | 3[47]\d{13}
    | 3(?:0[0-5]|095|[689]\d)(?:\d{11}|\d{13}) | 6(?:011|4[4-9]\d|5\d\d)\d{12,15} | 35\d{14,17} | (?:1800|2131)\d{11}
    | 62\d{14,17} | 220[0-4]\d{12,15} | (?:60|65|81|82|508)\d{13,14} | (?:50|5[6-9]|6\d)\d{10,17} | 0604\d{8}""",
)


def cards(text: str) -> Iterator[tuple[int, int]]:
    """The places of card numbers: a known issuer's first digits and length, the Luhn check, grouped as on a card."""
    text = plain(text)
    found = [span for match in _DIGITS.finditer(text) for span in _windows(text, *match.span())]
    found += [match.span() for match in _DOTTED.finditer(text) if _is_card(match[0].replace(".", ""))]
    yield from sorted(found)


def _windows(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Whole groups of a run of digits that make a card number together; a date or a code may stand beside them."""
    if text[max(0, start - 1) : start] in (".", ",") and text[start - 2 : start - 1].isdigit():
        return  # decimals
    groups = [match.span() for match in _GROUP.finditer(text, start, end)]
    first = 0
    while first < len(groups):
        last = next(
            (
                last
                for last in range(min(first + 7, len(groups)) - 1, first - 1, -1)
                if _fits(text, groups[first : last + 1])
            ),
            None,
        )
        if last is None:
            first += 1
            continue
        yield groups[first][0], groups[last][1]
        first = last + 1


def _fits(text: str, groups: list[tuple[int, int]]) -> bool:
    lengths = [end - start for start, end in groups]
    if not 12 <= sum(lengths) <= 19 or (len(lengths) > 1 and (lengths[0] < 4 or min(lengths) < 2 or max(lengths) > 13)):
        return False
    if len({text[last:first] for (_, last), (first, _) in pairwise(groups)}) > 1:
        return False  # one sign between all groups
    end = groups[-1][1]
    if text[end : end + 1] in (".", ",") and text[end + 1 : end + 2].isdigit():
        return False
    return _is_card("".join(text[first:last] for first, last in groups))


def _is_card(digits: str) -> bool:
    from stdnum import ean, luhn

    if _ISSUERS.fullmatch(digits) is None or not luhn.is_valid(digits) or len(set(digits)) == 1:
        return False
    return len(digits) != 13 or digits[0] == "4" or not ean.is_valid(digits)  # a barcode has 13 digits


# ---------------------------------------------------------------------------------------------- IBAN

_IBAN = re.compile(
    r"(?:(?<![A-Za-z0-9])|(?<=(?i:IBAN)))[A-Za-z]{2}\d{2}(?:[ \u00a0\u202f\-]?[A-Za-z0-9]){11,30}", re.ASCII
)


@cache
def _length(country: str) -> int | None:
    """How many characters an IBAN of the country has, or None where there is none."""
    from stdnum import numdb

    facts = numdb.get("iban").info(country + "00")[0][1]
    return 4 + sum(int(count) for count in re.findall(r"(\d+)!", facts["bban"])) if "bban" in facts else None


def ibans(text: str) -> Iterator[tuple[int, int]]:
    """The places of IBANs: the country's length and structure, modulo 97; in groups or not, in either case."""
    from stdnum import iban

    place = 0
    while match := _IBAN.search(text, place):
        start = place = match.start()
        place += 2
        length = _length(text[start : start + 2].upper())
        marks = [spot for spot in range(start, match.end()) if text[spot].isalnum()]
        if length is None or len(marks) < length:
            continue
        end = marks[length - 1] + 1
        if text[end : end + 1].isascii() and text[end : end + 1].isalnum():
            continue
        if iban.is_valid("".join(text[spot] for spot in marks[:length]), check_country=False):
            yield start, end
            place = end
