"""Batches made by hand."""

import hashlib
from collections.abc import Sequence

from training.data.facts.base import Batch
from training.data.records import Completion, Message, Record

ASK = (Message("user", "What of the moon?"),)


def pair(prompt: str | tuple[Message, ...], chosen: str, rejected: str) -> Record:
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    return Record(turns, (Completion(chosen, rank=1), Completion(rejected, rank=2)))


def batch(records: Sequence[Record | None], needed: int = 2) -> Batch:
    """A batch of records; None is a line that is no record."""
    from training.data.records import Provenance

    ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(len(records))]
    nothing = [None] * len(records)
    reasons = ["no record" if record is None else None for record in records]
    where = [Provenance("rows.jsonl", line + 1) for line in range(len(records))]
    return Batch("preferences", needed, ids, records, where, reasons, nothing)
