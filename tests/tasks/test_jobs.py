"""Jobs as real child processes: every way to end, and what the parent makes of it."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.faults import explain
from tasks.jobs import EventReader, Job, JobFailed, run_job
from tasks.lineage.closure import ROOT
from tasks.lineage.step import locked
from training.strict import Refused

Events = list[dict[str, Any]]


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[int]:
    with locked(tmp_path / "step.lock") as descriptor:
        yield descriptor


def make(tmp_path: Path, lock: int, module: str, minutes: float = 1.0, **payload: Any) -> Job:
    return Job(f"tests.tasks.jobmodules.{module}", payload, tmp_path / "job", minutes, lock, threads=1)


def run(job: Job) -> tuple[dict[str, Any], Events]:
    told: Events = []
    return run_job(job, told.extend), told


def ended(pid: int) -> bool:
    """Whether a process is gone, or is a corpse that nobody has collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def pid_told(events: Path, seconds: float = 10.0) -> int:
    """The process id that ``waits`` tells as its first event."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = re.search(r"pid (\d+)\"", events.read_text()) if events.is_file() else None
        if found:
            return int(found[1])
        time.sleep(0.01)
    raise AssertionError(f"no process id in {events}")


# ------------------------------------------------------------------------------------------------ ways to end


def test_a_child_that_is_done_gives_its_facts_and_every_event_in_order(tmp_path: Path, lock: int) -> None:
    facts, told = run(make(tmp_path, lock, "done", number=7, count=200))
    assert facts == {"rows": 4, "seen": 7}  # of a fact told twice the later holds
    assert [event["type"] for event in told] == ["facts", *["metrics"] * 200, "facts"]
    assert [event["step"] for event in told[1:-1]] == list(range(1, 201))
    assert [event["time"] for event in told] == sorted(event["time"] for event in told)


def test_a_refusal_reaches_the_caller_word_for_word(tmp_path: Path, lock: int) -> None:
    job = make(tmp_path, lock, "refuses")
    with pytest.raises(Refused, match=r"^data\.jsonl: line 3 is no record; mend it and run again$"):
        run(job)
    assert job.log.read_text() == ""  # a refusal is no fault and has no traceback


def test_a_crash_names_the_error_and_the_log_that_holds_its_traceback(tmp_path: Path, lock: int) -> None:
    job = make(tmp_path, lock, "crashes")
    with pytest.raises(JobFailed) as raised:
        run(job)
    message = str(raised.value)
    assert message.startswith("tests.tasks.jobmodules.crashes ended with exit code 1: KeyError: 'unknown'")
    assert str(job.log) in message and "run again" in message
    assert 'cause["unknown"]' in job.log.read_text() and "Traceback" in job.log.read_text()


def test_a_module_that_does_not_exist_is_a_crash(tmp_path: Path, lock: int) -> None:
    with pytest.raises(JobFailed, match=r"ModuleNotFoundError: No module named .tests\.tasks\.jobmodules\.nowhere."):
        run(make(tmp_path, lock, "nowhere"))


def test_a_child_that_is_killed_is_told_by_the_signal(tmp_path: Path, lock: int) -> None:
    job = make(tmp_path, lock, "waits")

    def kill() -> None:
        subprocess.run(["kill", "-9", str(pid_told(job.events))], check=True)  # from another process

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(JobFailed, match="was killed by SIGKILL: no message") as raised:
        run(job)
    killer.join()
    assert str(job.log) in str(raised.value)


def test_a_child_that_exceeds_its_time_is_stopped(tmp_path: Path, lock: int) -> None:
    job = make(tmp_path, lock, "waits", minutes=2 / 60)
    began = time.monotonic()
    with pytest.raises(JobFailed, match=r"was stopped after its limit of 0\.0333333 minutes; its checkpoint stays"):
        run(job)
    assert time.monotonic() - began < 10 and ended(pid_told(job.events))


@pytest.mark.parametrize("how", ["system", "library", "unprintable"])
def test_a_full_disk_is_told_as_such(tmp_path: Path, lock: int, how: str) -> None:
    with pytest.raises(OSError) as raised:
        run(make(tmp_path, lock, "diskfull", how=how))
    assert (raised.value.errno, raised.value.filename) == (28, str(tmp_path / "job"))
    message, code = explain(raised.value)
    assert message.startswith("no space is left on the disk of ") and "run again" in message and code == 1


def test_an_interrupt_of_the_parent_ends_the_child(tmp_path: Path, lock: int) -> None:
    job = make(tmp_path, lock, "waits")

    def interrupt(events: Events) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, interrupt)
    assert ended(pid_told(job.events))


PARENT = """
import sys
from pathlib import Path
from tasks.faults import explain
from tasks.jobs import Job, run_job
from tasks.lineage.step import locked
folder = Path(sys.argv[1])
with locked(folder / "step.lock") as lock:
    run_job(Job("tests.tasks.jobmodules.waits", {}, folder / "job", 1.0, lock, 1), print)
