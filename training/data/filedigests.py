"""Digests of source files, remembered: a file that has not been touched since is not read again.

A file is known by its path, device, inode, size, modification and change time; what is remembered was hashed in full.
"""

import hashlib
import json
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from training.digest import Digest, canonical_json, digest_file, digest_json
from training.strict import Refused

# Two changes within one tick of the file system's clock look the same. What was touched this recently is not remembered.
_RACY = 2_000_000_000  # nanoseconds
_BLOCK = 2**20
SIZE = 2  # where the size stands in a stamp


class FileDigests:
    """Digests by file, kept under ``folder`` (None: nowhere). ``writable`` off: what is there is used, nothing is added."""

    def __init__(self, folder: Path | None, writable: bool = True) -> None:
        self.folder = folder
        self.writable = writable

    def of(self, path: Path) -> Digest:
        """SHA-256 of the file's bytes. Raises OSError as ``open`` does, and Refused where the file keeps changing."""
        remembered = self._read(path)
        stats = stamp(path)
        if remembered is not None and remembered["stamp"] == list(map(str, stats)):
            return Digest("sha256", remembered["digest"])
        for _ in range(3):
            began = time.time_ns()
            digest = digest_file(path)
            before, stats = stats, stamp(path)
            if before == stats:
                if not recent(stats, began):
                    self._write(path, {"stamp": list(map(str, stats)), "digest": digest.value})
                return digest
        raise Refused(f"{path}: the file keeps changing while it is read. Run again when it has been written in full")

    def _place(self, path: Path) -> Path | None:
        return None if self.folder is None else self.folder / f"{digest_json(os.path.abspath(path)).value[:32]}.json"

    def _read(self, path: Path) -> dict[str, Any] | None:
        place = self._place(path)
        return None if place is None else read_checked(place)

    def _write(self, path: Path, value: dict[str, Any]) -> None:
        place = self._place(path)
        if place is not None and self.writable:
            write_checked(place, value)


def stamp(path: Path) -> tuple[int, ...]:
    """Device, inode, size, modification time and change time (nanoseconds) of a file."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def recent(stats: tuple[int, ...], now: int | None = None) -> bool:
    """Whether a file of this stamp may have changed again, by ``now`` (Unix time in ns), without its stamp saying so."""
    return (time.time_ns() if now is None else now) - stats[-1] <= _RACY


def digest_beginning(path: Path, size: int) -> Digest:
    """SHA-256 of the first ``size`` bytes of a file, or of all that it has."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while size > 0 and (block := file.read(min(size, _BLOCK))):
            found.update(block)
            size -= len(block)
    return Digest("sha256", found.hexdigest())


# ------------------------------------------------------------------------------------------------ small files


def read_checked(path: Path) -> dict[str, Any] | None:
    """What ``write_checked`` stored; None where there is nothing, or where a byte of it has changed."""
    try:
        whole = json.loads(path.read_bytes())
        return whole["value"] if whole["check"] == digest_json(whole["value"]).value else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_checked(path: Path, value: dict[str, Any]) -> None:
    """Store a JSON object with its digest, so that a reader, or a kill, sees all of it or nothing.

    A cache that cannot be written is none: an OSError is nobody's problem.
    """
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(canonical_json({"value": value, "check": digest_json(value).value}))
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
