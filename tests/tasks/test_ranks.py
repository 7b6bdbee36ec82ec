"""A job of several processes: how it ends when one of them does, and that none of them is left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.jobs import Job, JobFailed, run_job
from tasks.lineage.closure import ROOT
from tasks.lineage.step import locked
from tests.tasks.test_jobs import Events, ended
from training.strict import Refused


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[int]:
    with locked(tmp_path / "step.lock") as descriptor:
        yield descriptor


def make(tmp_path: Path, lock: int, processes: int = 2, **payload: Any) -> Job:
    (tmp_path / "marks").mkdir()
    given = {"marks": str(tmp_path / "marks"), **payload}
    return Job("tests.tasks.jobmodules.ranked", given, tmp_path / "job", 1.0, lock, 1, processes=processes)


def run(job: Job) -> tuple[dict[str, Any], Events]:
    told: Events = []
    return run_job(job, told.extend), told


def pids(folder: Path, count: int, seconds: float = 10.0) -> list[int]:
    """The process ids that the processes tell, when ``count`` of them have."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = [path.read_text() for path in sorted((folder / "marks").glob("*-*"))]
        if len(found) == count and all(found):
            return [int(pid) for pid in found]
        time.sleep(0.01)
    raise AssertionError("the processes did not start")


def assert_gone(processes: list[int], seconds: float = 2.0) -> None:
    deadline = time.monotonic() + seconds
    while not all(ended(pid) for pid in processes):
        assert time.monotonic() < deadline, "an orphan is still there"
        time.sleep(0.02)


def test_every_process_runs_in_the_jobs_group_and_only_the_first_logs(tmp_path: Path, lock: int) -> None:
    facts, told = run(make(tmp_path, lock, 3))
    assert facts == {"rank 0": ["3", True]} and len(told) == 1
    assert sorted(path.name for path in (tmp_path / "marks").iterdir()) == ["0-0", "1-0", "2-0"]


@pytest.mark.parametrize("faulty", [0, 1])
@pytest.mark.parametrize("others", [0.3, 120])  # the others notice, or they hang
def test_a_fault_of_one_ends_all_and_is_told_as_its_own(tmp_path: Path, lock: int, faulty: int, others: float) -> None:
    began = time.monotonic()
    with pytest.raises(JobFailed, match=r"ended with exit code 1: KeyError: 'unknown'"):
        run(make(tmp_path, lock, fault="crash", faulty=faulty, others=others))
    assert_gone(pids(tmp_path, 2))
    assert time.monotonic() - began < 10


def test_a_refusal_of_one_reaches_the_caller_word_for_word(tmp_path: Path, lock: int) -> None:
    with pytest.raises(Refused, match=r"^line 3 is no record$"):
        run(make(tmp_path, lock, fault="refuse", faulty=1, others=0.2))


def test_a_disk_that_is_full_for_one_is_told_as_such(tmp_path: Path, lock: int) -> None:
    with pytest.raises(OSError) as raised:
        run(make(tmp_path, lock, fault="full", faulty=1, others=0.2))
    assert raised.value.errno == 28


@pytest.mark.parametrize("others", [0.05, 120])
def test_one_that_is_killed_is_named(tmp_path: Path, lock: int, others: float) -> None:
    with pytest.raises(JobFailed, match="ended with exit code 137: process 2 of 2 was killed by SIGKILL"):
        run(make(tmp_path, lock, fault="kill", faulty=1, others=others))
    assert_gone(pids(tmp_path, 2))


def test_all_start_again_where_one_asks_for_it(tmp_path: Path, lock: int) -> None:
    facts, _ = run(make(tmp_path, lock, fault="again", faulty=1))
    assert sorted(path.name for path in (tmp_path / "marks").glob("*-*")) == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]
    assert facts == {"rank 0": ["2", True]}


PARENT = """
import sys
from pathlib import Path
from tasks.jobs import Job, run_job
from tasks.lineage.step import locked
folder = Path(sys.argv[1])
with locked(folder / "step.lock") as lock:
    payload = {"marks": str(folder / "marks"), "fault": "wait", "faulty": -1}
    run_job(Job("tests.tasks.jobmodules.ranked", payload, folder / "job", 1.0, lock, 1, processes=2), print)
"""


@pytest.mark.parametrize("which", ["parent", "launcher"])
def test_none_is_left_behind_by_a_kill(tmp_path: Path, which: str) -> None:
    (tmp_path / "marks").mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    workers = pids(tmp_path, 2)
    launcher = int(Path(f"/proc/{workers[0]}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent.pid if which == "parent" else launcher, signal.SIGKILL)
    assert_gone([launcher, *workers])
    told = parent.communicate()[1].decode()
    assert parent.returncode == (-9 if which == "parent" else 1)
    assert which == "parent" or re.search("JobFailed: .* was killed by SIGKILL", told)
    with locked(tmp_path / "step.lock", wait=False):
        pass


def test_every_process_holds_the_steps_lock(tmp_path: Path, lock: int) -> None:
    """So that the step stays locked as long as one of them lives."""

    def look(events: Events) -> None:
        for pid in pids(tmp_path, 2):
            held = [os.path.realpath(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
            assert os.path.realpath(tmp_path / "step.lock") in held
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(make(tmp_path, lock, fault="wait", faulty=-1), look)


def test_an_interrupt_of_the_parent_ends_all(tmp_path: Path, lock: int) -> None:
    def interrupt(events: Events) -> None:
        pids(tmp_path, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(make(tmp_path, lock, fault="wait", faulty=-1), interrupt)
    assert_gone(pids(tmp_path, 2))


def test_a_child_that_was_given_a_rank_starts_no_others(tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    job = {"marks": str(tmp_path / "marks"), "events": str(tmp_path / "events.jsonl"), "processes": 2}
    (tmp_path / "job.json").write_text(str(job).replace("'", '"'))
    environment = {**os.environ, "RANK": "1", "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tasks.child", "tests.tasks.jobmodules.ranked", str(tmp_path / "job.json")]
    # As accelerate launch starts it in a batch job: standard input is no pipe, and its end is no sign.
    subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=True)
    assert [path.name for path in (tmp_path / "marks").iterdir()] == ["1-0"]
    assert (tmp_path / "events.jsonl").read_text() == ""
