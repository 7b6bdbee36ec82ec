"""Training that is killed with -9, from another process and at any instant, and resumed: not one byte is different."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training import workers
from tests.training.running import CHILD, Done, done, end, forked, run_forked, start
from tests.training.workers import job, profile, settings
from training.settings import LoRA


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return run_forked(tmp_path_factory.mktemp("ddp"), profile(2))


def test_fsdp_that_is_killed_and_resumed_saves_the_bytes_of_a_quiet_run(tmp_path: Path, ddp: Done) -> None:
    """Five kills of one process or the other at random instants, some of them in the middle of a checkpoint."""
    payload = job(tmp_path, "model", profile(2, strategy="fsdp"))
    folder = Path(payload["checkpoints"])
    draw = random.Random(5)
    for kill, wanted in enumerate((".partial-*", "step-*", ".partial-*", "step-*", ".partial-*/state.json")):
        began = time.time_ns()
        processes = forked(payload, tmp_path)
        wait_for(lambda wanted=wanted, began=began: newer(folder, wanted, began))  # type: ignore[misc]
        time.sleep(draw.uniform(0, 0.01))
        chosen, other = draw.sample(processes, 2)
        chosen.kill()
        chosen.join()
        assert chosen.exitcode == -signal.SIGKILL, f"kill {kill} came too late"
        other.join(1)  # it notices that it is alone, unless it still waits for the first word
        other.kill()
        other.join()
        assert not Path(payload["output"]).exists()
    for process in (processes := forked(payload, tmp_path)):
        process.join()
    found = done(tmp_path, payload)
    assert [process.exitcode for process in processes] == [0, 0]
    assert found.bytes == ddp.bytes and found.says("goes on from the checkpoint at step ")
    assert not list(folder.glob(".partial-*"))


def test_a_job_of_which_one_process_is_killed_ends_and_goes_on(tmp_path: Path, ddp: Done) -> None:
    payload = job(tmp_path, "model", profile(2))
    process = start(tmp_path, payload, CHILD)
    wait_for(lambda: any(Path(payload["checkpoints"]).glob("step-*")))
    ranks = children(process.pid)
    os.kill(ranks[1], signal.SIGKILL)
    assert end(process) == 137 and not any(alive(pid) for pid in ranks)
    (error,) = [event for event in done(tmp_path, payload).events if event.get("code") == 137]
    assert error["message"] == "process 2 of 2 was killed by SIGKILL"
    assert end(start(tmp_path, payload, CHILD)) == 0
    assert done(tmp_path, payload).bytes == ddp.bytes


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline


def newer(folder: Path, pattern: str, since: int) -> bool:
    """Whether something is there that this attempt has written: what a killed one has left is not."""
    try:
        return any(path.stat().st_mtime_ns > since for path in folder.glob(pattern))
    except FileNotFoundError:
        return False  # renamed this very moment


def children(pid: int) -> list[int]:
    """The processes that a process has started, in order."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# The instants at which one training run is killed, over and over.
INSTANTS = (
    "anywhere",
    "after a step",
    "while a checkpoint is written",
    "about the rename",
    "while old ones are dropped",
)


def test_twenty_kills_of_one_run_change_no_byte(tmp_path: Path) -> None:
    draw = random.Random(20)
    given = settings(150, lora=LoRA(rank=2, alpha=4.0, dropout=0.2))
    quiet = job(tmp_path, "quiet", profile(), given)
    workers.run(quiet, workers.ignore)
    payload = job(tmp_path, "killed", profile(), given)
    folder = Path(payload["checkpoints"])

    def steps() -> set[str]:
        return {path.name for path in folder.glob("step-*")}

    def has_come(instant: str, before: set[str], began: int) -> bool:
        match instant:
            case "after a step":
                return bool(steps() - before)
            case "while a checkpoint is written":
                return newer(folder, ".partial-*", began)
            case "about the rename":
                return newer(folder, ".partial-*/state.json", began)
        return len(steps()) > 2

    resumed_at = []
    for kill in range(20):
        before, began = steps(), time.time_ns()
        (process,) = forked(payload, tmp_path)
        instant = INSTANTS[kill % len(INSTANTS)]
        delay = draw.uniform(0, 0.003)
        if instant == "anywhere":
            delay = draw.uniform(0, 0.2)
        else:
            wait_for(lambda instant=instant, before=before, began=began: has_come(instant, before, began))  # type: ignore[misc]
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"kill {kill} came too late"
        resumed_at.append(max(steps(), default="step-00000000"))
    assert resumed_at == sorted(resumed_at) and resumed_at[-1] > resumed_at[0]
    (last,) = forked(payload, tmp_path)
    last.join()
    assert last.exitcode == 0
    assert Path(payload["output"]).read_bytes() == Path(quiet["output"]).read_bytes()
    assert len(steps()) == 2 and not list(folder.glob(".partial-*"))
