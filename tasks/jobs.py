"""A job: a child process with ``job.json`` in, ``events.jsonl`` out, its log in a file, in its own process group.

A job of several ``processes`` is one child that starts the others (``tasks/ranks.py``).
"""

import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import ranks
from tasks.lineage.closure import ROOT
from tasks.lineage.store import write_atomic
from training.strict import Refused

POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0
Sink = Callable[[list[dict[str, Any]]], None]


class JobFailed(RuntimeError):
    """A child ended without its result; the message says how it ended and where its log is."""


@dataclass(frozen=True)
class Job:
    """``module`` has a ``run(job, log)``; ``payload`` is its ``job`` (JSON); ``folder`` survives a kill.

    ``lock`` is inherited by the child: as long as an orphan of a killed run lives, its step stays locked.
    """

    module: str
    payload: dict[str, Any]
    folder: Path
    minutes: float
    lock: int
    threads: int
    online: bool = False
    processes: int = 1

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.folder / "job.log"


def run_job(job: Job, sink: Sink) -> dict[str, Any]:
    """Run the child to its end, hand every event to ``sink`` in order, and return the facts that it logged.

    Raises Refused (the child found its input unacceptable), OSError (disk full), or JobFailed (anything else, with the log's
    place). An interrupt of this process ends the child's whole group.
    """
    payload = {**job.payload, "events": str(job.events), "processes": job.processes}
    write_atomic(job.folder / "job.json", json.dumps(payload).encode())
    reader = EventReader(job.events, job.folder / "events.offset")
    facts: dict[str, Any] = {}
    errors: list[dict[str, Any]] = []
    began = time.time()

    def deliver() -> None:
        for events in reader.batches():
            for event in events:
                if event["type"] == "facts":
                    facts.update(event["facts"])
                elif event["type"] == "error" and event["time"] >= began:  # and not of an attempt before
                    errors.append(event)
            sink(events)

    for event in reader.delivered():  # what an attempt that was killed had already told
        if event["type"] == "facts":
            facts.update(event["facts"])
    process, alive = _start(job)
    deadline = time.monotonic() + 60 * job.minutes
    try:
        while process.poll() is None:
            deliver()
            if time.monotonic() > deadline:
                raise JobFailed(
                    f"{job.module} was stopped after its limit of {job.minutes:g} minutes; its checkpoint stays: raise the "
                    "limit in the profile ('minutes') and run again"
                )
            time.sleep(POLL_SECONDS)
    finally:
        _stop(process, alive)
    deliver()
    if process.returncode == 0:
        return facts
    if process.returncode == errno.ENOSPC:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(job.folder))
    # Of several processes the first one tells the cause, the others only that it is gone.
    errors.sort(key=lambda event: event.get("code") != process.returncode)
    first = errors[0]["message"] if errors else None
    if process.returncode == 2 and first:
        raise Refused(first)
    raise JobFailed(_epitaph(job, process.returncode, first))


def _start(job: Job) -> "tuple[subprocess.Popen[bytes], int]":
    """The child, and a pipe that ends when it and all the processes that it started are gone."""
    inherited = {name: value for name, value in os.environ.items() if name not in ranks.VARIABLES}
    environment = inherited | {
        "OMP_NUM_THREADS": str(job.threads),
        "MKL_NUM_THREADS": str(job.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": "0",
        # Threads that spin while they wait make a shared machine many times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    if not job.online:
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    alive, held = os.pipe()
    with open(job.log, "ab") as log, os.fdopen(held, "wb"):
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.child", job.module, str(job.folder / "job.json")],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=job.folder,
            env=environment,
            start_new_session=True,
            pass_fds=[job.lock, held],
        )
    return process, alive


def _stop(process: "subprocess.Popen[bytes]", alive: int) -> None:
    """End the child's process group: politely, then not."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.stdin is not None
    process.stdin.close()
    # A child that was killed may leave processes of its own, which end as they notice: nobody writes after this.
    if not select.select([alive], [], [], GRACE_SECONDS)[0]:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    os.close(alive)


def _epitaph(job: Job, code: int, error: str | None) -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    why = error or "\n".join(job.log.read_text(errors="replace").splitlines()[-5:])
    return (
        f"{job.module} {how}: {why or 'no message'} (log: {job.log}); run again and it goes on from its last checkpoint"
    )


class EventReader:
    """Events of a job in order, each delivered once, across kills of the reader: the offset is kept in a file."""

    def __init__(self, path: Path, offset: Path) -> None:
        self.path, self.offset = path, offset
        self.at = int(offset.read_text()) if offset.is_file() else 0

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        """Whole lines since the last call. The offset moves on only after the consumer has come back for more."""
        if not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            file.seek(self.at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if whole:
            yield _parse(whole)
            self.at += len(whole)
            write_atomic(self.offset, str(self.at).encode())

    def delivered(self) -> list[dict[str, Any]]:
        """All events that earlier readers have already handed on."""
        if not self.path.is_file():
            return []
        with open(self.path, "rb") as file:
            return _parse(file.read(self.at))


def _parse(data: bytes) -> list[dict[str, Any]]:
    events = []
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the torn last line of an attempt that was killed
        if isinstance(event, dict) and "type" in event:
            events.append(event)
    return events
