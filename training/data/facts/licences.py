"""Licences by their SPDX identifiers, as people write them, and lists of those that a use allows.

The built-in lists are this project's choice and no legal advice; an experiment's own list takes their place. ``commercial``:
licences for data and content that allow any use, after those that the Open Definition (https://opendefinition.org/licenses)
recommends, in all their versions, with the Community Data License Agreements; and the permissive software licences that data
often comes under. ``research`` adds the non-commercial licences of Creative Commons. Licences that forbid derivatives
(ND) are in neither: whether a trained model is one is not for a program to say.
"""

import re
from collections.abc import Collection
from functools import lru_cache

_OPEN = (
    *("CC0-1.0", "PDDL-1.0", "ODC-By-1.0", "ODbL-1.0", "CC-PDM-1.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0"),
    *(f"CC-BY-{version}" for version in ("1.0", "2.0", "2.5", "3.0", "4.0")),
    *(f"CC-BY-SA-{version}" for version in ("1.0", "2.0", "2.5", "3.0", "4.0")),
    *("MIT", "MIT-0", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "ISC", "BSL-1.0", "Zlib", "Unlicense"),
)
_NON_COMMERCIAL = tuple(
    f"CC-BY-NC-{more}{version}" for more in ("", "SA-") for version in ("1.0", "2.0", "2.5", "3.0", "4.0")
)
BUILT_IN: dict[str, tuple[str, ...]] = {"commercial": _OPEN, "research": (*_OPEN, *_NON_COMMERCIAL)}

# What people write → SPDX, both as ``_plain`` leaves them.
_ALIASES = {
    "CC0": "CC0-1.0",
    "CC-0": "CC0-1.0",
    "CC-ZERO": "CC0-1.0",
    "CC-0-1.0": "CC0-1.0",
    "CC-ZERO-1.0": "CC0-1.0",
    "PUBLIC-DOMAIN": "CC-PDM-1.0",
    "PDDL": "PDDL-1.0",
    "ODC-BY": "ODC-BY-1.0",
    "ODBL": "ODBL-1.0",
    "EXPAT": "MIT",
    "APACHE": "APACHE-2.0",
    "APACHE-2": "APACHE-2.0",
    "APACHE2": "APACHE-2.0",
    "APACHE2.0": "APACHE-2.0",
    "APACHE-SOFTWARE-2.0": "APACHE-2.0",
    "BSD-2": "BSD-2-CLAUSE",
    "BSD-3": "BSD-3-CLAUSE",
    "SIMPLIFIED-BSD": "BSD-2-CLAUSE",
    "NEW-BSD": "BSD-3-CLAUSE",
    "BOOST-1.0": "BSL-1.0",
    "THE-UNLICENSE": "UNLICENSE",
}
_NAMES = (
    (r"\bCREATIVE[- ]COMMONS\b", "CC"),
    (r"\bATTRIBUTION\b", "BY"),
    (r"\bNON-?COMMERCIAL\b", "NC"),
    (r"\bSHARE-?ALIKE\b", "SA"),
    (r"\bNO-?DERIV(ATIVE)?S?\b", "ND"),
    (r"\b(UN)?PORTED\b|\bINTERNATIONAL\b|\bUNIVERSAL\b|\bGENERIC\b|\bDEDICATION\b", ""),
    (r"\bLICEN[CS]E\b|\bVERSION\b|\bTHE\b|\bDEED\b", ""),
    (r"\bV(?=\d)", ""),
)

_BROKEN = [""]  # what is left of an expression that is none: no operator goes on from there


@lru_cache(maxsize=4096)
def normalised(licence: str) -> str:
    """A licence as its SPDX identifier in capitals, where the way it is written is known; else tidied capitals.

    "CC BY-NC 4.0", "cc-by-nc-4.0" and https://creativecommons.org/licenses/by-nc/4.0/ are all CC-BY-NC-4.0.
    Law: ``normalised(normalised(x)) == normalised(x)``.
    """
    text = licence.strip().upper()
    link = re.fullmatch(
        r"(?:HTTPS?://)?(?:WWW\.)?CREATIVECOMMONS\.ORG/(LICENSES|PUBLICDOMAIN)/([A-Z-]+)/(\d\.\d).*", text
    )
    if link:
        kind = {"ZERO": "CC0", "MARK": "CC-PDM"}.get(link[2], f"CC-{link[2]}")
        return f"{kind}-{link[3]}"
    if re.match(r"(HTTPS?://)?(WWW\.)?SPDX\.ORG/LICENSES/", text):
        text = re.sub(r".*SPDX\.ORG/LICENSES/|\.HTML$|\.JSON$|/$", "", text)
    if not text.startswith("LICENSEREF"):
        text = re.sub(r"[\s_(),:]+", "-", text)
        for pattern, short in _NAMES:
            text = re.sub(pattern, short, text)
    text = re.sub(r"-{2,}", "-", text).strip("-")
    text = re.sub(r"^CCBY", "CC-BY", text)
    return _ALIASES.get(text, text)


def allows(allowed: Collection[str], licence: str | None) -> bool:
    """Whether a licence (or an SPDX expression of several) is among ``allowed``; an undeclared one never is.

    Of "A OR B" one has to be allowed, of "A AND B" both; "A WITH exception" is A. AND binds tighter than OR.
    """
    if licence is None or not licence.strip():
        return False
    return _allows(frozenset(normalised(name) for name in allowed), licence)


@lru_cache(maxsize=4096)
def _allows(allowed: frozenset[str], licence: str) -> bool:
    if normalised(licence) in allowed:
        return True
    tokens = re.findall(r"[()]|[^\s()]+", licence)
    if not any(token.upper() in ("OR", "AND", "WITH") for token in tokens):
        return False
    value, rest = _either(tokens, allowed)
    return value and not rest


def _either(tokens: list[str], allowed: frozenset[str]) -> tuple[bool, list[str]]:
    value, rest = _both(tokens, allowed)
    while rest and rest[0].upper() == "OR":
        other, rest = _both(rest[1:], allowed)
        value = value or other
    return value, rest


def _both(tokens: list[str], allowed: frozenset[str]) -> tuple[bool, list[str]]:
    value, rest = _one(tokens, allowed)
    while rest and rest[0].upper() == "AND":
        other, rest = _one(rest[1:], allowed)
        value = value and other
    return value, rest


def _one(tokens: list[str], allowed: frozenset[str]) -> tuple[bool, list[str]]:
    if tokens and tokens[0] == "(":
        value, rest = _either(tokens[1:], allowed)
        return (value, rest[1:]) if rest and rest[0] == ")" else (False, _BROKEN)
    name: list[str] = []
    while tokens and tokens[0].upper() not in ("AND", "OR", "WITH") and tokens[0] not in "()":
        name, tokens = [*name, tokens[0]], tokens[1:]
    if len(tokens) > 1 and tokens[0].upper() == "WITH":
        tokens = tokens[2:]
    return (normalised(" ".join(name)) in allowed, tokens) if name else (False, _BROKEN)
