"""The canonical record, the forms it is read from, and what it holds: pairs and grades for preferences, examples for SFT.

A record is ``{prompt: messages, completions: [{text, score | rank | label, model}], weight}``. Its id is the SHA-256
of the canonical JSON of prompt and completions alone, so the same content has the same id in whatever file it stands.
``parse`` turns one row of a file into a record; a row that it cannot turn raises ``ValueError`` with the reason, and a
reason never quotes the row's text. Text is taken as it stands: nothing is trimmed, lower-cased or normalised.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from training.digest import digest_json

MAX_COMPLETIONS = 64
LONE_SURROGATE = "the text holds half a surrogate pair, which is no character"

# What a form is recognised by: the columns it needs. Earlier forms win where a row has the columns of several.
FORMS: dict[str, tuple[str, ...]] = {
    "pairs": ("prompt", "chosen", "rejected"),
    "transcripts": ("chosen", "rejected"),
    "graded": ("prompt", "completions"),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
}
COLUMNS = frozenset(column for needed in FORMS.values() for column in needed) | {"weight"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Completion:
    """One answer to a prompt, with at most one grade: ``score`` (high is good), ``rank`` (1 is best) or ``label``."""

    text: str
    score: float | None = None
    rank: int | None = None
    label: bool | None = None
    model: str | None = None

    def payload(self) -> dict[str, Any]:
        """JSON object without the absent fields."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Provenance:
    """Where a record stands (the file as the experiment names it, the line or element from 1) and what was declared of it.

    ``subject``: whom it is about; ``legal_basis`` as in GDPR Art. 6; ``expires`` (of the consent) and ``collected_at`` are ISO 8601.
    """

    source: str
    line: int
    licence: str | None = None
    subject: str | None = None
    consent: str | None = None
    legal_basis: str | None = None
    purpose: str | None = None
    expires: str | None = None
    collected_at: str | None = None

    def payload(self) -> dict[str, Any]:
        """JSON object: source, line, licence, and of the others those that were declared."""
        declared = {name: value for name, value in vars(self).items() if value is not None}
        return {"licence": None, **declared}


