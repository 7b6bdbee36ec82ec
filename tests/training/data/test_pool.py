"""Order, bounds, faults and ends of the worker processes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.data import jobs_for_pool as jobs
from training.data.pool import WorkerLost, ordered_map
from training.strict import Refused

ROOT = Path(__file__).resolve().parents[3]


def alive(pid: int) -> bool:
    """Whether the process still computes (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(what: object, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_order_whatever_the_number_of_processes(processes: int) -> None:
    assert list(ordered_map(jobs.double, range(25), processes)) == [2 * i for i in range(25)]
    assert list(ordered_map(jobs.double, [], processes)) == []
    assert list(ordered_map(jobs.double, [4], processes)) == [8]


def test_a_slow_first_item_holds_the_others_back_in_order() -> None:
    found = list(ordered_map(jobs.slow_first, range(6), 2))
    assert [item for item, _ in found] == list(range(6))
    pids = {pid for _, pid in found}
    assert os.getpid() not in pids and len(pids) == 2


def test_one_item_and_one_process_stay_here() -> None:
    assert next(ordered_map(jobs.slow_first, [1], 4))[1] == os.getpid()
    assert {pid for _, pid in ordered_map(jobs.slow_first, range(1, 3), 1)} == {os.getpid()}


@pytest.mark.parametrize("processes", [1, 2])
def test_little_is_in_flight(processes: int) -> None:
    taken = given = most = 0

    def items() -> Iterator[int]:
        nonlocal taken, most
        for i in range(40):
            taken += 1
            most = max(most, taken - given)
            yield i

    for _ in ordered_map(jobs.double, items(), processes):
        given += 1
    assert given == 40 and most <= processes + 1


@pytest.mark.parametrize("processes", [1, 3])
def test_an_exception_comes_after_the_results_before_it_and_ends_the_workers(processes: int) -> None:
    found = []
    with pytest.raises(Refused, match="seven is refused") as caught:
        for item in ordered_map(jobs.refuse_seven, range(20), processes):
            found.append(item)
    assert found == list(range(7)) and caught.value.exit_code == 2


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("good", [0, 1, 5])
def test_an_exception_of_the_items_comes_when_its_turn_comes(processes: int, good: int) -> None:
    def items() -> Iterator[int]:
        yield from range(good)
        raise Refused("the file is cut off")

    found = []
    with pytest.raises(Refused, match="cut off"):
        for item in ordered_map(jobs.double, items(), processes):
            found.append(item)
    assert found == [2 * i for i in range(good)]


def test_an_exception_that_cannot_travel_is_told_in_words() -> None:
    with pytest.raises(RuntimeError, match="Unpackable: one and two"):
        list(ordered_map(jobs.fail_oddly, range(2), 2))


def test_what_cannot_be_packed_is_an_error_and_no_hang() -> None:
    with pytest.raises(Exception, match=r"pickle|local object"):
        list(ordered_map(lambda item: item, range(3), 2))


def test_a_killed_worker_gives_one_clear_error() -> None:
    with pytest.raises(WorkerLost, match=r"signal 9 \(SIGKILL\).*out of memory.*lower 'threads'"):
        list(ordered_map(jobs.kill_itself, range(10), 2))


def test_a_worker_killed_between_two_items_gives_the_same_error(tmp_path: Path) -> None:
    results = ordered_map(jobs.note_and_sleep, [(str(tmp_path), 0.0)] * 50, 2)
    with contextlib.closing(results):
        os.kill(next(results), signal.SIGKILL)
        with pytest.raises(WorkerLost, match="signal 9"):
            list(results)


def test_closing_ends_workers_in_the_middle_of_their_work(tmp_path: Path) -> None:
    results = ordered_map(jobs.note_and_sleep, [(str(tmp_path), 0.0)] + [(str(tmp_path), 600.0)] * 5, 2)
    with contextlib.closing(results):
        next(results)
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
    assert not any(alive(int(path.name)) for path in tmp_path.iterdir())


def test_large_items_pass_both_ways_of_the_pipe() -> None:
    assert list(ordered_map(jobs.length, [bytes(8_000_000)] * 4, 2)) == [8_000_000] * 4


def test_a_worker_is_a_fresh_process_with_one_thread() -> None:
    first, *_ = ordered_map(jobs.surroundings, range(2), 2)
    assert first["main"] is None and first["threads"] == "1" and first["arrow"] == 1
    assert not {"torch", "pytest", "prefect", "pydantic_settings"} & set(first["modules"])


SCRIPT = """
import os, sys, time
open(sys.argv[1] + "/main-ran", "a").write("x")
from tests.training.data import jobs_for_pool as jobs
from training.data.pool import ordered_map
print(list(ordered_map(jobs.double, range(5), 2)))
for _ in ordered_map(jobs.note_and_sleep, [(sys.argv[1] + "/pids", 600.0)] * 4, 2):
    pass
"""


def script(tmp_path: Path, *command: str, text: str | None = None) -> "subprocess.Popen[str]":
    (tmp_path / "pids").mkdir()
    child = subprocess.Popen(
        [sys.executable, *command, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert child.stdin is not None
    if text is not None:
        child.stdin.write(text)
    child.stdin.close()
    wait_for(lambda: len(list((tmp_path / "pids").iterdir())) == 2)
    return child


@pytest.mark.parametrize("way", ["file", "stdin"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_program_without_a_guard_runs_once_and_leaves_no_process(tmp_path: Path, way: str, number: int) -> None:
    (tmp_path / "main.py").write_text(SCRIPT)
    child = script(tmp_path, str(tmp_path / "main.py")) if way == "file" else script(tmp_path, "-", text=SCRIPT)
    pids = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    assert all(alive(pid) for pid in pids)
    os.killpg(child.pid, number)  # as Ctrl-C in a terminal: to the whole group
    assert child.wait(20) != 0
    wait_for(lambda: not any(alive(pid) for pid in pids))
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.read() == "[0, 2, 4, 6, 8]\n" and (tmp_path / "main-ran").read_text() == "x"
    assert child.stderr.read().count("Traceback") == (number == signal.SIGINT)
    child.stdout.close()
    child.stderr.close()
