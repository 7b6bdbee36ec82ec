"""Batches made of records, and made-up text, for tests of fact makers."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from training.data.facts.base import Batch
from training.data.facts.near import Near
from training.data.near import near_duplicates
from training.data.records import Completion, Message, Provenance, Record


def pair(prompt: str | Sequence[tuple[str, str]], chosen: str, rejected: str) -> Record:
    turns = (("user", prompt),) if isinstance(prompt, str) else prompt
    messages = tuple(Message(role, content) for role, content in turns)
    return Record(messages, (Completion(chosen, rank=1), Completion(rejected, rank=2)))


def scored(prompt: str, **answers: float | None) -> Record:
    return Record((Message("user", prompt),), tuple(Completion(text, score=score) for text, score in answers.items()))


def example(prompt: str, completion: str) -> Record:
    return Record((Message("user", prompt),), (Completion(completion),))


def batch(records: Sequence[Record | None], part: str = "preferences", where: Sequence[Provenance] = ()) -> Batch:
    """A batch of records; None is a line that is no record."""
    ids = [f"{number:064x}" if record is None else record.id for number, record in enumerate(records)]
    reasons = [None if record is not None else "broken" for record in records]
    places = list(where) or [Provenance("a.jsonl", number) for number in range(1, len(records) + 1)]
    return Batch(part, 1 if part == "sft" else 2, ids, records, places, reasons, reasons)


def sliced(whole: Batch, size: int) -> list[Batch]:
    """The rows of a batch in batches of ``size``."""
    return [
        replace(whole, **{name: getattr(whole, name)[low : low + size] for name in vars_of(whole)})
        for low in range(0, len(whole), size)
    ]


def vars_of(whole: Batch) -> tuple[str, ...]:
    return ("ids", "records", "provenance", "reasons", "raw")


VOCABULARY = [
    "".join(letters)
    for rng in [random.Random(11)]
    for letters in (rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9)) for _ in range(5000))
]


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(VOCABULARY, k=words))


def near(records: Sequence[Record | None], folder: Path, size: int = 1 << 30, part: str = "preferences") -> list[bool]:
    """Which rows are near-duplicates, their facts made in batches of ``size`` rows."""
    maker = Near(0.8)
    made: list[dict[str, Any]] = [dict(maker(part_)) for part_ in sliced(batch(records, part), size)]
    ids = np.array([int(id_[:16], 16) for id_ in batch(records, part).ids], "uint64")
    found = near_duplicates(lambda name: (facts[name] for facts in made), ids, maker, folder)
    assert not list(folder.iterdir())
    return [bool(value) for value in found]
