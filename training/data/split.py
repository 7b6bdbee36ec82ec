"""Who learns from what: the split by prompt, and the kept records as pairs and examples in stored order.

A prompt's side depends on the prompt alone, neither on the seed nor on other data, so that a record never changes
sides when data is added and nothing that was held out is ever trained on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

from training.data.records import Example, Message, Pair, Record, pairs, sft, teaches
from training.data.stored import record_of, segments
from training.digest import digest_json

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Split = Literal["train", "holdout"]
Column: TypeAlias = Union[Sequence[Any], "np.ndarray[Any, Any]", "pa.Array", "pa.ChunkedArray"]
_SELECTION = ("part", "row", "id", "split")
_BATCH = 1024


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
    part, row, id, split = ([getattr(item, name) for item in selected] for name in _SELECTION)
    write_selection_columns(part, row, id, split, path)


def write_selection_columns(part: Column, row: Column, id: Column, split: Column, path: Path) -> None:
    """``write_selection`` of columns of one length (lists, NumPy or Arrow arrays), without an object per row.

    Raises ValueError where their lengths differ or a value is missing.
    """
    import pyarrow as pa

    from training.data.stored import write_table

    schema = pa.schema([pa.field(name, kind, False) for name, kind in zip(_SELECTION, _kinds(), strict=True)])
    columns = [_column(values, field.type) for values, field in zip((part, row, id, split), schema, strict=True)]
    if len({len(column) for column in columns}) > 1:
        found = ", ".join(f"{name} {len(column)}" for name, column in zip(_SELECTION, columns, strict=True))
        raise ValueError(f"the columns of a selection have one length; found {found}")
    if any(column.null_count for column in columns):
        raise ValueError("every row of a selection has a part, a row, an id and a split; a value is missing")
    write_table(pa.table(columns, schema=schema), path)


def _kinds() -> "tuple[pa.DataType, ...]":
    import pyarrow as pa

    return pa.string(), pa.int64(), pa.string(), pa.string()


def _column(values: Column, kind: "pa.DataType") -> "pa.Array | pa.ChunkedArray":
    import numpy as np
    import pyarrow as pa

    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.cast(kind)
    if isinstance(values, np.ndarray) and values.dtype.kind == "S":
        return pa.array(values.tolist(), pa.binary()).cast(kind)
    return pa.array(values if isinstance(values, np.ndarray) else list(values)).cast(kind)


def read_selection(path: Path) -> list[Selected]:
    """Law: ``read_selection`` gives what ``write_selection`` stored."""
    import pyarrow.parquet as pq

    return [Selected(**row) for row in pq.read_table(path, use_threads=False).to_pylist()]


# ------------------------------------------------------------------------------------------------ the selected records


def load_records(parts: Mapping[str, Path], selection: Path, split: Split | None = None) -> Iterator[Record]:
    """The selected records of a split (None: of all) in stored order, part by part.

    ``parts`` names the snapshot directory of every part, as for ``validate``. A segment of which nothing is selected is
    not read, and no more than a batch of rows is held. Raises ValueError where the selection was made from another snapshot.
    """
    for part, rows, ids in _selected(selection, split):
        if part not in parts:
            raise ValueError(
                f"the selection {selection} names the part {part!r}; given are {', '.join(parts) or 'none'}"
            )
        yield from _records(part, parts[part], rows, ids)


def _selected(selection: Path, split: Split | None) -> "Iterator[tuple[str, np.ndarray[Any, Any], pa.ChunkedArray]]":
    """Per part, in the order in which they come first: the selected rows ascending, and their ids."""
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(selection, use_threads=False)
    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
    for part in table["part"].unique().to_pylist():
        here = table.filter(pc.equal(table["part"], part)).select(["row", "id"])
        rows = here["row"].to_numpy()
        if not (np.diff(rows) > 0).all():
            rows, first = np.unique(rows, return_index=True)
            here = here.take(first)
        yield part, rows, here["id"]


def _records(part: str, folder: Path, rows: "np.ndarray[Any, Any]", ids: "pa.ChunkedArray") -> Iterator[Record]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    begin = found = 0
    for path in segments(folder):
        with pq.ParquetFile(path) as file:
            end = begin + file.metadata.num_rows
            if np.searchsorted(rows, begin) == np.searchsorted(rows, end):
                begin = end
                continue
            for batch in file.iter_batches(_BATCH, columns=["id", "payload"], use_threads=False):
                low, high = np.searchsorted(rows, (begin, begin + batch.num_rows))
                chosen = batch.take(pa.array(rows[low:high] - begin))
                begin, found = begin + batch.num_rows, found + int(high - low)
                stored = chosen.column("id").to_pylist()
                for row, wanted, id in zip(rows[low:high], ids[low:high].to_pylist(), stored, strict=True):
                    if wanted != id:
                        raise ValueError(
                            f"row {row} of {folder} isn't the selected one: another snapshot was selected from"
                        )
                for payload in chosen.column("payload").to_pylist():
                    yield record_of(payload)
    if found != len(rows):
        raise ValueError(f"{folder} holds {found} of the {len(rows)} selected rows of {part!r}")


def load_pairs(parts: Mapping[str, Path], selection: Path, split: Split = "train") -> list[Pair]:
    """All pairs of the kept preference records of a split, in stored order."""
    return [pair for record in load_records(parts, selection, split) for pair in pairs(record)]


def load_sft(parts: Mapping[str, Path], selection: Path) -> list[Example]:
    """The kept SFT rows, in stored order."""
    return [sft(record) for record in load_records(parts, selection) if teaches(record)]


def sft_from_preferences(parts: Mapping[str, Path], selection: Path) -> list[Example]:
    """The best completion of every kept preference record of the training split: SFT without SFT files."""
    return [sft(record) for record in load_records(parts, selection, "train") if teaches(record)]
