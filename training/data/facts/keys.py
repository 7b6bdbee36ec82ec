"""What rows are joined on over the whole set: their ids, their prompts, and what they prefer to what.

``prompt_hi`` is the first 64 bits of ``training.data.split.prompt_digest``: the number that decides on which side of the
split a prompt stands.
"""

import hashlib
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from training.data.facts.base import Batch
from training.data.records import Message, Record, merit
from training.data.split import prompt_digest

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Keys:
    """Columns (uint64): ``id_hi``, ``id_lo`` (the first 128 bits of the id), ``prompt_hi``, ``prompt_lo`` (of the prompt's
    digest; both 0 for a line that is no record). Raises ValueError on an id that is no SHA-256 in hex."""

    name: str = "keys"
    columns: tuple[str, ...] = ("id_hi", "id_lo", "prompt_hi", "prompt_lo")
    key: str = ""

    def __call__(self, batch: Batch) -> "dict[str, np.ndarray[Any, Any]]":
        import numpy as np

        raw = bytes.fromhex("".join(batch.ids))
        if len(raw) != 32 * len(batch):
            raise ValueError(f"an id of {batch.part} is no SHA-256 in hex: {len(batch)} ids have {len(raw)} bytes")
        ids = np.frombuffer(raw, ">u8").reshape(-1, 4)
        prompts = np.frombuffer(b"".join(_prompts(batch)), ">u8").reshape(-1, 2)
        values = (ids[:, 0], ids[:, 1], prompts[:, 0], prompts[:, 1])
        return {name: column.astype("uint64") for name, column in zip(self.columns, values, strict=True)}


@dataclass(frozen=True)
class Edges:
    """What rows prefer: row ``row[i]`` of a batch or a part prefers one text to another for its prompt.

    ``edge`` is a key of (prompt, better, worse) and ``reverse`` of (prompt, worse, better), as the upper and the lower 64 of
    128 bits (uint64). A row has each of its edges once.
    """

    row: "np.ndarray[Any, Any]"  # int64
    edge_hi: "np.ndarray[Any, Any]"
    edge_lo: "np.ndarray[Any, Any]"
    reverse_hi: "np.ndarray[Any, Any]"
    reverse_lo: "np.ndarray[Any, Any]"


def edges(batch: Batch) -> Edges:
    """The edges of a batch's records; none of an SFT part's. White space around a text doesn't count."""
    import numpy as np

    rows: list[int] = []
    keys: list[bytes] = []
    if batch.needed > 1:
        for number, (record, prompt) in enumerate(zip(batch.records, _prompts(batch), strict=True)):
            if record is not None and len(record.completions) > 1:
                found = _edges(record, prompt)
                rows += [number] * len(found)
                keys += found
    table = np.frombuffer(b"".join(keys), ">u8").reshape(-1, 4).astype("uint64")
    return Edges(np.array(rows, "int64"), *(np.ascontiguousarray(table[:, column]) for column in range(4)))


def _edges(record: Record, prompt: bytes) -> list[bytes]:
    """Edge and reverse of each preference, without those that stand there twice, in the order of the completions."""
    texts = [hashlib.sha256(completion.text.strip().encode("utf-8")).digest() for completion in record.completions]
    grades = [merit(completion) for completion in record.completions]
    found: dict[bytes, None] = {}
    for one, other in combinations(range(len(texts)), 2):
        left, right = grades[one], grades[other]
        if left is None or right is None or left[0] != right[0] or left[1] == right[1] or texts[one] == texts[other]:
            continue
        better, worse = (texts[one], texts[other]) if left[1] > right[1] else (texts[other], texts[one])
        edge = hashlib.sha256(prompt + better + worse).digest()[:16]
        found[edge + hashlib.sha256(prompt + worse + better).digest()[:16]] = None
    return list(found)


def _prompts(batch: Batch) -> list[bytes]:
    """The first 16 bytes of every row's prompt digest, computed once and kept on the batch; zeros for no record."""
    kept = vars(batch)
    if "prompts" not in kept:
        kept["prompts"] = [b"\0" * 16 if record is None else _prompt(record.prompt) for record in batch.records]
    found: list[bytes] = kept["prompts"]
    return found


def _prompt(prompt: tuple[Message, ...]) -> bytes:
    """The first half of ``prompt_digest``. orjson writes messages with sorted keys as RFC 8785 does (a test compares)."""
    import orjson

    try:
        content = orjson.dumps([{"content": message.content, "role": message.role} for message in prompt])
    except TypeError:  # half a surrogate pair: canonical JSON says what is wrong
        return bytes.fromhex(prompt_digest(prompt))[:16]
    return hashlib.sha256(content).digest()[:16]
