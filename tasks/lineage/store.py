"""Content-addressed artifacts in a local folder: written whole or not at all, verified before they are read again.

``artifacts/<kind>/<hex>/`` holds an artifact's files; ``<hex>`` is the digest of their manifest. ``index/`` remembers
what each file's inode, size and modification time were when it was last hashed in full: the cheap check.
"""

import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.digest import Digest, Manifest, canonical_json, walk


class Damaged(RuntimeError):
    """An artifact's bytes are not those recorded; the message names the file, the recorded and the found digest."""

    exit_code = 3


@dataclass(frozen=True)
class Artifact:
    """What passes between steps: a kind, where its files are, and the digest of their manifest."""

    kind: str
    path: Path
    digest: Digest

    def as_json(self) -> dict[str, str]:
        return {"kind": self.kind, "digest": str(self.digest)}


class Store:
    """The artifacts of a workspace. Safe for several processes: every change is one rename."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def scratch(self) -> Path:
        """A new empty folder on the store's file system, for something that is to be put."""
        folder = self.root / "tmp" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def put(self, kind: str, folder: Path) -> Artifact:
        """Move ``folder`` (on the store's file system) into the store. The same bytes are kept once."""
        manifest = Manifest.of(folder)
        artifact = self.artifact(kind, manifest.digest)
        for path in walk(folder):
            sync(path)
        artifact.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(artifact.path)
        except OSError:
            # It is there already (a rename never replaces a folder that holds something): keep it if it is whole.
            if not artifact.path.exists():
                raise
            try:
                self.verify(artifact, full=True)  # good bytes are at hand: the moment to find damage of every kind
                shutil.rmtree(folder)
            except Damaged:
                self.discard(artifact)
                folder.rename(artifact.path)
        sync(artifact.path.parent)
        self._remember(artifact, manifest)
        return artifact

    def artifact(self, kind: str, digest: Digest) -> Artifact:
        """The artifact of that name; whether it is there is for ``verify`` to say."""
        return Artifact(kind, self.root / "artifacts" / kind / digest.value, digest)

    def verify(self, artifact: Artifact, full: bool = False) -> None:
        """Raise Damaged unless the files are those that the digest names.

        The cheap check compares inode, size and modification time with the last full one; ``full`` hashes every byte.
        """
        if not artifact.path.is_dir():
            raise Damaged(f"{artifact.kind} {artifact.digest} is missing at {artifact.path}")
        index = self._index(artifact)
        if index is not None and not full and _stats(artifact.path) == index["stats"]:
            return
        try:
            manifest = Manifest.of(artifact.path)
        except (OSError, ValueError) as error:
            raise Damaged(f"{artifact.kind} {artifact.digest} at {artifact.path} cannot be read: {error}") from error
        if manifest.digest != artifact.digest:
            raise Damaged(
                f"{artifact.kind} {artifact.digest} has changed: {_difference(index, manifest, artifact.path)}"
            )
        self._remember(artifact, manifest)

    def discard(self, artifact: Artifact) -> Path:
        """Move a damaged artifact aside (it is evidence, so it is not deleted) and say where it is."""
        aside = self.root / "damaged" / f"{artifact.kind}-{artifact.digest.short}-{uuid.uuid4().hex[:8]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        artifact.path.rename(aside)
        return aside

    def _index_path(self, artifact: Artifact) -> Path:
        return self.root / "index" / artifact.kind / f"{artifact.digest.value}.json"

    def _index(self, artifact: Artifact) -> Any | None:
        try:
            return json.loads(self._index_path(artifact).read_bytes())
        except (OSError, ValueError):
            return None

    def _remember(self, artifact: Artifact, manifest: Manifest) -> None:
        value = {"stats": _stats(artifact.path), "files": manifest.as_json()}
        write_atomic(self._index_path(artifact), json.dumps(value).encode())


def _stats(root: Path) -> list[list[Any]]:
    found = []
    try:
        paths = walk(root)
    except ValueError:
        return []
    for path in paths:
        stat = path.stat()
        found.append([path.relative_to(root).as_posix(), stat.st_ino, stat.st_size, stat.st_mtime_ns])
    return found


def _difference(index: Any | None, manifest: Manifest, root: Path) -> str:
    """File by file, recorded against found."""
    if index is None:
        return f"{root} now has the digest {manifest.digest}"
    recorded = {entry["path"]: entry["digest"] for entry in index["files"]}
    found = {entry.path: str(entry.digest) for entry in manifest.files}
    lines = [
        f"{root / name}: recorded {recorded.get(name, 'no such file')}, found {found.get(name, 'no such file')}"
        for name in sorted(recorded.keys() | found.keys())
        if recorded.get(name) != found.get(name)
    ]
    return "; ".join(lines)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill, sees the old bytes or the new ones and nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Canonical JSON, atomically."""
    write_atomic(path, canonical_json(value))


def sync(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
