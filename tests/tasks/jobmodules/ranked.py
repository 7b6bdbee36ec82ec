"""Several processes: each tells by a file that it runs; ``fault`` of process ``faulty`` is what happens then."""

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

from training.strict import Refused


class Again(RuntimeError):
    """Asks for all to be started anew."""

    exit_code = 75


def run(job: dict[str, Any], log: Any) -> None:
    rank, folder = int(os.environ["RANK"]), Path(job["marks"])
    started = len(list(folder.glob(f"{rank}-*")))
    (folder / f"{rank}-{started}").write_text(str(os.getpid()))
    log({"type": "facts", "facts": {f"rank {rank}": [os.environ["WORLD_SIZE"], os.getpgid(0) != os.getpid()]}})
    fault = job.get("fault")
    if rank == job.get("faulty"):
        while not all((folder / f"{other}-{started}").exists() for other in range(int(os.environ["WORLD_SIZE"]))):
            time.sleep(0.01)
        (folder / f"dying{started}").touch()
        if fault == "refuse":
            raise Refused("line 3 is no record")
        if fault == "crash":
            raise KeyError("unknown")
        if fault == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "again" and started < 2:
            raise Again("less memory is needed")
    elif fault == "wait" or (fault and (fault != "again" or started < 2)):
        while fault != "wait" and not (folder / f"dying{started}").exists():
            time.sleep(0.01)
        time.sleep(job.get("others", 120))  # as one that waits for the faulty one
        raise RuntimeError("Connection closed by peer")
