"""Sources: recognise the form of a file's rows and read each as a record.

``open_file`` opens one file and gives its ``Chunk``s; ``parse_chunk`` turns a chunk, here or in another process, into a
``Line`` for every line (or element, or row) that holds anything: a record, or an ``Unreadable`` with the digest of the
raw bytes and the reason. A line never stops a file. What concerns the whole file raises ``Refused``. ``read`` does it all
for all files of a source. How rows come out of the bytes is said in ``containers``.
"""

import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from training.data.containers import Contents, bodies
from training.data.declared import FIELDS, defaults, provenance
from training.data.files import File, expand
from training.data.forms import COLUMNS, FORMS, parse, recognise
from training.data.records import Provenance, Record
from training.data.rows import EXCERPT, SAMPLE, Body, Names, Row, no_form, sample_columns
from training.data.settings import Source
from training.strict import Refused

_HELD = 4  # bodies at most that are looked at for the form: each may have 64 MiB


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
class Chunk:
    """Some consecutive rows of one file with all that it takes to read them in another process.

    At most ``rows.CHUNK_ROWS`` rows and about 64 MiB. Where a file is cut depends on its content alone.
    """

    name: str
    form: str
    declared: tuple[str | None, ...]
    names: Names
    body: Body


@dataclass(frozen=True)
class Position:
    """The end of a file of JSON lines that has been read: what is appended begins at ``offset`` (bytes of the file as it is
    stored) and with line ``line``."""

    offset: int
    line: int


@dataclass(frozen=True)
class Opened:
    """An opened file: its recognised (or named) form, and its chunks, to be iterated once."""

    source: Source
    file: File
    form: str
    _contents: Contents
    _bodies: Iterator[Body]
    _declared: tuple[str | None, ...] = field(repr=False, default=())

    def chunks(self) -> Iterator[Chunk]:
        names = Names(self.source.columns)
        for body in self._bodies:
            yield Chunk(self.file.name, self.form, self._declared, names, body)

    @property
    def end(self) -> Position | None:
        """When all chunks have been taken: where more can be appended. None where that cannot be read on its own."""
        end = self._contents.end
        return Position(end.offset, end.line) if end.offset is not None and end.ended else None


@dataclass(frozen=True)
class Reading:
    """An opened source: the form of its first file, and the lines of all its files, to be iterated once."""

    source: Source
    form: str
    lines: Iterator[Line]


def read(source: Source, root: Path) -> Reading:
    """Open ``source`` (its path relative to ``root``), with all its files, and recognise the form of the first.

    Raises Refused on whatever concerns a whole file; a fault further down (a truncated gzip, no readable line at all, one
    of the other files) is raised while the lines are iterated.
    """
    files = expand(source, root)
    first = open_file(source, files[0])
    return Reading(source, first.form, _lines(source, first, files[1:]))


def _lines(source: Source, opened: Opened, others: list[File]) -> Iterator[Line]:
    yield from _file_lines(opened)
    for file in others:
        yield from _file_lines(open_file(source, file))


def _file_lines(opened: Opened) -> Iterator[Line]:
    records, fault = 0, None
    for chunk in opened.chunks():
        for line in parse_chunk(chunk):
            if isinstance(line.content, Record):
                records += 1
            elif fault is None:
                fault = f"line {line.provenance.line}: {line.content.reason}"
            yield line
    if not records:
        raise nothing_read(opened, fault or "every line is empty")


def nothing_read(opened: Opened, fault: str) -> Refused:
    """The refusal of a file without one record. ``fault``: the first line that is none, and why."""
    named = " (named in 'form')" if opened.source.form else ""
    return Refused(
        f"{opened.file.name}: not one line can be read as form '{opened.form}'{named}; {fault}. Correct the file, 'form' or "
        "'columns'"
    )


def open_file(source: Source, file: File, after: Position | None = None, form: str | None = None) -> Opened:
    """Open one file and recognise its form (unless ``source`` or ``form`` name it).

    With ``after``, the ``end`` of an earlier reading, only what was appended since is read; the caller makes sure that all
    before it is as it was, and names the form that was recognised then. Raises Refused on whatever concerns the whole file.
    """
    declared = defaults(source)
    names = Names(source.columns)
    _check_names(source)
    contents = Contents()
    if after is not None:
        contents.end.line = after.line
    found = bodies(file.path, file.name, names, contents, after.offset if after else 0)
    held: list[Body] = []
    sample: list[Row] = []
    for body in found:  # the form is that of most of the first rows, wherever these are
        held.append(body)
        sample += islice(body.rows(), SAMPLE - len(sample))
        if len(sample) == SAMPLE or len(held) == _HELD or any(isinstance(row.value, dict) for row in sample):
            break
    if not sample and after is None:
        raise Refused(f"{file.name}: the file is empty. Give a file with at least one record")
    _check_theirs(file, names, sample)
    form = source.form or form or _form(file, names, sample)
    return Opened(source, file, form, contents, _chain(held, found), declared)


def _chain(held: list[Body], others: Iterator[Body]) -> Iterator[Body]:
    while held:
        yield held.pop(0)
    yield from others


def _check_names(source: Source) -> None:
    known = sorted(COLUMNS | FIELDS.keys())
    for name in source.columns:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise Refused(
                f"{source.name}: 'columns' renames {name!r}, which no form has; {hint}allowed (ours: theirs): {', '.join(known)}"
            )
    theirs = list(source.columns.values())
    if len(set(theirs)) != len(theirs):
        raise Refused(f"{source.name}: 'columns' takes one column of the data twice. Name each once")


def _check_theirs(file: File, names: Names, sample: list[Row]) -> None:
    """Raises Refused where a column that is renamed isn't there; one that a form can do without may come later."""
    columns = sample_columns(sample)
    for ours, theirs in names.renamed.items():
        if columns and theirs not in columns and any(ours in each for form in FORMS.values() for each in form.needs):
            raise Refused(
                f"{file.name}: 'columns' takes {ours!r} from {theirs!r}, which the data don't have; there are "
                f"{', '.join(repr(column[:40]) for column in columns[:12])}. Correct 'columns'"
            )


def _form(file: File, names: Names, sample: list[Row]) -> str:
    found = [names.row(row.value) for row in sample if isinstance(row.value, dict)]
    votes = Counter(form for row in found if (form := recognise(row)))
    if votes:
        return max(FORMS, key=lambda form: votes[form])
    if columns := sample_columns(sample):
        raise no_form(file.name, columns)
    first = sample[0]
    raise Refused(
        f"{file.name}: none of the first {len(sample)} lines can be read; line {first.line}: "
        f"{first.fault or 'it is no object with named columns'}. Expected UTF-8 text: JSON lines, a JSON list or CSV with a "
        "header; or Parquet or Arrow"
    )


def parse_chunk(chunk: Chunk) -> Iterator[Line]:
    """The lines of a chunk, in order. A pure function of the chunk; no line raises."""
    name, form, declared, names = chunk.name, chunk.form, chunk.declared, chunk.names
    renamed = bool(names.renamed)
    for row in chunk.body.rows():
        value = row.value
        try:
            if row.fault is not None:
                raise ValueError(row.fault)
            if not isinstance(value, dict):
                raise ValueError("the line is no object with named columns")
            if renamed:
                value = names.row(value)
            where = provenance(name, row.line, declared, value)
            record = parse(value, form)
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
            excerpt = row.bytes[:EXCERPT].decode("utf-8", "replace")
            yield Line(Provenance(name, row.line, *declared), Unreadable(row.identity, reason, excerpt))
        else:
            yield Line(where, record)
