"""JSON text to a value, or a ``ValueError`` whose message says what is broken and quotes nothing.

orjson decodes. What it lets pass and we don't (the same key twice in one object, a whole number that became a float,
nesting beyond ``MAX_DEPTH``) is found by an exact screen; whatever raises a doubt is decoded again by the standard
library, which says what is wrong and where. Law: ``decode(raw)`` is what the standard library makes of it.
"""

import json
from typing import Any

try:
    import orjson
except ModuleNotFoundError:  # as in records: the result is the same and takes longer
    orjson = None  # type: ignore[assignment]

MAX_DEPTH = 100  # levels of lists and objects in one row
_TOO_DEEP = "nested too deeply"


# What a JSON value may begin with (N and I: of NaN and Infinity, which are refused by name), and white space.
_FIRST = frozenset(b'{["-0123456789tfnNI \t\r\n')


class _Doubt(Exception):
    """The fast way cannot vouch for this value."""


def decode(raw: bytes) -> Any:
    """The value of one JSON document. Raises ValueError with the reason."""
    if raw and raw[0] not in _FIRST and raw.isascii():  # the same reason, a good deal sooner: files full of it exist
        raise ValueError("broken JSON: Expecting value at line 1, column 1")
    if orjson is not None:
        try:
            value = orjson.loads(raw)
            # Every key that is written has one colon outside of text. A colon that is written as an escape would hide one.
            if raw.count(b":") == _colons(value, 0) and b"\\u003" not in raw:
                return value
        except (orjson.JSONDecodeError, _Doubt):
            pass
    return _slow(raw)


def _colons(value: Any, depth: int) -> int:
    """Colons that the value has when it is written: one for each key that is left, and those inside of its texts."""
    kind = type(value)
    if isinstance(value, str):
        return value.count(":")
    if kind is dict:
        if depth == MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        found = len(value)
        for key, item in value.items():
            found += key.count(":") + (item.count(":") if type(item) is str else _colons(item, depth + 1))
        return found
    if kind is list:
        if depth == MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        return sum(_colons(item, depth + 1) for item in value)
    if kind is float and abs(value) >= 2.0**63:
        raise _Doubt  # perhaps a whole number that was rounded
    return 0


def _slow(raw: bytes) -> Any:
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant)
        _check_depth(value, 0)
        return value
    except json.JSONDecodeError as error:
        reason = f"broken JSON: {error.msg} at line {error.lineno}, column {error.colno}"
    except UnicodeDecodeError as error:
        reason = f"invalid UTF-8 at byte {error.start}"
    except RecursionError:
        reason = _TOO_DEEP
    raise ValueError(reason)


def _check_depth(value: Any, depth: int) -> None:
    if isinstance(value, dict | list):
        if depth == MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, depth + 1)


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) != len(items):
        raise ValueError("broken JSON: one object has the same key twice")
    return found


def _constant(name: str) -> float:
    raise ValueError(f"broken JSON: {name} is no JSON number")
