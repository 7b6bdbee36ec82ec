"""The files of a source: one file, a folder, a glob, a data set saved by ``datasets``, or one of the hub at a commit.

``expand`` names each file as the experiment does, sorted by name, each file once however it is reached. In folders and
globs what is no data by its name (hidden files, READMEs, licences, checksums, …) and what is no regular file is left out.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.data.saved import saved_files
from training.data.settings import Source
from training.strict import Refused

MAX_ENTRIES = 100_000  # of a folder or glob
_NO_DATA = re.compile(
    r"(readme|licen[cs]e|notice|changelog|copying|citation|authors|contributing|manifest)(\..*)?|_success|.*sums"
    r"|(dataset_infos?|state|dataset_dict)\.json"
    r"|.*\.(md|rst|html?|pdf|png|jpe?g|gif|svg|py|ipynb|sh|ya?ml|toml|cfg|ini|lock|log|tmp|part|crc|md5|sha1|sha256|sha512|sig|asc)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class File:
    """A file of a source: where it is, and how provenance calls it (as the experiment does, with '/')."""

    path: Path
    name: str


def expand(source: Source, root: Path) -> list[File]:
    """The files of ``source`` (its path relative to ``root``), at least one. Raises Refused where there is none."""
    if source.hub is not None:
        from training.data.hub import hub_files

        return [File(path, name) for name, path in hub_files(source.hub)]
    assert source.path is not None
    try:
        path = root / source.path
        if _GLOB.search(source.path) and not os.path.lexists(path):
            return _once(source, _globbed(source.path, root))
        if path.is_dir():
            saved = saved_files(path, source.path)
            if saved is not None:
                return [_regular(name, file) for name, file in saved]
            return _once(source, _walk(path, source.path.rstrip("/")))
        return [_regular(source.path, path)]
    except Refused:
        raise
    except PermissionError as error:
        raise Refused(f"{source.path}: no permission to read {error.filename}. Give this user read access") from None
    except (OSError, ValueError) as error:
        raise Refused(f"{source.path!r}: cannot be opened: {error}. Correct the path") from None


def _regular(name: str, path: Path) -> File:
    if not path.exists():
        raise Refused(
            f"{name}: there is no such file (looked for {path}). Paths are relative to the experiment{_near(path)}"
        )
    if not path.is_file():
        raise Refused(f"{name}: this is a special file (a pipe or a device). Give a regular file")
    try:
        with open(path, "rb"):
            return File(path, name)
    except PermissionError:
        raise Refused(f"{name}: no permission to read {path}. Give this user read access") from None


def _near(path: Path) -> str:
    """What stands where a file was expected, for the message."""
    try:
        found = sorted(entry.name for entry in os.scandir(path.parent) if not entry.name.startswith("."))
    except (OSError, ValueError):
        return ""
    return f". {path.parent} holds {_listed(found)}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8]) or "nothing"
    return f"{shown} and {len(names) - 8:,} more" if len(names) > 8 else shown


# ------------------------------------------------------------------------------------------------ folders and globs


@dataclass(frozen=True)
class _Entry:
    name: str
    path: Path
    left_out: str | None  # why it is no data


def _walk(folder: Path, name: str) -> Iterator[_Entry]:
    """Every entry below a folder that isn't hidden; a folder that links lead to again is entered once."""
    entered: set[tuple[int, int]] = set()
    count = 0
    pending = [(folder, name)]
    while pending:
        here, called = pending.pop()
        about = os.stat(here)
        if (about.st_dev, about.st_ino) in entered:
            continue
        entered.add((about.st_dev, about.st_ino))
        if here != folder and (here / "dataset_dict.json").is_file():
            raise Refused(
                f"{called}: a data set with splits inside of a folder. Name it, or one of its splits, as a source"
            )
        for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
            count += 1
            if count > MAX_ENTRIES:
                raise Refused(f"{name}: more than {MAX_ENTRIES:,} files and folders. Name a smaller folder")
            if entry.name.startswith("."):
                continue
            below = f"{called}/{entry.name}"
            kind, left_out = _kind(entry)
            if kind == "folder":
                pending.append((here / entry.name, below))
            else:
                yield _Entry(below, here / entry.name, left_out)


def _kind(entry: os.DirEntry[str]) -> tuple[str, str | None]:
    """Whether an entry is a folder or not, and why it is no data (None where it may be)."""
    try:
        mode = entry.stat().st_mode
    except OSError:  # a link to nothing, or to itself
        return "file", "a link that leads nowhere"
    if stat.S_ISDIR(mode):
        return "folder", None
    if not stat.S_ISREG(mode):
        return "file", "a pipe, a socket or a device"
    if _NO_DATA.fullmatch(entry.name):
        return "file", "no data by its name"
    return "file", None


_GLOB = re.compile(r"[*?\[]")


def _globbed(pattern: str, root: Path) -> Iterator[_Entry]:
    """What matches ``pattern``: ``*``, ``?`` and ``[abc]`` within a name, ``**`` for any folders."""
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if _GLOB.search(part))
    base = "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else ".")
    folder = root / base
    if not folder.is_dir():
        raise Refused(f"{pattern}: there is no folder {folder}{_near(folder)}. Correct the pattern")
    matches = re.compile(_translated(parts[fixed:]), re.DOTALL)
    prefix = "" if base == "." else base.rstrip("/") + "/"
    seen: list[str] = []
    found = False
    for entry in _walk(folder, ""):
        name = entry.name.removeprefix("/")
        seen.append(name)
        if matches.fullmatch(name):
            found = True
            yield _Entry(prefix + name, entry.path, entry.left_out)
    if not found:
        raise Refused(
            f"{pattern}: no file matches; below {folder} there are {_listed(sorted(seen))}. Correct the pattern"
        )


def _translated(parts: list[str]) -> str:
    """A regular expression for the path below the fixed part."""
    pieces = []
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if part == "**":
            pieces.append(".+" if last else "(?:.+/)?")
        else:
            pieces.append(_one_name(part) + ("" if last else "/"))
    return "".join(pieces)


def _one_name(part: str) -> str:
    pieces, i = [], 0
    while i < len(part):
        sign, i = part[i], i + 1
        end = part.find("]", i + 1)
        if sign == "*":
            pieces.append("[^/]*")
        elif sign == "?":
            pieces.append("[^/]")
        elif sign == "[" and end > 0:
            inside = part[i:end].replace("\\", "\\\\").replace("[", "\\[")
            pieces.append(f"(?!/)[{'^' + inside[1:] if inside[0] in '!^' else inside}]")
            i = end + 1
        else:
            pieces.append(re.escape(sign))
    return "".join(pieces)


def _once(source: Source, entries: Iterator[_Entry]) -> list[File]:
    """The data among the entries, sorted by name, each file once. Raises Refused where there is none."""
    everything = sorted(entries, key=lambda entry: entry.name)
    found: list[File] = []
    known: set[tuple[int, int]] = set()
    for entry in everything:
        if entry.left_out is not None:
            continue
        try:
            entry.name.encode("utf-8")
        except UnicodeEncodeError:
            raise Refused(f"{source.path}: a file's name is no UTF-8 text ({entry.name!r}). Rename it") from None
        about = os.stat(entry.path)
        if (about.st_dev, about.st_ino) not in known:
            known.add((about.st_dev, about.st_ino))
            found.append(_regular(entry.name, entry.path))
    if not found:
        told = [f"{entry.name!r} ({entry.left_out})" for entry in everything[:8]]
        raise Refused(
            f"{source.path}: no data file is there; found: {', '.join(told) or 'nothing'}. Name a file, or a folder that "
            "holds one"
        )
    return found
