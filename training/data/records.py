"""The canonical record and what it holds: pairs and grades for preferences, examples for SFT.

A record is ``{prompt: messages, completions: [{text, score | rank | label, model}], weight}``. Its id is the SHA-256
of the canonical JSON of prompt and completions alone, so the same content has the same id in whatever file it stands.
Text is taken as it stands: nothing is trimmed, lower-cased or normalised. A row of plain text has the prompt ``()``.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from training.digest import canonical_json

try:  # a machine that only trains may lack it: the bytes are the same, and take some ten times as long
    import orjson
except ModuleNotFoundError:
    orjson = None  # type: ignore[assignment]

LONE_SURROGATE = "the text holds half a surrogate pair, which is no character"


# These four are made by the million. An ``__init__`` of their own takes a third of the time of a frozen dataclass's.


@dataclass(frozen=True, init=False)
class Message:
    """One turn of a conversation."""

    role: str
    content: str

    def __init__(self, role: str, content: str) -> None:
        fields = self.__dict__
        fields["role"], fields["content"] = role, content


@dataclass(frozen=True, init=False)
class Completion:
    """One answer to a prompt, with at most one grade: ``score`` (high is good), ``rank`` (1 is best) or ``label``."""

    text: str
    score: float | None = None
    rank: int | None = None
    label: bool | None = None
    model: str | None = None

    def __init__(
        self,
        text: str,
        score: float | None = None,
        rank: int | None = None,
        label: bool | None = None,
        model: str | None = None,
    ) -> None:
        fields = self.__dict__
        fields["text"], fields["score"], fields["rank"] = text, score, rank
        fields["label"], fields["model"] = label, model

    def payload(self) -> dict[str, Any]:
        """JSON object without the absent fields."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, init=False)
class Provenance:
    """Where a record stands (the file as the experiment names it, the line or element from 1) and what was declared of it.

    ``subject``: whom it is about; ``legal_basis`` as in GDPR Art. 6; ``expires`` (of the consent) and ``collected_at``:
    ISO 8601 dates or times in UTC.
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

    def __init__(
        self,
        source: str,
        line: int,
        licence: str | None = None,
        subject: str | None = None,
        consent: str | None = None,
        legal_basis: str | None = None,
        purpose: str | None = None,
        expires: str | None = None,
        collected_at: str | None = None,
    ) -> None:
        fields = self.__dict__
        fields["source"], fields["line"], fields["licence"], fields["subject"] = source, line, licence, subject
        fields["consent"], fields["legal_basis"], fields["purpose"] = consent, legal_basis, purpose
        fields["expires"], fields["collected_at"] = expires, collected_at

    def payload(self) -> dict[str, Any]:
        """JSON object: source, line, licence, and of the others those that were declared."""
        declared = {name: value for name, value in vars(self).items() if value is not None}
        return {"licence": None, **declared}


@dataclass(frozen=True, init=False)
class Record:
    """A prompt and its completions. Law: ``Record.from_payload(record.payload()) == record``."""

    prompt: tuple[Message, ...]
    completions: tuple[Completion, ...]
    weight: float = 1.0

    def __init__(self, prompt: tuple[Message, ...], completions: tuple[Completion, ...], weight: float = 1.0) -> None:
        fields = self.__dict__
        fields["prompt"], fields["completions"], fields["weight"] = prompt, completions, weight

    @cached_property
    def id(self) -> str:
        """SHA-256 (hex) of the canonical JSON of prompt and completions; weight and provenance don't enter."""
        return hashlib.sha256(self._content).hexdigest()

    @property
    def payload_bytes(self) -> bytes:
        """``canonical_json(self.payload())``. Raises ValueError where a text holds half a surrogate pair."""
        weight = b"1" if self.weight == 1.0 else canonical_json(self.weight)
        return self._content[:-1] + b',"weight":' + weight + b"}"

    @cached_property
    def _content(self) -> bytes:
        """The canonical JSON of prompt and completions."""
        if orjson is not None:
            try:
                # Written in the order of RFC 8785. Of text and small whole numbers orjson's bytes are those of the RFC.
                return orjson.dumps(
                    {
                        "completions": [_sorted(completion) for completion in self.completions],
                        "prompt": [{"content": message.content, "role": message.role} for message in self.prompt],
                    }
                )
            except TypeError:
                pass  # half a surrogate pair, or a type that isn't JSON's: the other way says so
        content = self.payload()
        return canonical_json({"prompt": content["prompt"], "completions": content["completions"]})

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


def _sorted(completion: Completion) -> dict[str, Any]:
    """``completion.payload()`` with its keys sorted and its numbers as RFC 8785 writes them."""
    text, score, rank, label, model = vars(completion).values()
    found: dict[str, Any] = {}
    if label is not None:
        found["label"] = label
    if model is not None:
        found["model"] = model
    if rank is not None:
        found["rank"] = _number(rank)
    if score is not None:
        found["score"] = _number(score)
    found["text"] = text
    return found


def _number(value: float) -> Any:
    if -(2**53) < value < 2**53 and value == int(value):
        return int(value)
    return orjson.Fragment(canonical_json(value))


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


def teaches(record: Record) -> bool:
    """Whether there is a completion to learn as an example: one that is not labelled undesirable."""
    return any(completion.label is not False for completion in record.completions)


def sft(record: Record) -> Example:
    """The best completion (of ties and of ungraded ones the first). Raises ValueError if there is none; see ``teaches``."""
    if not teaches(record):
        raise ValueError(f"record {record.id} has no completion to learn from")
    wanted = [completion for completion in record.completions if completion.label is not False]
    graded = [completion for completion in wanted if merit(completion) is not None]
    best = max(graded, key=lambda completion: merit(completion)[1]) if graded else wanted[0]  # type: ignore[index]
    return Example(record.id, record.prompt, best.text, record.weight)