"""


def test_a_child_ends_within_two_seconds_of_its_killed_parent_and_frees_the_step(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL)
    pid = pid_told(tmp_path / "job" / "events.jsonl")
    assert not ended(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 2
    while not ended(pid):
        assert time.monotonic() < deadline, "the orphan is still there"
        time.sleep(0.02)
    with locked(tmp_path / "step.lock", wait=False):
        pass


def test_a_child_keeps_its_step_locked_when_the_parent_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "own.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    found: list[type[BaseException]] = []

    def let_go(events: Events) -> None:
        os.close(descriptor)
        try:
            with locked(path, wait=False):
                pass
        except BlockingIOError as error:
            found.append(type(error))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(make(tmp_path, descriptor, "waits"), let_go)
    assert found == [BlockingIOError]
    with locked(path, wait=False):
        pass


# ------------------------------------------------------------------------------------------------ second attempts


def test_the_attempt_after_a_kill_in_the_middle_of_a_line_tells_every_event_once(tmp_path: Path, lock: int) -> None:
    job = make(tmp_path, lock, "torn", mark=str(tmp_path / "mark"))
    first: Events = []
    with pytest.raises(JobFailed, match="was killed by SIGKILL"):
        run_job(job, first.extend)
    assert [event["type"] for event in first] == ["metrics", "facts"]
    assert not job.events.read_bytes().endswith(b"\n")
    facts, second = run(job)
    assert [event["step"] for event in second] == [1, 2]
    assert facts == {"told before the kill": 1}  # a fact of the former attempt is not lost


def test_a_child_has_its_own_group_folder_and_threads_and_no_network(tmp_path: Path, lock: int) -> None:
    facts, _ = run(make(tmp_path, lock, "environment"))
    assert facts == {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONHASHSEED": "0",
        "folder": str(tmp_path / "job"),
        "own group": True,
        "heavy": [],
    }


# ------------------------------------------------------------------------------------------------ the reader


def write(path: Path, *numbers: int, torn: str = "") -> None:
    with open(path, "a") as file:
        file.write("".join(json.dumps({"type": "n", "n": n}) + "\n" for n in numbers) + torn)


def read(reader: EventReader) -> list[int]:
    return [event["n"] for events in reader.batches() for event in events]


def test_events_are_delivered_once_across_restarts_of_the_reader(tmp_path: Path) -> None:
    path, offset = tmp_path / "events.jsonl", tmp_path / "events.offset"
    assert read(EventReader(path, offset)) == []  # there is no file yet
    write(path, 1, 2)
    reader = EventReader(path, offset)
    assert (read(reader), read(reader)) == ([1, 2], [])
    write(path, 3, torn='{"type": "n", "n"')
    assert read(EventReader(path, offset)) == [3]  # the torn line is not whole yet
    with open(path, "a") as file:
        file.write(": 4}\n")
    again = EventReader(path, offset)
    assert [event["n"] for event in again.delivered()] == [1, 2, 3]
    assert read(again) == [4] and read(EventReader(path, offset)) == []


def test_events_whose_consumer_failed_are_delivered_again(tmp_path: Path) -> None:
    path, offset = tmp_path / "events.jsonl", tmp_path / "events.offset"
    write(path, 1, 2)
    with pytest.raises(RuntimeError):
        for _ in EventReader(path, offset).batches():
            raise RuntimeError("the tracking server is gone")
    assert read(EventReader(path, offset)) == [1, 2]


def test_lines_that_are_no_events_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, 1, torn='{"type": "n", "n\n[]\n{}\n"text"\n\n\xff\n')
    write(path, 2)
    assert read(EventReader(path, tmp_path / "offset")) == [1, 2]


def test_a_corpse_counts_as_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert ended(process.pid)
    process.wait()
    assert ended(process.pid) and not ended(os.getpid())
