"""JSON by the fast way is JSON by the standard library, in value and in fault."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data import decode as module
from training.data.decode import MAX_DEPTH, decode

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(':"\\u003aA,{}[]'), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.lists(st.tuples(TEXT | st.sampled_from("ab:"), inner), max_size=4),
    max_leaves=12,
)


def written(value: Any, escape: bool, spaces: bool) -> str:
    """JSON in which a list of tuples is an object, whose keys may be there twice."""
    sign = " : " if spaces else ":"
    if isinstance(value, list) and value and all(isinstance(item, tuple) for item in value):
        items = (json.dumps(key, ensure_ascii=escape) + sign + written(item, escape, spaces) for key, item in value)
        return "{" + ",".join(items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(item, escape, spaces) for item in value) + "]"
    return json.dumps(value, ensure_ascii=escape)


def outcome(raw: bytes) -> Any:
    try:
        return "value", repr(decode(raw))
    except ValueError as error:
        return "fault", str(error)


def slow(raw: bytes) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "orjson", None)
        return outcome(raw)


@given(VALUES, st.booleans(), st.booleans())
def test_documents_decode_as_by_the_standard_library(value: Any, escape: bool, spaces: bool) -> None:
    raw = written(value, escape, spaces).encode()
    assert outcome(raw) == slow(raw)


def test_what_no_value_begins_with_is_told_as_by_the_standard_library() -> None:
    for first in range(256):
        with pytest.raises(ValueError) as slow:
            module._slow(bytes([first]) + b"!")
        assert outcome(bytes([first]) + b"!") == ("fault", str(slow.value))


@given(VALUES, st.booleans(), st.integers(0, 200), st.binary(max_size=3))
def test_broken_documents_are_told_as_by_the_standard_library(value: Any, escape: bool, at: int, patch: bytes) -> None:
    raw = written(value, escape, False).encode()
    raw = raw[: at % (len(raw) + 1)] + patch + raw[at % (len(raw) + 1) + len(patch) :]
    assert outcome(raw) == slow(raw)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"a":1,"a":2}', "the same key twice"),
        (b'{"a":1,"\\u0061":2}', "the same key twice"),
        # The escaped colon would make up for the key that is gone.
        (b'{"a":1,"a":2,"b":"\\u003a"}', "the same key twice"),
        (b'{"a":1,"a":2,"b":"\\u003A"}', "the same key twice"),
        (b'{"a":{"x":1},"a":{"x":":"}}', "the same key twice"),
        (b'[{"a" : 1, "a" : 2}]', "the same key twice"),
        (b"NaN", "NaN is no JSON number"),
        (b"[-Infinity]", "-Infinity is no JSON number"),
        (b"9" * 5000, "digits"),
        (b"", "broken JSON: Expecting value at line 1, column 1"),
        (b"oops", "broken JSON: Expecting value at line 1, column 1"),
        (b"\n oops", "broken JSON: Expecting value at line 2, column 2"),
        (b"o\xff", "invalid UTF-8 at byte 1"),
        (b"\xff", "invalid UTF-8 at byte 0"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested too deeply"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "nested too deeply"),
        (b"[" * 2000 + b"]" * 2000, "nested too deeply"),
    ],
)
def test_what_a_fast_decoder_lets_pass_is_found(raw: bytes, expected: str) -> None:
    kind, reason = outcome(raw)
    assert kind == "fault" and expected in reason
    assert slow(raw) == (kind, reason)


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1, 10**30, 123456789012345678901])
def test_whole_numbers_stay_whole(number: int) -> None:
    assert decode(b"[%d]" % number) == [number] and type(decode(b"%d" % number)) is int


def test_the_deepest_that_is_allowed_decodes() -> None:
    raw = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert outcome(raw) == slow(raw) == ("value", raw.decode())
