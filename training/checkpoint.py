"""Checkpoints: everything that a bit-exact resume needs, and nothing that another run could mistake for its own.

One folder per checkpoint, written beside its place and renamed, so that a kill leaves a whole one or none:
``weights.safetensors``, ``optimiser.safetensors`` and ``state.json`` (step, objective, digests of the other two).
Random numbers need no saving: each step seeds its own from (seed, step).
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.digest import canonical_json, digest_file

_FILES = ("weights.safetensors", "optimiser.safetensors")


@dataclass(frozen=True)
class Restored:
    """``step``: optimiser steps done; ``weights`` and ``optimiser``: tensors by name, on the CPU."""

    step: int
    weights: dict[str, Any]
    optimiser: dict[str, Any]


def save(
    folder: Path, step: int, objective: str, weights: dict[str, Any], optimiser: dict[str, Any], keep: int
) -> None:
    """Write ``folder/step-NNNNNNNN`` atomically and drop all but the newest ``keep``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    partial = folder / f".partial-{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, partial / _FILES[0])
    save_file({name: tensor.detach().contiguous() for name, tensor in optimiser.items()}, partial / _FILES[1])
    digests = {name: str(digest_file(partial / name)) for name in _FILES}
    (partial / "state.json").write_bytes(canonical_json({"step": step, "objective": objective, "files": digests}))
    for path in [*partial.iterdir(), partial]:
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync(folder)
    for old in _found(folder)[:-keep]:
        shutil.rmtree(old)


def load_latest(folder: Path, objective: str, log: Any) -> Restored | None:
    """The newest whole checkpoint, or None. A damaged one is reported and passed over.

    Raises ValueError where the newest belongs to another objective (settings, data or base model).
    """
    from safetensors.torch import load_file

    for path in reversed(_found(folder)):
        fault = _fault(path)
        if fault:
            log({"type": "milestone", "message": f"checkpoint {path.name} is damaged ({fault}) and is passed over"})
            continue
        state = json.loads((path / "state.json").read_bytes())
        if state["objective"] != objective:
            raise ValueError(
                f"checkpoint {path} was written for objective {state['objective']}, not {objective}: other settings, "
                "data or base model; remove the folder or restore what it was trained with"
            )
        return Restored(state["step"], load_file(path / _FILES[0]), load_file(path / _FILES[1]))
    return None


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _fault(path: Path) -> str | None:
    try:
        recorded = json.loads((path / "state.json").read_bytes())["files"]
        changed = [name for name in _FILES if str(digest_file(path / name)) != recorded[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{changed[0]} has changed since it was written" if changed else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
