"""Kills at any instant, and several processes at once: the next snapshot is the same, and nothing is left behind."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tasks.lineage import merkle
from training.data.settings import Source
from training.data.snapshot import read_leaves, write_snapshot

ROOT = Path(__file__).resolve().parents[3]
KILLS = 6
FILES, ROWS = 4, 600  # 12 segments of 50 rows a file


def lines(first: int, count: int) -> str:
    return "".join(
        json.dumps({"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": "no"}) + "\n" if i % 11 else "{broken\n"
        for i in range(first, first + count)
    )


def start(root: Path, out: Path, processes: int = 2) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.data.snapshot_program", str(root), str(out), str(processes)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: "subprocess.Popen[str]") -> dict[str, Any]:
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    return dict(json.loads(out))


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started and that are alive."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += list(map(int, (task / "children").read_text().split()))
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.002)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "data").mkdir()
    for number in range(FILES):
        (tmp_path / "data" / f"{number}.jsonl").write_text(lines(number * ROWS, ROWS))
    yield tmp_path


def expected(root: Path) -> str:
    """The root of a snapshot that one process wrote without a cache."""
    out = root / f"expected-{time.monotonic_ns()}"
    return str(merkle.root(write_snapshot([Source(path="data")], root, out).leaves()))


def kill_at(child: "subprocess.Popen[str]", out: Path, files: int) -> list[int]:
    """Kill -9 as soon as ``out`` holds that many files, or nothing more comes; the workers that there were."""
    while child.poll() is None and (len(list(out.iterdir())) if out.exists() else -1) < files:
        time.sleep(0.001)
    workers = children(child.pid) if child.poll() is None else []
    child.kill()
    child.communicate()
    return workers


def test_a_snapshot_killed_at_any_instant_is_the_same_the_next_time(data: Path) -> None:
    root = expected(data)
    told = finish(start(data, data / "whole" / "out"))
    assert told == {"root": root, "rows": FILES * ROWS, "cached": 0}
    instants = random.Random(4)
    with_workers = finished = 0
    for number in range(KILLS):
        if number % 2 == 0:  # everything is read; else everything is linked
            (data / "cache").rename(data / f"cache-{number}")
        place = data / f"kill-{number}"
        child = start(data, place / "out")
        workers = kill_at(child, place / "out", int(FILES * 12 * 2 * (number + instants.random()) / KILLS))
        finished += child.returncode == 0
        with_workers += bool(workers)
        end = time.monotonic() + 10
        while not all(gone(pid) for pid in workers):
            assert time.monotonic() < end, "a worker outlives its parent"
            time.sleep(0.01)
        told = finish(start(data, place / "again"))
        assert (told["root"], told["rows"]) == (root, FILES * ROWS)
        assert str(merkle.root(read_leaves(place / "again"))) == root
    assert with_workers >= 2 and finished < KILLS, "the kills came too late, or before there was any work"
    told = finish(start(data, data / "last" / "out"))
    assert told == {"root": root, "rows": FILES * ROWS, "cached": FILES * ROWS}
    kept = [path.name for path in (data / "cache").rglob("*") if path.is_file()]
    assert not [name for name in kept if name.endswith(".partial")]
    assert sum(name.endswith(".parquet") for name in kept) == FILES * 12


def test_a_killed_continuation_of_a_grown_file_is_the_same_the_next_time(data: Path) -> None:
    finish(start(data, data / "first" / "out"))
    for number in range(3):
        with (data / "data" / "2.jsonl").open("a") as file:
            file.write(lines(10_000 + 1000 * number, 130))
        child = start(data, data / f"kill-{number}" / "out")
        kill_at(child, data / f"kill-{number}" / "out", (0, FILES * 12 * 2, FILES * 12 * 2 + 3)[number])
        told = finish(start(data, data / f"again-{number}" / "out"))
        assert told["root"] == expected(data) and told["cached"] >= FILES * ROWS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_end_leaves_no_process_and_no_segment(data: Path, number: int) -> None:
    child = start(data, data / "run" / "out")
    wait_for(data / "run" / "out")
    end = time.monotonic() + 60
    while len(children(child.pid)) < 2:
        assert time.monotonic() < end
        time.sleep(0.002)
    workers = children(child.pid)
    child.send_signal(number)
    child.communicate(timeout=60)
    assert child.returncode != 0
    end = time.monotonic() + 10
    while not all(gone(pid) for pid in workers):
        assert time.monotonic() < end, "a worker outlives its parent"
        time.sleep(0.01)
    if number == signal.SIGINT:
        assert not list((data / "run" / "out").iterdir())


def test_two_processes_at_once_share_a_cache(data: Path) -> None:
    root = expected(data)
    for number in range(2):
        both = [start(data, data / f"{number}-{name}" / "out") for name in "ab"]
        told = [finish(child) for child in both]
        assert [one["root"] for one in told] == [root, root]
    assert [one["cached"] for one in told] == [FILES * ROWS] * 2


def test_a_cache_that_is_deleted_again_and_again_changes_nothing(data: Path) -> None:
    root = expected(data)
    finish(start(data, data / "first" / "out"))
    child = start(data, data / "run" / "out")
    while child.poll() is None:
        with suppress(OSError):  # the other process moves things at the same time
            for path in sorted((data / "cache").rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
    assert finish(child)["root"] == root
