"""The quarantine: a row per refused record, with where it stands, the rules that it breaks and a masked excerpt."""

import hashlib
import json
import uuid
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.facts.masking import excerpt
from training.data.factstore import code_digest, place, verified
from training.data.pool import ordered_map
from training.data.profile import Profile
from training.digest import digest_file

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_TEXT = "excerpt"
_NAMES = ("id", "part", "source", "line", "rules", "reason", _TEXT)
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
    folder: Path

    @cached_property
    def place(self) -> Path:
        """Where these rows are kept, by all that they depend on but the segment, which the folder is named after."""
        content = hashlib.sha256(json.dumps([self.part, self.told, code_digest()]).encode())
        content.update(digest_file(Path(__file__)).value.encode())
        content.update(self.rows.tobytes())
        content.update(self.rules.tobytes())
        return self.folder / f"quarantine-{content.hexdigest()[:32]}.parquet"


def write_quarantine(found: Profile, path: Path) -> None:
    """Store a row per quarantined record: id, part, source, line, rules (all it breaks), reason, masked excerpt.

    The bytes depend on the data and the settings alone, not on the number of processes. Memory is that of one segment. Where
    facts are kept, the rows of a segment are kept beside them, masked excerpts and all.
    """
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    asked = [item for number in range(len(found.segments)) if (item := _asked(found, number)) is not None]
    kept = found.context.cache is not None
    waiting = [item for item in asked if not (kept and verified(item.place))]
    processes = found.context.processes if sum(len(item.rows) for item in waiting) > _FEW else 1
    with closing(ordered_map(_make if kept else _rows, waiting, processes)) as made:
        if kept:
            for _ in made:
                pass
            tables: Iterable[Any] = (_kept(item) for item in asked)
        else:
            tables = made
        with pq.ParquetWriter(path, _schema(), **_options()) as writer:
            for table in tables:
                writer.write_table(table)


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([(name, pa.int64() if name == "line" else pa.string()) for name in _NAMES])


def _options() -> dict[str, Any]:
    plain = [name for name in _NAMES if name != _TEXT]  # statistics would repeat text
    written = {"use_dictionary": plain, "write_statistics": plain}
    return {"compression": "zstd", "compression_level": 3, "version": "2.6", **written}


def _make(asked: _Asked) -> None:
    import pyarrow.parquet as pq

    partial = asked.place.with_name(f".{uuid.uuid4().hex}")
    pq.write_table(_rows(asked), partial, **_options())
    place(partial, asked.place)


def _kept(asked: _Asked) -> "pa.Table":
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(asked.place) as file:
            return file.read(use_threads=False)
    except OSError:  # deleted meanwhile, which may be done at any time
        return _rows(asked)


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
    return _Asked(segment.part, segment.segment, rows, which.astype("int32"), told, segment.folder)


def _rows(asked: _Asked) -> "pa.Table":
    import numpy as np
    import orjson
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {name: [] for name in _NAMES}
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
    return pa.table(columns, schema=_schema())


def _shown(payload: dict[str, Any]) -> str:
    """What an excerpt is taken of: the raw line, the last message of the prompt, or the first completion."""
    if "raw" in payload:
        return str(payload["raw"])
    if payload["prompt"]:
        return str(payload["prompt"][-1]["content"])
    return str(payload["completions"][0]["text"]) if payload["completions"] else ""
