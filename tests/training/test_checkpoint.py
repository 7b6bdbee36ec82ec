"""Checkpoints on disc: whole or absent, passed over when damaged, cut into any number of files, the best one kept."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from training import checkpoint
from training.digest import canonical_json, digest_file, digest_json
from training.processes import World

ALONE = World()


def tensors(factor: float = 1.0) -> dict[str, Any]:
    return {"weights/a": factor * torch.arange(10.0).reshape(5, 2), "step/a": torch.tensor(factor)}


def save(folder: Path, step: int, best: int | None = None, keep: int = 2, objective: str = "this") -> None:
    checkpoint.save(folder, step, objective, tensors(float(step)), {"best": best, "note": 0.1}, ALONE, keep)


def latest(folder: Path, objective: str = "this") -> tuple[checkpoint.Checkpoint | None, list[str]]:
    told: list[str] = []
    found = checkpoint.latest(folder, objective, ALONE, lambda event: told.append(event["message"]))
    return found, told


def steps(folder: Path) -> list[str]:
    return [path.name for path in checkpoint.found(folder)]


def test_what_was_saved_comes_back_bit_by_bit(tmp_path: Path) -> None:
    save(tmp_path, 7, best=3)
    found, told = latest(tmp_path)
    assert found is not None and (found.step, found.facts, told) == (7, {"best": 3, "note": 0.1}, [])
    empty = {"weights/a": torch.zeros(5, 2), "step/a": torch.zeros(())}
    checkpoint.restore(found, empty)
    assert all(torch.equal(empty[name], value) for name, value in tensors(7.0).items())
    assert sorted(path.name for path in found.path.iterdir()) == ["rank-00000.safetensors", "state.json"]


def test_there_is_none_where_nothing_was_saved(tmp_path: Path) -> None:
    assert latest(tmp_path) == (None, []) == latest(tmp_path / "nowhere")


def test_the_last_are_kept_and_the_best_that_they_name(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step, best=3 if step >= 3 else None)
    assert steps(tmp_path) == ["step-00000003", "step-00000006", "step-00000007"]
    save(tmp_path, 8, best=8)
    assert steps(tmp_path) == ["step-00000003", "step-00000007", "step-00000008"]  # that of step 7 still names it
    save(tmp_path, 9, best=8)
    assert steps(tmp_path) == ["step-00000008", "step-00000009"]
    save(tmp_path, 10, best=8, keep=1)
    assert steps(tmp_path) == ["step-00000008", "step-00000010"]


@pytest.mark.parametrize("file", ["rank-00000.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "empty"])
def test_a_damaged_one_is_passed_over_and_named(tmp_path: Path, file: str, damage: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "step-00000002" / file
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes({"flipped": bytes(data), "cut": bytes(data[:-1]), "empty": b""}[damage])
    found, told = latest(tmp_path)
    assert found is not None and found.step == 1
    assert len(told) == 1 and told[0].startswith("checkpoint step-00000002 is damaged (") and "passed over" in told[0]


@pytest.mark.parametrize("state", [b"[]", b"{}", b'{"digest": 1}', b"null", b"\xff"])
def test_a_state_that_is_none_is_damage_too(tmp_path: Path, state: bytes) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000001" / "state.json").write_bytes(state)
    found, told = latest(tmp_path)
    assert found is None and len(told) == 1


def test_a_state_that_was_edited_is_damage_although_it_is_whole(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = tmp_path / "step-00000001" / "state.json"
    path.write_bytes(canonical_json({**json.loads(path.read_bytes()), "step": 2}))
    found, told = latest(tmp_path)
    assert found is None and "state.json has changed since it was written" in told[0]


def test_one_of_another_objective_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(
        ValueError, match="was written for objective this, not that: other settings, data or base model"
    ):
        latest(tmp_path, "that")


def test_a_place_that_holds_a_damaged_one_is_written_anew(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000001" / "state.json").unlink()
    save(tmp_path, 1)
    found, told = latest(tmp_path)
    assert found is not None and told == []


def test_half_written_ones_are_no_checkpoints_and_are_cleared(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".partial-step-00000002").mkdir()
    (tmp_path / ".partial-step-00000002" / "rank-00000.safetensors").write_bytes(b"half")
    found, told = latest(tmp_path)
    assert found is not None and found.step == 1 and told == []
    checkpoint.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def as_shards(path: Path, cuts: list[int]) -> None:
    """Cut a checkpoint of one file into several, as so many processes would have written it."""
    whole = load_file(path / "rank-00000.safetensors")
    starts = [0, *cuts, 5]
    for rank, (low, high) in enumerate(pairwise(starts)):
        save_file(
            {name: value[low:high].clone() if value.ndim else value for name, value in whole.items()},
            path / f"rank-{rank:05d}.safetensors",
        )
    files = {file.name: str(digest_file(file)) for file in sorted(path.glob("rank-*"))}
    state = json.loads((path / "state.json").read_bytes()) | {"files": files, "processes": len(files)}
    state.pop("digest")
    (path / "state.json").write_bytes(canonical_json({**state, "digest": str(digest_json(state))}))


@pytest.mark.parametrize("cuts", [[3], [2, 4], [1, 2, 3, 4], [1, 2, 3, 4, 5]])
def test_shards_of_several_processes_are_put_together(tmp_path: Path, cuts: list[int]) -> None:
    save(tmp_path, 7)
    as_shards(tmp_path / "step-00000007", cuts)  # of six processes the last holds no row of five
    found, _ = latest(tmp_path)
    assert found is not None and found.state["processes"] == len(cuts) + 1
    empty = {"weights/a": torch.zeros(5, 2), "step/a": torch.zeros(())}
    checkpoint.restore(found, empty)
    assert all(torch.equal(empty[name], value) for name, value in tensors(7.0).items())


def test_one_damaged_shard_damages_the_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 7)
    as_shards(tmp_path / "step-00000007", [3])
    (tmp_path / "step-00000007" / "rank-00001.safetensors").unlink()
    found, told = latest(tmp_path)
    assert found is None and "rank-00001.safetensors" in told[0]


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    found, told = latest(tmp_path)
    assert found is not None and found.step == 1 and told == []