@dataclass(frozen=True)
class Record:
    """A prompt and its completions. Law: ``Record.from_payload(record.payload()) == record``."""

    prompt: tuple[Message, ...]
    completions: tuple[Completion, ...]
    weight: float = 1.0

    @cached_property
    def id(self) -> str:
        """SHA-256 (hex) of the canonical JSON of prompt and completions; weight and provenance don't enter."""
        content = self.payload()
        return digest_json({"prompt": content["prompt"], "completions": content["completions"]}).value

    def payload(self) -> dict[str, Any]:
        return {
            "prompt": [dict(vars(message)) for message in self.prompt],
            "completions": [completion.payload() for completion in self.completions],
            "weight": self.weight,
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> "Record":
        return cls(
            tuple(Message(**message) for message in payload["prompt"]),
            # JSON knows one kind of number: a score of 1.0 comes back as 1.
            tuple(
                Completion(
                    **{**completion, "score": float(completion["score"])} if "score" in completion else completion
                )
                for completion in payload["completions"]
            ),
            float(payload["weight"]),
        )


@dataclass(frozen=True)
class Pair:
    """A chosen and a rejected completion of one prompt."""

    record_id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    weight: float


@dataclass(frozen=True)
class Example:
    """A prompt and the completion to learn."""

    record_id: str
    prompt: tuple[Message, ...]
    completion: str
    weight: float


# ------------------------------------------------------------------------------------------------ views


def merit(completion: Completion) -> tuple[str, float] | None:
    """The kind of a completion's grade, and the grade as a number of which more is better; None if ungraded."""
    if completion.score is not None:
        return "score", completion.score
    if completion.rank is not None:
        return "rank", -float(completion.rank)
    if completion.label is not None:
        return "label", float(completion.label)
    return None


def ordered(record: Record) -> list[tuple[Completion, Completion]]:
    """Every (better, worse) of two completions with different grades of the same kind, best first.

    Ties and ungraded completions give nothing. K completions give at most K (K - 1) / 2.
    """
    graded = [(grade, completion) for completion in record.completions if (grade := merit(completion)) is not None]
    graded.sort(key=lambda item: -item[0][1])
    return [
        (better, worse)
        for ((kind, high), better), ((other, low), worse) in combinations(graded, 2)
        if kind == other and high > low
    ]


def pairs(record: Record) -> list[Pair]:
    """All strictly ordered pairs; each weighs ``record.weight / number of pairs``, so that a prompt counts once.

    A pair whose two texts are the same says nothing and is left out. Order: best chosen first, then best rejected
    first, then as stored.
    """
    different = [(better, worse) for better, worse in ordered(record) if better.text != worse.text]
    return [
        Pair(record.id, record.prompt, better.text, worse.text, record.weight / len(different))
        for better, worse in different
    ]


def graded(record: Record) -> tuple[str, list[tuple[Completion, float]]]:
    """The kind of the grades (of the first graded completion) and all completions of that kind, as stored.

    Each comes with its grade as a number of which more is better. A record without grades: ``("", [])``.
    """
    merits = [(merit(completion), completion) for completion in record.completions]
    kind = next((grade[0] for grade, _ in merits if grade is not None), "")
    return kind, [(completion, grade[1]) for grade, completion in merits if grade is not None and grade[0] == kind]


def sft(record: Record) -> Example:
    """The best completion (of ties and of ungraded ones the first). Raises ValueError if there is none."""
    if not record.completions:
        raise ValueError(f"record {record.id} has no completion to learn from")
    graded = [completion for completion in record.completions if merit(completion) is not None]
    best = max(graded, key=lambda completion: merit(completion)[1]) if graded else record.completions[0]  # type: ignore[index]
    return Example(record.id, record.prompt, best.text, record.weight)


# ------------------------------------------------------------------------------------------------ forms


def recognise(columns: Iterable[str]) -> str | None:
    """The form of a row with these columns, or None."""
    found = set(columns)
    return next((form for form, needed in FORMS.items() if found.issuperset(needed)), None)


def parse(row: Mapping[str, Any], form: str) -> Record:
    """One row of a file in ``form`` → a record. Raises ValueError with the reason; the reason quotes no text."""
    for column in FORMS[form]:
        if column not in row:
            raise ValueError(f"'{column}' is missing")
        if row[column] is None:
            raise ValueError(f"'{column}' is null")
    record = Record(*_READERS[form](row), weight=_weight(row.get("weight")))
    try:
        record.id  # noqa: B018 - canonical JSON refuses what has no bytes
    except ValueError:
        raise ValueError(LONE_SURROGATE) from None
    return record


def _pairs(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[Completion, ...]]:
    prompt = _prompt(row["prompt"])
    texts = []
    for name in ("chosen", "rejected"):
        value = row[name]
        if isinstance(value, list) and len(value) > 1 and (messages := _messages(value, name))[:-1] == prompt:
            value = row[name][len(messages) - 1 :]  # the whole conversation, the prompt repeated
        texts.append(_answer(value, name))
    return prompt, _ranked(*texts)


def _transcripts(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[Completion, ...]]:
    chosen, rejected = _conversation(row["chosen"], "chosen"), _conversation(row["rejected"], "rejected")
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if not messages or messages[-1].role != "assistant":
            raise ValueError(f"'{name}' doesn't end with an assistant turn")
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("'chosen' and 'rejected' differ before their last assistant turn")
    return chosen[:-1], _ranked(chosen[-1].content, rejected[-1].content)


def _graded(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[Completion, ...]]:
    items = row["completions"]
    if not isinstance(items, list):
        raise ValueError(f"'completions' is {_kind(items)}, not a list")
    if len(items) > MAX_COMPLETIONS:
        raise ValueError(f"{len(items)} completions; at most {MAX_COMPLETIONS} are allowed")
    return _prompt(row["prompt"]), tuple(_completion(item, f"completions[{i}]") for i, item in enumerate(items))


def _one(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[Completion, ...]]:
    return _prompt(row["prompt"]), (Completion(_answer(row["completion"], "completion")),)


def _chat(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[Completion, ...]]:
    messages = _messages(row["messages"], "messages")
    if not messages or messages[-1].role != "assistant":
        raise ValueError("'messages' doesn't end with an assistant turn")
    return messages[:-1], (Completion(messages[-1].content),)


_READERS = {"pairs": _pairs, "transcripts": _transcripts, "graded": _graded, "completion": _one, "messages": _chat}


def _ranked(chosen: str, rejected: str) -> tuple[Completion, ...]:
    return Completion(chosen, rank=1), Completion(rejected, rank=2)


def _completion(item: Any, name: str) -> Completion:
    if isinstance(item, str):
        return Completion(item)
    if not isinstance(item, Mapping):
        raise ValueError(f"'{name}' is {_kind(item)}, not an object")
    given = {key: value for key, value in item.items() if value is not None}
    if ("text" in given) == ("messages" in given):
        raise ValueError(f"'{name}' needs either 'text' or 'messages'")
    if sum(key in given for key in ("score", "rank", "label")) > 1:
        raise ValueError(f"'{name}' has more than one of 'score', 'rank' and 'label'")
    rank, label, model = given.get("rank"), given.get("label"), given.get("model")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= 2**53):
        raise ValueError(f"'{name}.rank' must be a whole number from 1")
    if label is not None and not isinstance(label, bool):
        raise ValueError(f"'{name}.label' is {_kind(label)}, not true or false")
    if model is not None and not isinstance(model, str):
        raise ValueError(f"'{name}.model' is {_kind(model)}, not text")
    score = None if "score" not in given else _number(given["score"], f"{name}.score")
    return Completion(_answer(given.get("text", given.get("messages")), name), score, rank, label, model)


