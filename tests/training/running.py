"""Jobs of ``workers`` in real processes.

They are started as a job starts them where that is what is tested; else they are forked from one that has imported
everything, with the same environment, and take a moment each.
"""

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.training import workers
from tests.training.workers import Events, job, told
from training.settings import Profile, SFTSettings

ROOT = Path(__file__).resolve().parents[2]
CHILD = [sys.executable, "-m", "tasks.child"]
PRELOADED = ["tests.training.workers", "torch", "transformers.models.llama.modeling_llama", "peft", "accelerate"]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


@dataclass
class Done:
    """A finished run: its weights file, checkpoints, events."""

    output: Path
    checkpoints: Path
    events: Events

    @property
    def bytes(self) -> bytes:
        return self.output.read_bytes()

    @property
    def losses(self) -> list[float]:
        return [event["metrics"]["loss"] for event in told(self.events, "metrics")]

    @property
    def budgets(self) -> Any:
        return told(self.events, "facts")[-1]["facts"]["token_budgets"]

    def says(self, message: str) -> bool:
        return any(message in event["message"] for event in told(self.events, "milestone"))


def start(folder: Path, payload: dict[str, Any], command: list[str], **more: Any) -> "subprocess.Popen[bytes]":
    path = workers.write(payload, folder, json.loads(payload["profile"])["processes"])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    arguments = [*command, "tests.training.workers", str(path)]
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(arguments, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)


def end(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a process, whose standard input stays open as long as it is to run."""
    code = process.wait()
    assert process.stdin is not None
    process.stdin.close()
    return code


def run(
    folder: Path,
    chosen: Profile,
    given: SFTSettings | None = None,
    command: list[str] = CHILD,
    checkpoints: Path | None = None,
    **other: Any,
) -> Done:
    """A run to its end in processes of its own, maybe from a copy of another run's checkpoints."""
    payload = job(folder, "model", chosen, given, **other)
    if checkpoints is not None:
        shutil.copytree(checkpoints, payload["checkpoints"])
    assert end(start(folder, payload, command)) == 0, (folder / "log").read_text()[-3000:]
    return done(folder, payload)


def forked(payload: dict[str, Any], folder: Path) -> list[Any]:
    """All the processes of an attempt, started."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    size = json.loads(payload["profile"])["processes"]
    environments: list[dict[str, str]] = [{}]
    if size > 1:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = str(server.getsockname()[1])
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        environments = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    events = str(folder / "events.jsonl")
    found = [
        context.Process(target=workers.attempt, args=(payload, events, each), daemon=True) for each in environments
    ]
    for process in found:
        process.start()
    return found


def run_forked(
    folder: Path, chosen: Profile, given: SFTSettings | None = None, checkpoints: Path | None = None, **other: Any
) -> Done:
    """A run to its end, maybe from a copy of another run's checkpoints."""
    payload = job(folder, "model", chosen, given, **other)
    if checkpoints is not None:
        shutil.copytree(checkpoints, payload["checkpoints"])
    processes = forked(payload, folder)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * chosen.processes
    return done(folder, payload)


def done(folder: Path, payload: dict[str, Any]) -> Done:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return Done(Path(payload["output"]), Path(payload["checkpoints"]), events)


def furthest(one: Done, other: Done) -> float:
    """The largest difference of a weight."""
    mine, theirs = load_file(one.output), load_file(other.output)
    assert mine.keys() == theirs.keys()
    return max(float((mine[name].float() - theirs[name].float()).abs().max()) for name in mine)
