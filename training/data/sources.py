"""Sources: recognise the form of a file's rows and read each as a record.

``read`` opens one source and yields a ``Line`` for every line (or element, or row) that holds anything: a record, or
an ``Unreadable`` with the digest of the raw bytes and the reason. A line never stops a file. What concerns the whole
file raises ``Refused``. How rows come out of the bytes is said in ``containers``.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from training.data.containers import EXCERPT, SAMPLE, Row, no_form, read_rows
from training.data.records import FORMS, Provenance, Record, parse, recognise
from training.settings import Refused, Source


@dataclass(frozen=True)
class Unreadable:
    """A line that is no record: the SHA-256 (hex) of its raw bytes, why, and its beginning (for the quarantine)."""

    id: str
    reason: str
    excerpt: str


@dataclass(frozen=True)
class Line:
    """One line of a source and what was found there."""

    provenance: Provenance
    content: Record | Unreadable


@dataclass(frozen=True)
class Reading:
    """An opened source: its recognised (or named) form, and its lines, to be iterated once."""

    source: Source
    form: str
    lines: Iterator[Line]


def read(source: Source, root: Path) -> Reading:
    """Open ``source`` (its path relative to ``root``) and recognise its form.

    Raises Refused on whatever concerns the whole file; a fault further down (a truncated gzip, no readable line at all)
    is raised while the lines are iterated.
    """
    path = _regular(source, root)
    rows = read_rows(source, path)
    sample = list(islice(rows, SAMPLE))
    if not sample:
        raise Refused(f"{source.path}: the file is empty. Give a file with at least one record")
    form = source.form or _form(source, sample)
    return Reading(source, form, _parsed(source, form, chain(sample, rows)))


def _regular(source: Source, root: Path) -> Path:
    try:
        path = root / source.path
        if path.is_dir():
            raise Refused(f"{source.path}: this is a folder; a source is one file. Name the file inside it")
        if not path.exists():
            raise Refused(
                f"{source.path}: there is no such file (looked for {path}). Paths are relative to the experiment"
            )
        if not path.is_file():
            raise Refused(f"{source.path}: this is a special file (a pipe or a device). Give a regular file")
        with open(path, "rb"):
            return path
    except PermissionError:
        raise Refused(
            f"{source.path}: no permission to read {root / source.path}. Give this user read access"
        ) from None
    except (OSError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{source.path!r}: cannot be opened: {error}. Correct the path") from None


def _form(source: Source, sample: list[Row]) -> str:
    votes = Counter(form for row in sample if isinstance(row.value, dict) and (form := recognise(row.value)))
    if votes:
        return max(FORMS, key=lambda form: votes[form])
    columns = Counter(key for row in sample if isinstance(row.value, dict) for key in row.value)
    if columns:
        raise Refused(no_form(source, columns))
    first = sample[0]
    reason = first.fault or "it is no object with named columns"
    raise Refused(
        f"{source.path}: none of the first {len(sample)} lines can be read; line {first.line}: {reason}. "
        "Expected UTF-8 text: JSON lines, a JSON list or CSV with a header; or Parquet"
    )


def _parsed(source: Source, form: str, rows: Iterable[Row]) -> Iterator[Line]:
    records, first = 0, None
    for row in rows:
        where = Provenance(source.path, row.line, source.licence)
        try:
            if row.fault is not None:
                raise ValueError(row.fault)
            if not isinstance(row.value, dict):
                raise ValueError("the line is no object with named columns")
            record = parse(row.value, form)
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
            first = first or f"line {row.line}: {reason}"
            identity = row.digest or hashlib.sha256(row.raw).hexdigest()
            yield Line(where, Unreadable(identity, reason, row.raw[:EXCERPT].decode("utf-8", "replace")))
        else:
            records += 1
            yield Line(where, record)
    if not records:
        named = " (named in 'form')" if source.form else ""
        raise Refused(
            f"{source.path}: not one line can be read as form '{form}'{named}; {first}. Correct the file or 'form'"
        )
