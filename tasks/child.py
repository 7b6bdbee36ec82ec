"""The child's side of a job: ``python -m tasks.child training.sft job.json``. Standard library only.

The named module's ``run(job, log)`` does the work; ``log`` appends one JSON object per line to ``events.jsonl``. The
child ends by itself when its parent is gone (standard input closes), so that a killed run leaves no orphan writing.
Exit codes: 0 done, 2 refused, 28 (ENOSPC) disk full, 75 start again, 1 any other fault; the last event says why.

A job that says ``processes: 2`` or more and was not started by one who has given out ranks (``RANK`` in the environment,
as ``accelerate launch`` does) starts them itself. Only rank 0 logs; each tells of its own fault.
"""

import errno
import importlib
import json
import os
import stat
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from tasks import ranks


def main(module: str, path: str) -> int:
    job = json.loads(Path(path).read_bytes())
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=end_with_parent, daemon=True).start()
    if job.get("processes", 1) > 1 and "RANK" not in os.environ:
        return ranks.launch(module, path, job["processes"])
    main_process = os.environ.get("RANK", "0") == "0"
    events = os.open(job["events"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    if main_process:
        _end_torn_line(Path(job["events"]), events)

    def log(event: dict[str, Any]) -> None:
        if not main_process and event["type"] != "error":
            return
        # One write per line: after a kill the file ends with a whole line or with one torn line, which readers skip.
        os.write(events, json.dumps({**event, "time": time.time()}).encode() + b"\n")

    try:
        importlib.import_module(module).run(job, log)
        return 0
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return errno.ENOSPC
        return _failed(error, log)
    except Exception as error:
        return _failed(error, log)


def _failed(error: Exception, log: Any) -> int:
    code: int = getattr(error, "exit_code", 1)
    if "No space left on device" in str(error):  # libraries wrap it in types of their own
        return errno.ENOSPC
    if code not in (2, ranks.AGAIN):
        traceback.print_exc()
    message = str(error) if code in (2, ranks.AGAIN) else f"{type(error).__name__}: {error}"
    log({"type": "error", "message": message, "code": code})
    return code


def _end_torn_line(path: Path, descriptor: int) -> None:
    """A former attempt may have been killed in the middle of a line: close it, so that ours begins on its own."""
    size = path.stat().st_size
    if size:
        with open(path, "rb") as file:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                os.write(descriptor, b"\n")


def end_with_parent() -> None:
    """Wait until the parent, which holds the other end of standard input, is gone; then end at once."""
    # Any end of the parent closes the pipe, SIGKILL included. Nothing is cleaned up: the last checkpoint stands.
    # (os.read and not sys.stdin: a buffered reader's lock would be held at the interpreter's normal end.)
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
