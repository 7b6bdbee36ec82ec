"""Digests, canonical JSON and directory manifests: how this project names bytes. Standard library only.

``canonical_json`` is RFC 8785 (JSON Canonicalization Scheme): keys sorted by UTF-16 code units, no white space,
numbers as ECMAScript prints them, so that anybody with any language can recompute a digest of ours.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, order=True)
class Digest:
    """A named digest. Laws: ``Digest.parse(str(d)) == d``; the value is lower-case hex of the algorithm's length."""

    algorithm: str
    value: str

    def __post_init__(self) -> None:
        if self.algorithm != "sha256":
            raise ValueError(f"digest algorithm {self.algorithm!r} is not known; allowed: sha256")
        if len(self.value) != 64 or set(self.value) - set("0123456789abcdef"):
            raise ValueError(f"{self.value!r} is no SHA-256 digest: 64 lower-case hex characters are expected")

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value}"

    @property
    def short(self) -> str:
        """The first 12 hex characters, for people; never for comparing."""
        return self.value[:12]

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """``sha256:<hex>`` → Digest. Raises ValueError on any other text."""
        algorithm, colon, value = text.partition(":")
        if not colon:
            raise ValueError(f"{text!r} is no digest; expected 'sha256:' and 64 hex characters")
        return cls(algorithm, value)


def digest_bytes(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


def digest_file(path: Path) -> Digest:
    """SHA-256 of a file's bytes, read in chunks of 1 MiB. Raises OSError as ``open`` does."""
    with open(path, "rb") as file:
        return Digest("sha256", hashlib.file_digest(file, "sha256").hexdigest())


def digest_json(value: Any) -> Digest:
    """SHA-256 of the canonical JSON of ``value``."""
    return digest_bytes(canonical_json(value))


def canonical_json(value: Any) -> bytes:
    """RFC 8785 bytes of a JSON value. Raises ValueError on NaN, infinity, lone surrogates and non-JSON types."""
    parts: list[str] = []
    _write(value, parts)
    try:
        return "".join(parts).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"text with a lone surrogate has no canonical JSON: {error.reason}") from None


def _write(value: Any, parts: list[str]) -> None:
    if value is None:
        parts.append("null")
    elif value is True:
        parts.append("true")
    elif value is False:
        parts.append("false")
    elif isinstance(value, str):
        parts.append(json.dumps(value, ensure_ascii=False))
    elif isinstance(value, int):
        # RFC 8785 numbers are IEEE doubles; most integers beyond 2^53 would silently change there. The others are how
        # a large float reads back from its own canonical text.
        if abs(value) > 2**53 and (abs(value) >= 10**21 or _ecmascript(float(value)) != str(value)):
            raise ValueError(f"integer {value} is beyond 2^53 and has no exact JSON number; write it as text")
        parts.append(str(value))
    elif isinstance(value, float):
        parts.append(_ecmascript(value))
    elif isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"JSON keys are text; found {type(key).__name__} {key!r}")
        parts.append("{")
        for i, key in enumerate(sorted(value, key=lambda k: k.encode("utf-16-be", "surrogatepass"))):
            parts.append("," if i else "")
            parts.append(json.dumps(key, ensure_ascii=False))
            parts.append(":")
            _write(value[key], parts)
        parts.append("}")
    elif isinstance(value, list | tuple):
        parts.append("[")
        for i, item in enumerate(value):
            parts.append("," if i else "")
            _write(item, parts)
        parts.append("]")
    else:
        raise ValueError(f"{type(value).__name__} is no JSON type")


def _ecmascript(number: float) -> str:
    """A float as ECMAScript's Number::toString (ECMA-262, 6.1.6.1.20): shortest digits, its own exponent rules."""
    if not math.isfinite(number):
        raise ValueError(f"{number} is no JSON number")
    if number == 0:
        return "0"
    sign = "-" if number < 0 else ""
    mantissa, _, exponent = repr(abs(number)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    point = len(whole) + int(exponent or 0)
    raw = whole + fraction
    point -= len(raw) - len(raw.lstrip("0"))
    digits = raw.strip("0")
    if 0 < point <= 21:
        text = digits.ljust(point, "0") if len(digits) <= point else f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        head = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
        text = f"{head}e{'+' if point > 0 else '-'}{abs(point - 1)}"
    return sign + text


@dataclass(frozen=True)
class FileEntry:
    """One file of a manifest: its path with forward slashes, its size in bytes, its digest."""

    path: str
    size: int
    digest: Digest

    def as_json(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size, "digest": str(self.digest)}


@dataclass(frozen=True)
class Manifest:
    """All files under a directory, sorted by path. Two directories with equal manifests hold equal bytes."""

    files: tuple[FileEntry, ...]

    @property
    def digest(self) -> Digest:
        return digest_json(self.as_json())

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.files)

    def as_json(self) -> list[dict[str, Any]]:
        return [entry.as_json() for entry in self.files]

    @classmethod
    def of(cls, root: Path) -> "Manifest":
        """Hash every regular file under ``root`` (or ``root`` itself, where it is a file).

        Raises ValueError on a link or a special file inside: what it points to could change unseen.
        """
        return cls(tuple(_entry(root, path) for path in walk(root)))

    @classmethod
    def from_json(cls, entries: Iterable[dict[str, Any]]) -> "Manifest":
        return cls(tuple(FileEntry(e["path"], e["size"], Digest.parse(e["digest"])) for e in entries))


def _entry(root: Path, path: Path) -> FileEntry:
    name = path.name if path == root else path.relative_to(root).as_posix()
    return FileEntry(name, path.stat().st_size, digest_file(path))


def walk(root: Path) -> list[Path]:
    """Regular files under ``root``, sorted by their path's text. Raises ValueError on links and special files."""
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist")
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        for name in [*names, *(f for f in folders if os.path.islink(os.path.join(folder, f)))]:
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file():
                raise ValueError(f"{path} is a link or a special file; an artifact holds regular files only")
            found.append(path)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())