def _prompt(value: Any) -> tuple[Message, ...]:
    return (Message("user", value),) if isinstance(value, str) else _messages(value, "prompt")


def _answer(value: Any, name: str) -> str:
    """Text, or a list with one assistant message, as text."""
    if isinstance(value, str):
        return value
    messages = _messages(value, name)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise ValueError(f"'{name}' must be text or exactly one assistant message; found {len(messages)} message(s)")
    return messages[0].content


def _messages(value: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise ValueError(f"'{name}' is {_kind(value)}, neither text nor a list of messages")
    for i, item in enumerate(value):
        if not isinstance(item, Mapping) or not all(isinstance(item.get(key), str) for key in ("role", "content")):
            raise ValueError(f"'{name}[{i}]' must be an object with 'role' and 'content' as text")
    return tuple(Message(item["role"], item["content"]) for item in value)


def _conversation(value: Any, name: str) -> tuple[Message, ...]:
    """A list of messages, or a transcript: turns that begin with 'Human: ' or 'Assistant: ' after an empty line."""
    if not isinstance(value, str):
        return _messages(value, name)
    marks = list(_TURN.finditer(value))
    if not marks or value[: marks[0].start()].strip():
        raise ValueError(f"'{name}' doesn't begin with 'Human:' or 'Assistant:'")
    ends = [mark.start() for mark in marks[1:]] + [len(value)]
    return tuple(Message(_SPEAKERS[mark[1]], value[mark.end() : end]) for mark, end in zip(marks, ends, strict=True))


def _weight(value: Any) -> float:
    weight = 1.0 if value is None else _number(value, "weight")
    if weight <= 0:
        raise ValueError("'weight' must be more than 0")
    return weight


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"'{name}' is {_kind(value)}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"'{name}' is no finite number")
    return number


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), f"of type {type(value).__name__}")
