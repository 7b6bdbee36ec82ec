"""Phone numbers in running text: international ones, national ones by their shape, and any number that is called so.

Digits alone prove nothing (a sum, a range of years, an ISBN), so there are three degrees. A number with a country code, or
grouped as only phone numbers are, is one wherever it stands. One that is valid somewhere and grouped loosely must be
a valid number there, too. Any other needs a word beside it that says so: "call", "Telefon", "móvil", "电话".
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from training.data.facts.screen import plain

_DASH = "\\-\u2010\u2011\u2012\u2013\u2014\u2212\u30fc"
_SEPARATOR = f"[ \u00a0\u202f\u2009\u3000.{_DASH}/()]"
_GAP = f"[ \u00a0\u202f\u2009.{_DASH}]"
# Seven digits or more with at most three separators between two of them (RE2).
SCREEN = (
    r"\p{Nd}(?:[ \x{a0}\x{202f}\x{2009}.\-\x{2010}-\x{2014}\x{2212}\x{3000}\x{30fc}\x{ff08}-\x{ff0f}/()]{0,3}\p{Nd}){6}"
)
_REGION = re.compile(rf"\(?(?:\+[ (]?)?\(?\d(?:{_SEPARATOR}{{0,3}}\d){{6,}}")
_EXTENSION = re.compile(r"[ ,;]{0,2}(?:x|ext\.?|extension|ext\. no\.?|poste|Durchwahl|#)[ .:]{0,2}\d{1,6}(?!\w)", re.I)
_WORDS = re.compile(
    r"""(?ix) (?<![a-z]) (?: (?:tele|mobile\s|cell\s?)?phone | tel(?:\.|:|\b) | telephone | mobile | cell(?:ular)?\b
    | (?:call|ring|dial|text|sms|fax|reach|contact|whats\s?app|signal|viber|telegram|hotline|helpline|voicemail)
      (?:ed|s|ing)?\b | (?:my|her|his|their|our|your|contact|home|work|office)\s(?:\w+\s){0,2}number
    | landline | toll.?free | extension\b | telefon\w* | handy\w* | mobil\w* | rufnummer | anruf\w*
    | rufen | erreich\w* | t[ée]l[ée]phone\w* | t[ée]l\b | portable | appel\w* | joindre | tel[ée]fono | m[óo]vil
    | celular | cel\b | ll[aá]m\w+ | n[úu]mero | telefone | ligue | ligar | telem[óo]vel | cellulare | chiam\w*
    | telefonn\w* | bel(?:len)?\b | nummer | ring\b | puhelin\w* | numer\b | telefonu | kom[óo]rk\w* | zadzwo\w* )
    | телефон | тел\. | звон | позвон | моб | номер | τηλ | κιν | 电话 | 電話 | 手机 | 手機 | 联系 | 致电 | 携帯
    | 전화 | 휴대 | फ़ोन | फोन | मोबाइल | هاتف | جوال | تلفن | טלפון | נייד | โทร""",
)
_NOT_PHONE = re.compile(
    r"(?i)(?:isbn|issn|doi|ean|gtin|serial|order|invoice|version|iban|account|sku|part)(?:[- ]?1[03])?"
    r"(?: (?:no|number|nr|id)\b)?[.:# ]{0,3}(?:is )?\Z"
)
_ISBN_END = re.compile(r"-[0-9Xx](?![0-9A-Za-z])")
_BEFORE, _AFTER = 48, 28
_COUNT = "01234567890123456789"


@dataclass(frozen=True)
class _Shape:
    """``pattern`` inside a region, and what beyond it must hold of the digits and the group lengths found."""

    pattern: re.Pattern[str]
    holds: Callable[[str, tuple[int, ...]], bool]


@cache
def _countries() -> frozenset[str]:
    from phonenumbers import COUNTRY_CODE_TO_REGION_CODE

    return frozenset(map(str, COUNTRY_CODE_TO_REGION_CODE))


def _has_country(digits: str) -> bool:
    return any(digits[:length] in _countries() for length in (1, 2, 3))


def _international(digits: str, groups: tuple[int, ...]) -> bool:
    """``digits`` with their country code; a 0 that is dialled inside the country only may stand behind it."""
    if digits.startswith("1"):
        return 11 <= len(digits) <= 12
    return 8 <= len(digits) <= 15 and (_has_country(digits) or len(digits) >= 10)


def _apart(digits: str, groups: tuple[int, ...]) -> bool:
    """The same, where a space behind the plus could make it a sum."""
    return len(groups) > 2 and _international(digits, groups)


def _prefixed(digits: str, groups: tuple[int, ...]) -> bool:
    return (
        len(digits) > 9 and len(groups) <= 6 and digits[2] != "0" and _has_country(digits[2:]) and not _binary(digits)
    )


def _binary(digits: str) -> bool:
    return set(digits) <= {"0", "1"}


def _years(digits: str, groups: tuple[int, ...]) -> bool:
    """Whether all groups are years, as in 1995-2014."""
    places = [sum(groups[:number]) for number in range(len(groups))]
    return all(
        length == 4 and "15" <= digits[place : place + 2] <= "21" for place, length in zip(places, groups, strict=True)
    )


def _date(digits: str, groups: tuple[int, ...]) -> bool:
    """Whether the groups begin with a date: 31.12.1999, 1/31/1999, 1999-12-31."""
    if groups[:3] == (4, 2, 2):
        return digits[:2] in ("19", "20") and int(digits[4:6]) <= 12 and int(digits[6:8]) <= 31
    if len(groups) < 3 or groups[2] != 4 or max(groups[:2]) > 2:
        return False
    day, rest = int(digits[: groups[0]]), digits[groups[0] :]
    return max(day, int(rest[: groups[1]])) <= 31 and rest[groups[1] :][:2] in ("19", "20")


def _trunk(digits: str, groups: tuple[int, ...]) -> bool:
    """A national number with its leading 0, in groups."""
    if not 8 <= len(digits) <= 13 or len(groups) > 5 or _binary(digits) or _date(digits, groups):
        return False
    if len(groups) < 2 or groups in ((3, 2, 4), (5, 4)) or (groups[0] == 1 and (groups[1] < 4 or len(groups) < 3)):
        return False  # what US social security numbers, postcodes and ISBNs look like
    return groups.count(1) <= 1 and not (len(groups) > 3 and set(groups) == {2} and len(digits) != 10)


def _bare_trunk(digits: str, groups: tuple[int, ...]) -> bool:
    return not _binary(digits) and len(set(digits)) > 3 and digits not in _COUNT


def _bare(digits: str, groups: tuple[int, ...]) -> bool:
    """Ten digits as in North America or India, eleven as a Chinese mobile number; no round number."""
    power = int(digits) & (int(digits) - 1) == 0 or int(digits) & (int(digits) + 1) == 0  # 4294967296, 2147483647
    return len(set(digits)) > 3 and not digits.endswith("000") and digits not in _COUNT and not power


def _bracketed(digits: str, groups: tuple[int, ...]) -> bool:
    if not 8 <= len(digits) <= 13 or _binary(digits) or _years(digits, groups) or min(groups[1:]) < 2:
        return False
    return not (groups[0] == 4 and digits[:2] in ("19", "20", "18", "17"))  # (1999) 123-456 is a citation


def _loose(digits: str, groups: tuple[int, ...]) -> bool:
    """Groups that a phone number may have and little else: no years, no round numbers."""
    place, ends = 0, []
    for length in groups:
        place += length
        ends.append(digits[place - 2 : place])
    steps = {int(b) - int(a) for a, b in pairwise(ends)}
    if len(groups) > 2 and set(groups) == {2} and (len(steps) == 1 or all(end[-1] in "05" for end in ends)):
        return False  # 10 20 30 40
    first = groups[0] == 4 and digits[:2] in ("15", "16", "17", "18", "19", "20", "21")
    return (
        not first
        and not _years(digits[groups[0] :], groups[1:])
        and ends[-1] != "00"
        and ends.count("00") < 2
        and len(set(digits)) > 3
        and digits not in _COUNT
    )


def _valid(*regions: str) -> Callable[[str, tuple[int, ...]], bool]:
    """Whether the number is valid in one of the regions."""

    def holds(digits: str, groups: tuple[int, ...]) -> bool:
        if digits.endswith("00") or _years(digits, groups) or len(set(digits)) < 4:
            return False
        from phonenumbers import NumberParseException, is_valid_number, parse

        try:
            return any(is_valid_number(parse(digits, region)) for region in regions)
        except NumberParseException:
            return False

    return holds


def _always(digits: str, groups: tuple[int, ...]) -> bool:
    return len(set(digits)) > 1


def _shape(pattern: str, holds: Callable[[str, tuple[int, ...]], bool]) -> _Shape:
    return _Shape(re.compile(pattern.replace("~", _GAP)), holds)


_HEAD = r"(?<![A-Za-z0-9$€£¥.,:/\-])(?<![A-Za-z0-9]_)"
_FREE = _HEAD + r"(?<!\d )"  # for shapes that a list of numbers may have as well
_TAIL = r"(?!\d)"
_ALONE = r"(?![ .,\-]?\s?\d)"
_SHAPES = (
    # +49 (0) 30 1234567
    _shape(rf"(?<![A-Za-z0-9)+])\(?\+ \(?\d(?:{_SEPARATOR}{{0,3}}\d){{6,15}}{_TAIL}", _apart),
    _shape(rf"(?<![A-Za-z0-9)+])\(?\+\(?\d(?:{_SEPARATOR}{{0,3}}\d){{6,15}}{_TAIL}", _international),
    # 0049 30 1234567
    _shape(rf"{_HEAD}00~?\(?[1-9](?:{_SEPARATOR}{{0,3}}\d){{7,13}}{_TAIL}", _prefixed),
    # (212) 555-0123, 1-212-555-0123, 001-212-555-0123, 212.555.0123
    _shape(rf"{_HEAD}(?:(?:00)?1~)?(?:\(\d{{3}}\)~?|\d{{3}}(?P<s>~))\d{{3}}(?(s)(?P=s)|~)\d{{4}}{_TAIL}", _always),
    _shape(rf"{_HEAD}(?:1~)?\d{{3}} \d{{3}}[-.]\d{{4}}{_TAIL}", _always),
    # (030) 123456, (08)-8690-7366, (06)91/417-7763
    _shape(rf"{_HEAD}\(\d{{2,5}}\)[ .\-/]{{0,2}}\d(?:~?/?\d){{4,9}}{_TAIL}", _bracketed),
    # 030/1234567, 01 23 45 67 89, 07700 900123, 08-84 32 41
    _shape(rf"{_HEAD}0(?:\d{{1,5}}(?:~|/| ?/ ?)|[ \-])\d(?:[ \u00a0./{_DASH}]?\d){{4,10}}{_TAIL}", _trunk),
    _shape(rf"{_HEAD}0\d{{1,3}}-\d\d \d\d(?: \d\d){{1,2}}{_TAIL}", _loose),
    _shape(rf"{_HEAD}0\d{{8,10}}(?![A-Za-z0-9]|_\w|[.,]\d)", _bare_trunk),
    # 8 (912) 345-67-89
    _shape(rf"{_HEAD}[78][ -]?\(?\d{{3}}\)?[ -]\d{{3}}[ -]\d{{2}}[ -]?\d{{2}}{_TAIL}", _always),
    # 11 91234-5678, 75-6508-8995, 53/855 7561, 436-05-74, 450 03 959, 22 045 55 69, 842 91 41 77, 5882 4030,
    # 22 54 19 12, 2600 261780, 6972 372 184
    _shape(rf"{_FREE}\(?\d\d\)?[ -]\d{{4,5}}-\d{{4}}{_TAIL}", _loose),
    _shape(rf"{_FREE}\d\d/\d{{3}}[ -]\d{{4}}{_TAIL}", _loose),
    _shape(rf"{_FREE}[2-9]\d\d-\d\d-\d\d(?![ -]?\d)", _loose),
    _shape(rf"{_FREE}[1-9]\d\d(?: \d\d \d{{3}}| \d\d \d\d|-\d{{4}}){_ALONE}", _loose),
    _shape(rf"{_FREE}[1-9]\d{{3}} \d{{4}}{_ALONE}", _loose),
    _shape(rf"{_FREE}\d\d \d\d \d\d \d\d{_ALONE}", _loose),
    _shape(rf"{_FREE}[1-9]\d \d{{3}} \d\d \d\d{_ALONE}", _loose),
    _shape(rf"{_FREE}[6-9]\d\d \d\d \d\d \d\d{_ALONE}", _loose),
    _shape(
        rf"{_FREE}(?:[26]\d{{3}} \d{{6}}|2\d\d \d{{7}}|[26]\d{{3}} \d{{3}} \d{{3}}|2\d{{4}} \d\d \d{{3}}){_ALONE}",
        _loose,
    ),
    # 609 141 777, 98765 43210, 1300 123 456: of many figures that look so only those that are somebody's
    _shape(rf"{_FREE}[25-9]\d\d[ -]\d{{3}}[ -]\d{{3}}{_ALONE}", _valid("PL", "ES", "PT", "CZ", "FR")),
    _shape(rf"{_FREE}3\d\d[ .-]\d{{6,7}}{_TAIL}", _valid("IT")),
    _shape(rf"{_FREE}[6-9]\d{{4}}[ -]\d{{5}}{_TAIL}", _valid("IN")),
    _shape(rf"{_FREE}(?:1[38]00|180\d)~\d{{3}}~\d{{3}}{_TAIL}", _always),
    # 5272868387, 13891417776, 86383948974
    _shape(
        r"(?<![A-Za-z0-9_$€£¥.,:/#=+*\-])(?:[2-9]\d{9}|9[1236]\d{7}|6\d{8}|1[3-9]\d{9}|[78][3-9]\d{9})"
        r"(?![A-Za-z0-9]|_\w|[.,]\d|[ ]?[=*/+%$€£-][ ]?\d)",
        _bare,
    ),
)


def find(text: str) -> Iterator[tuple[int, int]]:
    """The places (start, end) of phone numbers, in order, with their extensions."""
    text = plain(text)
    for region in _REGION.finditer(text):
        start, end = region.span()
        if _arithmetic(text, start, end):
            continue
        found = sorted(_shaped(text, start, end)) or list(_called(text, start, end))
        last = start
        for first, after in found:
            if first >= last:
                extension = _EXTENSION.match(text, after)
                last = extension.end() if extension else after
                yield first, last


def _shaped(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for shape in _SHAPES:
        for match in shape.pattern.finditer(text, start, end):
            digits, groups = _grouped(match[0])
            whole = _ISBN_END.match(text, match.end()) is None and (match.end() < end or _ends(text, end))
            if (
                whole
                and shape.holds(digits, groups)
                and not _NOT_PHONE.search(text, max(0, match.start() - 24), match.start())
            ):
                yield match.span()


def _called(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """A number of 7 to 15 digits that the words around it call a phone number."""
    digits, groups = _grouped(text[start:end])
    if not 7 <= len(digits) <= 15 or _date(digits, groups) or _years(digits, groups) or _binary(digits):
        return
    before = text[max(0, start - _BEFORE) : start]
    if before[-1:] in ("$", "€", "£", "¥", ",") or before[-1:].isalnum() or not _ends(text, end):
        return
    if "." in text[start:end] and (min(groups) == 1 or (len(groups) == 2 and groups != (4, 4))):  # 37.3362725
        return
    if len(groups) < 3 and digits.endswith("000"):
        return
    if len(groups) == 2 and digits.endswith("00") and digits[: groups[0]].endswith("00"):  # 1000-200
        return
    line = before.rpartition("\n\n")[2]
    if _NOT_PHONE.search(line):
        return
    if _WORDS.search(line) or _WORDS.search(text, end, end + _AFTER):
        yield start, end


def _ends(text: str, end: int) -> bool:
    """Whether a number that ends here is whole: no decimals, thousands, letters, units of money or share behind it."""
    after = text[end : end + 2]
    if after[:1] in (",", ".", ":") and after[1:].isdigit():
        return False
    if after[:1] in ("%", "$", "€", "£", "_"):
        return False
    return not (after[:1].isascii() and after[:1].isalnum()) or _EXTENSION.match(text, end) is not None


_OPERATOR_BEFORE = re.compile(r"(?:[\d)\]%](?:\s?[=*×÷/+<>^-])+|>>)\s?\Z")
_OPERATOR_AFTER = re.compile(r"\s?(?:[=×÷^]|<<|\*\s?[\d(])")


def _arithmetic(text: str, start: int, end: int) -> bool:
    """Whether an operator joins the number to another one: 12/3 = 4, <<1200*2=2400>>2400."""
    return bool(_OPERATOR_BEFORE.search(text[max(0, start - 6) : start]) or _OPERATOR_AFTER.match(text, end))


def _grouped(number: str) -> tuple[str, tuple[int, ...]]:
    """The digits, a bracketed (0) left out, and how they are grouped."""
    parts = re.findall(r"\d+", number.replace("(0)", " "))
    return "".join(parts), tuple(map(len, parts))
