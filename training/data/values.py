"""The values of a row's columns, each as what it has to be, or a ``ValueError`` that says what it is instead.

No message quotes a value: only its kind and its column's name.
"""

import math
from collections.abc import Mapping
from typing import Any

from training.data.records import Message

_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}


def kind(value: Any) -> str:
    """What a value is, in a word."""
    return _KINDS.get(type(value), "null" if value is None else f"of type {type(value).__name__}")


def as_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is {kind(value)}, not text")
    return value


def as_prompt(value: Any) -> tuple[Message, ...]:
    """Text as one user message, or a list of messages."""
    return (Message("user", value),) if isinstance(value, str) else as_messages(value, "prompt")


def as_answer(value: Any, name: str) -> str:
    """Text, or a list with one assistant message, as text."""
    if isinstance(value, str):
        return value
    messages = as_messages(value, name)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise ValueError(f"'{name}' must be text or exactly one assistant message; found {len(messages)} message(s)")
    return messages[0].content


def as_messages(value: Any, name: str, keys: str = "'role' and 'content'", first: int = 0) -> tuple[Message, ...]:
    """A list of ``{role, content}``; ``keys`` and ``first`` (the number of its first item) are for the message only."""
    if not isinstance(value, list):
        raise ValueError(f"'{name}' is {kind(value)}, neither text nor a list of messages")
    for i, item in enumerate(value, first):
        if not isinstance(item, Mapping) or not all(isinstance(item.get(key), str) for key in ("role", "content")):
            raise ValueError(f"'{name}[{i}]' must be an object with {keys} as text")
    return tuple(Message(item["role"], item["content"]) for item in value)


def as_number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"'{name}' is {kind(value)}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"'{name}' is no finite number")
    return number


def as_rank(value: Any, name: str) -> int:
    """A whole number from 1, also where a container knows fractions only (2.0)."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**53:
        raise ValueError(f"'{name}' must be a whole number from 1")
    return value


def as_flag(value: Any, name: str) -> bool:
    """true or false, also as 1 or 0."""
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise ValueError(f"'{name}' is {kind(value)}, not true or false (or 1 or 0)")


def as_weight(value: Any) -> float:
    weight = as_number(value, "weight")
    if weight <= 0:
        raise ValueError("'weight' must be more than 0")
    return weight
