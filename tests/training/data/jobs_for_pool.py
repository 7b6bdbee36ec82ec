"""What the workers of the pool tests do: functions stand in a module that a fresh process can import."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from training.strict import Refused


class Unpackable(Exception):
    """Can be packed and not unpacked: its constructor wants two arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def double(item: int) -> int:
    return 2 * item


def slow_first(item: int) -> tuple[int, int]:
    time.sleep(0.4 if item == 0 else 0.0)
    return item, os.getpid()


def refuse_seven(item: int) -> int:
    if item == 7:
        raise Refused("seven is refused")
    return item


def fail_oddly(item: int) -> int:
    raise Unpackable("one", "two")


def kill_itself(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def note_and_sleep(item: tuple[str, float]) -> int:
    """Leave a file that names this process, then sleep."""
    Path(item[0], str(os.getpid())).touch()
    time.sleep(item[1])
    return os.getpid()


def surroundings(item: int) -> dict[str, Any]:
    return {
        "modules": sorted(sys.modules),
        "main": getattr(sys.modules["__main__"], "__file__", None),
        "threads": os.environ["OMP_NUM_THREADS"],
        "arrow": _arrow_threads(),
        "pid": os.getpid(),
    }


def length(item: bytes) -> int:
    return len(item)


def _arrow_threads() -> int:
    import pyarrow as pa

    return int(pa.cpu_count())
