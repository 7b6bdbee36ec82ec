"""A step: its key, whether to skip or run it, and the manifest it leaves.

The key is the digest of everything that can change the outcome and of nothing else: the step's name, the settings
that it reads, its inputs' digests, the project sources that it runs, and the class of environment. The manifest found
under that key serves skip, resume, rebuild and audit: there is no second cache.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks.lineage.store import Artifact, Damaged, Store, write_json
from training.digest import Digest, digest_json


@dataclass(frozen=True)
class Step:
    """What a step is about to do. ``settings`` and ``environment`` are JSON values; ``inputs`` are digests by name."""

    name: str
    settings: Any
    inputs: Mapping[str, Digest]
    code: Digest
    environment: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {
            "step": self.name,
            "settings": self.settings,
            "inputs": {name: str(digest) for name, digest in self.inputs.items()},
            "code": str(self.code),
            "environment": dict(self.environment),
        }

    @cached_property
    def key(self) -> Digest:
        return digest_json(self.as_json())


@dataclass(frozen=True)
class StepResult:
    """What a step gave. ``facts`` belong to the record; ``seconds`` and ``started`` (Unix time) stand outside of it."""

    step: str
    key: Digest
    outputs: Mapping[str, Artifact]
    facts: Mapping[str, Any]
    cached: bool
    seconds: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Artifact:
        return self.outputs[name]


@dataclass(frozen=True)
class Work:
    """What a step's function gets: ``folder`` survives a kill (checkpoints live there), ``lock`` is an open file
    descriptor that a child process must inherit, so that nobody starts the step while an orphan still writes."""

    folder: Path
    lock: int


@dataclass(frozen=True)
class Made:
    """What a step's function returns: folders to be stored, as (kind, folder) by name, or artifacts that are stored
    already; and facts for the record. ``extra`` is kept beside the record, outside of its digest."""

    outputs: Mapping[str, tuple[str, Path] | Artifact]
    facts: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


def find(store: Store, step: Step, warn: Callable[[str], None]) -> StepResult | None:
    """The step's recorded result, its outputs verified (cheaply); None where it has to run.

    A damaged output is reported through ``warn`` and the step counts as not done; ``put`` moves it aside when the good
    bytes are there again.
    """
    path = manifest_path(store, step)
    try:
        manifest = json.loads(path.read_bytes())
        record = manifest["record"]
        whole = str(digest_json(record)) == manifest["digest"]
        whole = whole and digest_json({name: record[name] for name in step.as_json()}) == step.key
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        warn(f"the manifest {path} has changed since it was written; step {step.name} runs again")
        return None
    outputs = {
        name: store.artifact(entry["kind"], Digest.parse(entry["digest"])) for name, entry in record["outputs"].items()
    }
    for artifact in outputs.values():
        try:
            store.verify(artifact)
        except Damaged as damage:
            warn(f"{damage}; step {step.name} runs again")
            return None
    timing = manifest["timing"]
    return StepResult(step.name, step.key, outputs, record["facts"], True, timing["seconds"], timing["extra"])


def perform(store: Store, step: Step, function: Callable[[Work], Made], warn: Callable[[str], None]) -> StepResult:
    """The recorded result, or that of running ``function`` now. Never runs one step twice at the same time."""
    done = find(store, step, warn)
    if done is not None:
        return done
    folder = store.root / "work" / f"{step.name}-{step.key.value[:24]}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / f"{folder.name}.lock") as lock:
        # Another process may have finished it while this one waited. What is damaged has been told above.
        done = find(store, step, lambda text: None)
        if done is not None:
            return done
        folder.mkdir(exist_ok=True)
        began = time.time()
        made = function(Work(folder, lock))
        outputs = {
            name: made_of if isinstance(made_of, Artifact) else store.put(*made_of)
            for name, made_of in made.outputs.items()
        }
        record = {
            **step.as_json(),
            "key": str(step.key),
            "outputs": {name: artifact.as_json() for name, artifact in outputs.items()},
            "facts": dict(made.facts),
        }
        seconds = time.time() - began
        timing = {"started": began, "seconds": seconds, "extra": dict(made.extra)}
        write_json(manifest_path(store, step), {"record": record, "digest": str(digest_json(record)), "timing": timing})
        shutil.rmtree(folder)
    return StepResult(step.name, step.key, outputs, made.facts, False, seconds, made.extra)


def manifest_path(store: Store, step: Step) -> Path:
    return store.root / "steps" / step.name / f"{step.key.value}.json"


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[int]:
    """Hold an exclusive lock on ``path`` for this process and whoever inherits the descriptor.

    The kernel frees it when the last holder ends, however it ends. Raises BlockingIOError where ``wait`` is off and
    somebody holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield descriptor
    finally:
        os.close(descriptor)
