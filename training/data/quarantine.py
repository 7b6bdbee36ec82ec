"""The quarantine: a row per refused record, with where it stands, the rules that it breaks and a masked excerpt."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.facts.masking import excerpt
from training.data.pool import ordered_map
from training.data.profile import Profile

if TYPE_CHECKING:
    import numpy as np

_TEXT = "excerpt"
_FEW = 5000  # rows: for so few no process is started
_BLOCK = 8192  # rows whose excerpts are made in one go


@dataclass(frozen=True)
class _Asked:
    """Rows of one segment: their numbers (ascending), and for each the rules that it breaks as a number in ``told``."""

    part: str
    segment: Path
    rows: "np.ndarray[Any, Any]"
    rules: "np.ndarray[Any, Any]"
    told: tuple[str, ...]


def write_quarantine(found: Profile, path: Path) -> None:
    """Store a row per quarantined record: id, part, source, line, rules (all it breaks), reason, masked excerpt.

    The bytes depend on the data and the settings alone, not on the number of processes. Memory is that of one segment.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("id", "part", "source", "line", "rules", "reason", _TEXT)
    schema = pa.schema([(name, pa.int64() if name == "line" else pa.string()) for name in names])
    plain = [name for name in names if name != _TEXT]  # statistics would repeat text
    path.parent.mkdir(parents=True, exist_ok=True)
    asked = [item for number in range(len(found.segments)) if (item := _asked(found, number)) is not None]
    processes = found.context.processes if found.quarantined.sum() > _FEW else 1
    options: dict[str, Any] = {"compression": "zstd", "compression_level": 3, "version": "2.6"}
    with (
        pq.ParquetWriter(path, schema, use_dictionary=plain, write_statistics=plain, **options) as writer,
        closing(ordered_map(_rows, asked, processes)) as tables,
    ):
        for columns in tables:
            writer.write_table(pa.table(columns, schema=schema))


def _asked(found: Profile, number: int) -> _Asked | None:
    import numpy as np

    here = found.slices[number]
    rows = np.flatnonzero(found.quarantined[here])
    if not len(rows):
        return None
    bits = np.zeros(len(rows), dtype="uint64")
    for position, failing in enumerate(found.failing.values()):
        bits |= failing[here][rows].astype("uint64") << np.uint64(position)
    kinds, which = np.unique(bits, return_inverse=True)
    told = tuple(
        ", ".join(name for position, name in enumerate(found.failing) if int(kind) >> position & 1) for kind in kinds
    )
    segment = found.segments[number]
    return _Asked(segment.part, segment.segment, rows, which.astype("int32"), told)


def _rows(asked: _Asked) -> dict[str, list[Any]]:
    import numpy as np
    import orjson
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {name: [] for name in ("id", "part", "source", "line", "rules", "reason", _TEXT)}
    first = 0
    with pq.ParquetFile(asked.segment) as file:
        for batch in file.iter_batches(
            _BLOCK, columns=["id", "source", "line", "payload", "reason"], use_threads=False
        ):
            low, high = np.searchsorted(asked.rows, [first, first + len(batch)])
            here = asked.rows[low:high] - first
            first += len(batch)
            if not len(here):
                continue
            taken = pa.Table.from_batches([batch]).take(pa.array(here)).to_pydict()
            for name in ("id", "source", "line", "reason"):
                columns[name] += taken[name]
            columns["part"] += [asked.part] * len(here)
            columns["rules"] += [asked.told[kind] for kind in asked.rules[low:high]]
            columns[_TEXT] += [excerpt(_shown(orjson.loads(text))) for text in taken["payload"]]
    return columns


def _shown(payload: dict[str, Any]) -> str:
    """What an excerpt is taken of: the raw line, the last message of the prompt, or the first completion."""
    if "raw" in payload:
        return str(payload["raw"])
    if payload["prompt"]:
        return str(payload["prompt"][-1]["content"])
    return str(payload["completions"][0]["text"]) if payload["completions"] else ""
