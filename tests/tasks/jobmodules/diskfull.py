"""Finds the disk full: as the system says it, as a library wraps it, or in the middle of printing about it."""

import errno
import sys
from typing import Any


class Wrapped(Exception):
    """Some library's own type."""


class Full:
    """A standard error that nothing can be written to."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        """Nothing is buffered."""


def run(job: dict[str, Any], log: Any) -> None:
    if job["how"] == "system":
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")
    if job["how"] == "unprintable":
        sys.stderr = Full()
    raise Wrapped("Error while serializing: I/O error: No space left on device (os error 28)")
