"""Training in real processes: two of them give what one gives, and FSDP2 gives what DDP gives."""

import json
import math
import shutil
from pathlib import Path

import pytest

from tests.training import workers
from tests.training.running import LAUNCH, Done, furthest, run, run_forked
from tests.training.workers import Events, job, profile, settings, told
from training.processes import World
from training.settings import EarlyStop, LoRA
from training.strict import Refused


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("one")
    events: Events = []
    payload = job(folder, "model", profile())
    workers.run(payload, events.append)
    return Done(Path(payload["output"]), Path(payload["checkpoints"]), events)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return run_forked(tmp_path_factory.mktemp("ddp"), profile(2))


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return run_forked(tmp_path_factory.mktemp("fsdp"), profile(2, strategy="fsdp"))


# ------------------------------------------------------------------------------------------------ two are as one


def test_two_processes_reach_the_loss_curve_of_one(one: Done, ddp: Done, fsdp: Done) -> None:
    assert len(one.losses) == 6 and one.losses[-1] < one.losses[0] - 0.1
    assert ddp.losses == pytest.approx(one.losses, abs=1e-5) and fsdp.losses == pytest.approx(one.losses, abs=1e-5)
    for event, other in zip(told(one.events, "metrics"), told(ddp.events, "metrics"), strict=True):
        assert other["metrics"] == pytest.approx(event["metrics"], abs=1e-5)
        assert other["metrics"]["examples"] == 8
    assert furthest(one, ddp) < 1e-5


def test_fsdp_saves_the_bytes_that_ddp_saves(ddp: Done, fsdp: Done) -> None:
    assert fsdp.bytes == ddp.bytes
    newest = sorted(fsdp.checkpoints.iterdir())[-1]
    assert [path.name for path in sorted(newest.glob("rank-*"))] == ["rank-00000.safetensors", "rank-00001.safetensors"]
    sizes = [path.stat().st_size for path in newest.glob("rank-*")]
    assert max(sizes) < 0.6 * sum(sizes)  # each has written its half
    assert len(list(sorted(ddp.checkpoints.iterdir())[-1].glob("rank-*"))) == 1


