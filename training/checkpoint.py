"""Checkpoints: everything that a bit-exact resume needs, and nothing that another run could mistake for its own.

One folder per checkpoint, written beside its place and renamed, so that a kill leaves a whole one or none:
``rank-00000.safetensors`` with the weights and the optimiser's state, one such file per process where they are sharded,
and ``state.json``: step, objective, number of processes, digests of the files, and what else the loop wants to know.
A sharded tensor lies in the files in rows, in the order of ranks; any number of processes can read any number of files.
Random numbers need no saving: each step seeds its own from (seed, step, rank).
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.digest import canonical_json, digest_file, digest_json
from training.optimiser import local
from training.processes import World

PARTIAL = ".partial-"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. ``step``: optimiser steps done; ``facts``: what ``save`` was given."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def facts(self) -> dict[str, Any]:
        return dict(self.state["facts"])


def save(
    folder: Path,
    step: int,
    objective: str,
    tensors: Mapping[str, Any],
    facts: Mapping[str, Any],
    world: World,
    keep: int,
) -> None:
    """Write ``folder/step-NNNNNNNN`` atomically and drop all but the newest ``keep``; called by all processes.

    ``tensors`` are whole, and the main process writes them; or sharded, and each writes its rows. ``facts`` is JSON;
    its ``best`` names the step of a checkpoint that is kept however old it is.
    """
    from safetensors.torch import save_file

    final = place(folder, step)
    partial = folder / f"{PARTIAL}{final.name}"
    if world.main:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    world.wait()
    digests: dict[str, str] = {}
    if world.main or any(_rows(tensor) is not None for tensor in tensors.values()):
        path = partial / f"rank-{world.rank:05d}.safetensors"
        save_file({name: local(tensor).detach().contiguous() for name, tensor in tensors.items()}, path)
        digests[path.name] = str(digest_file(path))
        _sync(path)
    files = {name: digest for written in world.share(digests) for name, digest in written.items()}
    if not world.main:
        return
    state = {"step": step, "objective": objective, "processes": world.size, "files": files, "facts": dict(facts)}
    (partial / "state.json").write_bytes(canonical_json({**state, "digest": str(digest_json(state))}))
    _sync(partial / "state.json")
    _sync(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync(folder)
    _drop_old(folder, keep)


def latest(folder: Path, objective: str, world: World, log: Any) -> Checkpoint | None:
    """The newest whole checkpoint, or None. A damaged one is reported and passed over.

    Raises ValueError where the newest belongs to another objective (settings, data or base model).
    """
    for path in reversed(world.from_main(found(folder))):
        checkpoint = _whole(path, world, log)
        if checkpoint is None:
            continue
        if checkpoint.state["objective"] != objective:
            raise ValueError(
                f"checkpoint {path} was written for objective {checkpoint.state['objective']}, not {objective}: other "
                "settings, data or base model; remove the folder or restore what it was trained with"
            )
        return checkpoint
    return None


def at(folder: Path, step: int, world: World) -> Checkpoint:
    """The checkpoint of a step. Raises RuntimeError where it is not there or damaged."""
    told: list[str] = []
    checkpoint = _whole(place(folder, step), world, lambda event: told.append(event["message"]))
    if checkpoint is None:
        raise RuntimeError(f"{told[0]}: its weights are lost; remove {folder} and train again")
    return checkpoint


def restore(checkpoint: Checkpoint, tensors: Mapping[str, Any]) -> None:
    """Fill ``tensors`` in place, each process its own rows; one tensor at a time is in memory twice."""
    import torch
    from safetensors import safe_open

    with ExitStack() as stack, torch.no_grad():
        files: list[Any] = [
            stack.enter_context(safe_open(checkpoint.path / name, framework="pt"))
            for name in sorted(checkpoint.state["files"])
        ]
        for name, tensor in tensors.items():
            rows = _rows(tensor)
            here = local(tensor).detach()
            if here.ndim == 0:
                here.copy_(files[0].get_tensor(name))
            else:
                _fill(here, [file.get_slice(name) for file in files], rows[0] if rows else 0)


def found(folder: Path) -> list[Path]:
    """All checkpoints, whole or not, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def clear(folder: Path) -> None:
    """Remove what a killed run has left half-written."""
    for path in folder.glob(f"{PARTIAL}step-*"):
        shutil.rmtree(path)


def place(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _fill(target: Any, slices: list[Any], first: int) -> None:
    """Copy the rows from ``first`` on of the tensor that ``slices`` make one after the other."""
    start = 0
    for piece in slices:
        rows = piece.get_shape()[0]
        low, high = max(first, start), min(first + len(target), start + rows)
        if low < high:
            target[low - first : high - first].copy_(piece[low - start : high - start])
        start += rows


def _rows(tensor: Any) -> tuple[int, int] | None:
    """First row and number of rows of this process's shard; None for a whole tensor."""
    if not hasattr(tensor, "to_local"):
        return None
    from torch.distributed.tensor import Shard

    (placement,) = tensor.placements
    assert placement == Shard(0), placement
    size, rank = tensor.device_mesh.size(), tensor.device_mesh.get_local_rank()
    chunk = -(-tensor.shape[0] // size)
    first = min(rank * chunk, tensor.shape[0])
    return first, min(chunk, tensor.shape[0] - first)


def _whole(path: Path, world: World, log: Any) -> Checkpoint | None:
    """The checkpoint at ``path`` with every file as it was written, or None. The processes share the reading."""
    state, fault = world.from_main(_state(path))
    if fault is None:
        mine = sorted(state["files"])[world.rank :: world.size]
        fault = next(filter(None, world.share(_changed(path, {name: state["files"][name] for name in mine}))), None)
    if fault is not None:
        log({"type": "milestone", "message": f"checkpoint {path.name} is damaged ({fault}) and is passed over"})
        return None
    return Checkpoint(path, state)


def _state(path: Path) -> tuple[dict[str, Any], str | None]:
    try:
        state = json.loads((path / "state.json").read_bytes())
        digest = state.pop("digest")
        changed = None if digest == str(digest_json(state)) else "state.json has changed since it was written"
        return state, changed
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, f"{type(error).__name__}: {error}"


def _changed(path: Path, files: Mapping[str, str]) -> str | None:
    try:
        changed = [name for name, digest in files.items() if str(digest_file(path / name)) != digest]
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return f"{changed[0]} has changed since it was written" if changed else None


def _drop_old(folder: Path, keep: int) -> None:
    paths = found(folder)
    kept = paths[-keep:]
    best = {_state(path)[0].get("facts", {}).get("best") for path in kept}
    for old in paths[:-keep]:
        if old not in {place(folder, step) for step in best if step is not None}:
            shutil.rmtree(old)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
