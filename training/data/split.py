"""Who learns from what: the split by prompt, and the kept records as pairs and examples in stored order.

A prompt's side depends on the prompt alone, neither on the seed nor on other data, so that a record never changes
sides when data is added and nothing that was held out is ever trained on.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.data.records import Example, Message, Pair, Record, pairs, sft
from training.data.snapshot import read_snapshot
from training.digest import digest_json

Split = Literal["train", "holdout"]


def prompt_digest(prompt: Sequence[Message]) -> str:
    """SHA-256 (hex) of the canonical JSON of the prompt's messages."""
    return digest_json([{"role": message.role, "content": message.content} for message in prompt]).value


def in_holdout(prompt: Sequence[Message], share: float) -> bool:
    """Whether the prompt is held out: its digest, read as a number in [0, 1), is below ``share``.

    Law: what is held out at a share is held out at every larger share.
    """
    return digest_in_holdout(prompt_digest(prompt), share)


def digest_in_holdout(digest: str, share: float) -> bool:
    """``in_holdout`` for a ``prompt_digest``. The first 64 bits decide; Python compares int and float exactly."""
    return int(digest[:16], 16) < share * 2.0**64


# ------------------------------------------------------------------------------------------------ selection


@dataclass(frozen=True)
class Selected:
    """A kept record: its part, the number of its row in the part's snapshot (from 0), its id and its split."""

    part: str
    row: int
    id: str
    split: Split


def write_selection(selected: Sequence[Selected], path: Path) -> None:
    """Store which rows are kept; no text, and bytes that depend on the content alone."""
    import pyarrow as pa

    from training.data.snapshot import write_table

    schema = pa.schema([("part", pa.string()), ("row", pa.int64()), ("id", pa.string()), ("split", pa.string())])
    columns: dict[str, list[Any]] = {name: [getattr(item, name) for item in selected] for name in schema.names}
    write_table(pa.table(columns, schema=schema), path)


def read_selection(path: Path) -> list[Selected]:
    """Law: ``read_selection`` gives what ``write_selection`` stored."""
    import pyarrow.parquet as pq

    return [Selected(**row) for row in pq.read_table(path, use_threads=False).to_pylist()]


def load_records(parts: Mapping[str, Path], selection: Path, split: Split | None = None) -> Iterator[Record]:
    """The selected records of a split (None: of all) in stored order, part by part.

    ``parts`` names the snapshot directory of every part, as for ``validate``. Raises ValueError where the selection was
    made from another snapshot.
    """
    kept: dict[str, dict[int, str]] = {}
    for item in read_selection(selection):
        if split is None or item.split == split:
            kept.setdefault(item.part, {})[item.row] = item.id
    for part, rows in kept.items():
        if part not in parts:
            raise ValueError(
                f"the selection {selection} names the part {part!r}; given are {', '.join(parts) or 'none'}"
            )
        found = 0
        for number, row in enumerate(read_snapshot(parts[part], ("id", "payload", "reason"))):
            if number not in rows:
                continue
            if rows[number] != row.id:
                raise ValueError(
                    f"row {number} of {parts[part]} isn't the selected one: another snapshot was selected from"
                )
            found += 1
            yield Record.from_payload(json.loads(row.payload))
        if found != len(rows):
            raise ValueError(f"{parts[part]} holds {found} of the {len(rows)} selected rows of {part!r}")


def load_pairs(parts: Mapping[str, Path], selection: Path, split: Split = "train") -> list[Pair]:
    """All pairs of the kept preference records of a split, in stored order."""
    return [pair for record in load_records(parts, selection, split) for pair in pairs(record)]


def load_sft(parts: Mapping[str, Path], selection: Path) -> list[Example]:
    """The kept SFT rows, in stored order."""
    return [sft(record) for record in load_records(parts, selection) if record.completions]


def sft_from_preferences(parts: Mapping[str, Path], selection: Path) -> list[Example]:
    """The best completion of every kept preference record of the training split: SFT without SFT files."""
    return [sft(record) for record in load_records(parts, selection, "train") if record.completions]
