"""Is killed in the middle of a line the first time; tells what it has to tell the second time."""

import os
import signal
from pathlib import Path
from typing import Any


def run(job: dict[str, Any], log: Any) -> None:
    mark = Path(job["mark"])
    log({"type": "metrics", "step": 1, "metrics": {}})
    if not mark.exists():
        mark.touch()
        log({"type": "facts", "facts": {"told before the kill": 1}})
        with open(job["events"], "ab") as file:
            file.write(b'{"type": "metrics", "st')
        os.kill(os.getpid(), signal.SIGKILL)
    log({"type": "metrics", "step": 2, "metrics": {}})