CPU = ["--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
CONFIG = {
    "compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "use_cpu": True, "num_processes": 2,
    "num_machines": 1, "machine_rank": 0, "mixed_precision": "no", "main_process_ip": "127.0.0.1", "main_process_port": 0,
}  # fmt: skip


def test_accelerate_launch_on_the_cpu_starts_two_processes(tmp_path: Path, ddp: Done) -> None:
    """By itself ``accelerate launch --cpu`` starts one process; that one starts the ranks."""
    found = run(tmp_path, profile(2), command=[*LAUNCH, *CPU, "-m", "tasks.child"])
    assert found.bytes == ddp.bytes


def test_ranks_that_accelerate_launch_gives_out_are_taken(tmp_path: Path, ddp: Done) -> None:
    (tmp_path / "accelerate.json").write_text(json.dumps(CONFIG))
    config = ["--config_file", str(tmp_path / "accelerate.json")]
    found = run(tmp_path, profile(2), command=[*LAUNCH, *config, "-m", "tasks.child"])
    assert found.bytes == ddp.bytes


def test_as_many_processes_as_the_profile_says_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="the profile says processes: 2 and 1 were started"):
        World.current(profile(2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Refused, match="the profile says processes: 1 and 2 were started"):
        World.current(profile())


def test_adapters_several_micro_batches_and_recomputed_activations_are_sharded_too(tmp_path: Path) -> None:
    """Rank 1 adapters have matrices of one row: the second process holds nothing of them. Dropout differs by process."""
    given = settings(3, batch=24, lora=LoRA(rank=1, alpha=4.0, dropout=0.2, dora=True))
    more = {"objective_settings": {"batch": 24}, "tied": False}
    chosen = [profile(2, strategy=way, token_budget=64, activation_checkpointing=True) for way in ("ddp", "fsdp")]
    ddp, fsdp = (run_forked(tmp_path / p.strategy, p, given, **more) for p in chosen)
    assert told(fsdp.events, "metrics")[0]["metrics"] == pytest.approx(
        told(ddp.events, "metrics")[0]["metrics"], abs=1e-5
    )
    # DDP adds a process's micro-batches before it exchanges, FSDP2 exchanges each: the same sum in another order.
    assert furthest(ddp, fsdp) < 1e-5


# ------------------------------------------------------------------------------------------------ other numbers of processes


def test_a_run_goes_on_in_another_number_of_processes(tmp_path: Path, one: Done, ddp: Done, fsdp: Done) -> None:
    two_in_one = job(tmp_path, "model", profile())
    shutil.copytree(fsdp.checkpoints, two_in_one["checkpoints"])
    events: Events = []
    workers.run(two_in_one, events.append)
    found = Done(Path(two_in_one["output"]), Path(two_in_one["checkpoints"]), events)
    assert found.says(
        "goes on from the checkpoint at step 5 of 2 process(es) in 1: order and batches stay, bits may not"
    )
    assert found.losses == pytest.approx(one.losses[5:], abs=1e-5) and furthest(found, one) < 1e-5

    one_in_two = run_forked(tmp_path / "two", profile(2, strategy="fsdp"), checkpoints=one.checkpoints)
    assert one_in_two.says("of 1 process(es) in 2") and one_in_two.losses == pytest.approx(one.losses[5:], abs=1e-5)
    assert furthest(one_in_two, one) < 1e-5


def test_what_ddp_has_begun_fsdp_ends_with_the_same_bytes(tmp_path: Path, ddp: Done) -> None:
    found = run_forked(tmp_path, profile(2, strategy="fsdp"), checkpoints=ddp.checkpoints)
    assert found.says("goes on from the checkpoint at step 5") and found.bytes == ddp.bytes


# ------------------------------------------------------------------------------------------------ memory, early stop, divergence


def test_memory_that_runs_out_in_one_process_halves_the_budget_of_all(tmp_path: Path) -> None:
    more = {"objective_settings": {"batch": 24, "memory": (2, 64), "rank_without_memory": 1}}
    found = run(tmp_path / "first", profile(2, token_budget=130), **more)
    assert found.budgets == [[0, 130], [2, 65]]
    assert [event["step"] for event in told(found.events, "metrics")][-4:] == [3, 4, 5, 6]
    errors = told(found.events, "error")
    first = next(event for event in errors if event["code"] == 75)  # the other one tells that it has lost its peer
    assert first["message"].startswith("memory ran out in step 3: the token budget is 65 from here on (out of memory")
    replayed = run(
        tmp_path / "again", profile(2, token_budget=130), objective_settings={"batch": 24}, budgets=found.budgets
    )
    assert replayed.bytes == found.bytes and replayed.budgets == found.budgets


def test_the_held_out_margin_is_that_of_all_processes(tmp_path: Path) -> None:
    """It falls while the model is trained on other rows, so the best weights are those of the first evaluation."""
    given = settings(6, learning_rate=0.1, early_stop=EarlyStop(every=1, patience=2))
    events: Events = []
    payload = job(tmp_path / "one", "model", profile(), given)
    workers.run(payload, events.append)
    alone = Done(Path(payload["output"]), Path(payload["checkpoints"]), events)
    fsdp = run_forked(tmp_path / "two", profile(2, strategy="fsdp"), given)

    def margins(events: Events) -> list[float]:
        return [event["metrics"]["early_stop/margin"] for event in told(events, "metrics")]

    assert margins(fsdp.events) == pytest.approx(margins(alone.events), abs=1e-3)
    assert all(math.isfinite(margin) for margin in margins(fsdp.events))
    best = margins(alone.events).index(max(margins(alone.events))) + 1
    assert best < len(margins(alone.events)) < 6 or best == 6
    assert fsdp.says(f"takes the weights of step {best}, the best held-out margin") and furthest(alone, fsdp) < 1e-4
