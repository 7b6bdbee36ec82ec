"""What a fact maker sees, and what it is: ``Batch`` in, columns of numbers out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from training.data.records import Provenance, Record

if TYPE_CHECKING:
    import numpy as np

# What a text of a row is. A row's texts stand in this order: its prompt's messages, then its completions.
PROMPT, COMPLETION = 0, 1


@dataclass(frozen=True)
class Flat:
    """All texts of a batch, one after the other: ``texts[i]`` belongs to row ``row[i]`` and is ``kind[i]``."""

    texts: list[str]
    row: "np.ndarray[Any, Any]"  # int64
    kind: "np.ndarray[Any, Any]"  # uint8: PROMPT or COMPLETION


@dataclass(frozen=True)
class Batch:
    """Rows of one part of the data, in stored order. ``records[i]`` is None where line i is no record.

    ``needed``: how many completions a record must have (2 for preferences, 1 for SFT).
    ``raw[i]`` is the stored beginning of a line that is no record, else None.
    """

    part: str
    needed: int
    ids: Sequence[str]
    records: Sequence[Record | None]
    provenance: Sequence[Provenance]
    reasons: Sequence[str | None]
    raw: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def flat(self) -> Flat:
        """The texts of all records."""
        import numpy as np

        texts: list[str] = []
        row: list[int] = []
        kind: list[int] = []
        for number, record in enumerate(self.records):
            if record is None:
                continue
            texts += [message.content for message in record.prompt]
            texts += [completion.text for completion in record.completions]
            row += [number] * (len(record.prompt) + len(record.completions))
            kind += [PROMPT] * len(record.prompt) + [COMPLETION] * len(record.completions)
        return Flat(texts, np.array(row, dtype="int64"), np.array(kind, dtype="uint8"))


class Maker(Protocol):
    """Makes some columns of facts: a pure function of the rows and of its own frozen fields.

    ``key`` names everything beside rows and code on which the values depend (a tokenizer's digest, a threshold); it is
    empty where there is nothing. A column is an array of ``len(batch)``: float64 with NaN where the fact makes no sense, or
    unsigned hashes that relations over the whole set join on.
    """

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def key(self) -> str: ...

    def __call__(self, batch: Batch) -> "Mapping[str, np.ndarray[Any, Any]]": ...
