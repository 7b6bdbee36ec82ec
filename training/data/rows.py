"""What every container yields: bodies (pieces of a file that can be sent to a worker) and the rows in them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from training.data.declared import FIELDS
from training.data.forms import COLUMNS, FORMS, recognise
from training.strict import Refused

CHUNK_ROWS = 65_536  # rows of a body at most; of text files: physical lines
CHUNK_BYTES = 64 * 2**20  # bytes of a body, but for one row that is longer
MAX_LINE = 32 * 2**20  # bytes; a longer row is unreadable
MAX_COLUMNS = 10_000  # of a table
SAMPLE = 200  # rows that decide a file's form
READ = 2**20  # bytes that are read at a time
EXCERPT = 400  # bytes that are shown of a row that is no record


@dataclass(slots=True)
class Row:
    """A row as an object and, where the container is text, as raw bytes; ``fault`` says why it could not be decoded."""

    line: int
    value: Any = None
    raw: bytes | None = None
    fault: str | None = None
    digest: str | None = None  # SHA-256 (hex) of the raw bytes of a row that is too long to hold

    @property
    def bytes(self) -> bytes:
        """The raw bytes, or a stable spelling of the value."""
        if self.raw is not None:
            return self.raw
        try:
            return json.dumps(self.value, sort_keys=True, default=repr).encode("ascii")
        except (ValueError, TypeError, RecursionError):
            return repr(type(self.value)).encode("ascii", "backslashreplace")

    @property
    def identity(self) -> str:
        return self.digest or hashlib.sha256(self.bytes).hexdigest()


class Body(Protocol):
    """A piece of a file: small enough to hold, picklable, and decoded by nothing but itself."""

    def rows(self) -> Iterator[Row]: ...


@dataclass(frozen=True)
class LongLine:
    """A line that is too long to hold: its digest and its beginning."""

    line: int
    digest: str
    beginning: bytes

    def rows(self) -> Iterator[Row]:
        yield too_long(self.line, self.beginning, self.digest)


def too_long(line: int, raw: bytes, digest: str | None = None) -> Row:
    """A row beyond MAX_LINE."""
    digest = digest or hashlib.sha256(raw).hexdigest()
    return Row(line, None, raw[:EXCERPT], f"longer than {MAX_LINE // 2**20} MiB", digest)


@dataclass(frozen=True)
class Names:
    """How a source names its columns: ``renamed`` maps ours to theirs."""

    renamed: Mapping[str, str] = field(default_factory=dict)

    def of(self, columns: Iterable[str]) -> list[str]:
        """The columns under our names. What stands under one of our names and isn't meant is left out."""
        ours = {theirs: our for our, theirs in self.renamed.items()}
        return [ours.get(name, name) for name in columns if name in ours or name not in self.renamed]

    def row(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row under our names."""
        if not self.renamed:
            return row
        theirs = set(self.renamed.values())
        kept = {name: value for name, value in row.items() if name not in theirs and name not in self.renamed}
        return {**kept, **{our: row[name] for our, name in self.renamed.items() if name in row}}

    def wanted(self, columns: Iterable[str]) -> list[str]:
        """Those of a table's columns that are read, under their names."""
        ours = {theirs: our for our, theirs in self.renamed.items()}
        return [name for name in columns if ours.get(name, name) in READ_COLUMNS]


READ_COLUMNS = COLUMNS | FIELDS.keys()


def no_form(name: str, columns: Iterable[str]) -> Refused:
    """The refusal of columns that are of no known form."""
    columns = list(columns)
    found = ", ".join(repr(column[:40]) for column in columns[:12]) or "none"
    more = f" and {len(columns) - 12:,} more" if len(columns) > 12 else ""
    known = "; ".join(f"{form} ({needs})" for form, needs in FORMS.items())
    return Refused(
        f"{name}: no known form in the columns {found}{more}. Known forms: {known}. Rename the columns, in the file or by "
        "'columns' of the source"
    )


def check_columns(name: str, columns: list[str], names: Names) -> None:
    """Raises Refused for a table whose columns are too many, twice there, or of no known form."""
    if len(columns) > MAX_COLUMNS:
        raise Refused(
            f"{name}: {len(columns):,} columns; at most {MAX_COLUMNS:,} are allowed. Keep those that are needed"
        )
    if len(set(columns)) != len(columns):
        raise Refused(f"{name}: the header names a column twice. Rename one")
    if not recognise(names.of(columns)):
        raise no_form(name, columns)


def sample_columns(rows: Iterable[Row]) -> list[str]:
    """All columns that are named in some rows, in the order of their appearance."""
    return list(dict.fromkeys(name for row in rows if isinstance(row.value, dict) for name in row.value))
