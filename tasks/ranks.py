"""The processes of a job that has several: started, watched and ended together. Standard library only.

Each is a ``tasks.child`` with a rank in its environment, in the job's process group; each ends by itself when this
process is gone (its standard input closes). They meet over a socket that listens on the loopback device. When one ends
with a fault the others, which wait for it, are ended too. An exit code of 75 says that memory ran out and a smaller token
budget is written down: then all start again.

(``accelerate launch`` would start workers outside of the process group and of the step's lock, hides their exit codes
behind its own, and listens on all devices. With ``--cpu`` it starts one process only, whatever ``--num_processes``.)
"""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

AGAIN = 75
POLL_SECONDS = 0.05
GRACE_SECONDS = 1.0
TELLING = (errno.ENOSPC, 2, AGAIN)  # exit codes that say more than 1
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
             "ALIGNMILL_STORE_PORT", "ALIGNMILL_STORE_SOCKET")  # fmt: skip


def launch(module: str, path: str, processes: int) -> int:
    """Run ``processes`` children to their end; the exit code is that of the one that failed first, or 0."""
    while True:
        code = _attempt(module, path, processes)
        if code != AGAIN:
            return code


def _attempt(module: str, path: str, processes: int) -> int:
    started = _start(module, path, processes)
    try:
        while True:
            codes = [process.poll() for process in started]
            if any(codes):
                return _verdict(started, path)
            if all(code == 0 for code in codes):
                return 0
            time.sleep(POLL_SECONDS)
    finally:
        for process in started:
            process.kill()
            process.wait()


def _start(module: str, path: str, processes: int) -> "list[subprocess.Popen[bytes]]":
    started: list[subprocess.Popen[bytes]] = []
    with socket.create_server(("127.0.0.1", 0), backlog=processes) as server:
        port = str(server.getsockname()[1])
        loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
        network = {f"{library}_SOCKET_IFNAME": loopback for library in ("GLOO", "NCCL") if loopback}
        for rank in range(processes):
            environment = {
                **os.environ,
                **network,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "ALIGNMILL_STORE_PORT": port,
            }
            if rank == 0:
                environment["ALIGNMILL_STORE_SOCKET"] = str(server.fileno())
            os.set_inheritable(server.fileno(), rank == 0)
            command = [sys.executable, "-m", "tasks.child", module, path]
            # Not closed in the children: the step's lock, which is inheritable, as long as one of them lives.
            started.append(subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, close_fds=False))
    return started


def _verdict(started: "list[subprocess.Popen[bytes]]", path: str) -> int:
    """The exit code of a job of which a process has failed: what it failed of, not what that did to the others."""
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        codes = [process.poll() for process in started]
        telling = next((code for code in TELLING if code in codes), None)
        killed = next((rank for rank, code in enumerate(codes) if code is not None and code < 0), None)
        # An exit code of 1 may be that of one who has only lost the others: their own is seen in a moment.
        if telling or killed is not None or None not in codes or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    if killed is None:
        return telling or 1
    number = -(codes[killed] or 0)
    _tell(path, f"process {killed + 1} of {len(started)} was killed by {signal.Signals(number).name}", 128 + number)
    return 128 + number


def _tell(path: str, message: str, code: int) -> None:
    events = json.loads(Path(path).read_bytes())["events"]
    with open(events, "ab", buffering=0) as file:
        line = {"type": "error", "message": message, "code": code, "time": time.time()}
        file.write(json.dumps(line).encode() + b"\n")
