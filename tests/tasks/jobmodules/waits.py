"""Tells its process id and waits far longer than any test."""

import os
import time
from typing import Any


def run(job: dict[str, Any], log: Any) -> None:
    log({"type": "milestone", "message": f"pid {os.getpid()}"})
    time.sleep(120)
