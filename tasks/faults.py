"""Faults as one clear message and an exit code: 1 a fault, 2 refused, 3 evidence does not verify."""

import errno
import os
import traceback
from pathlib import Path

from tasks.workspace import Workspace

# Raised by us, with a message that a person can act on.
_OURS = ("tasks.", "flows.", "training.", "evaluation.")


def explain(error: BaseException) -> tuple[str, int]:
    """(message, exit code) of any fault; a stranger's traceback goes to ``reports/fault.log`` where that can be written."""
    if disk_full(error):
        home = Workspace.at().home
        return (
            f"no space is left on the disk of {home}; what was finished is kept and nothing half-written is used: free "
            "some space and run again, it goes on from there",
            1,
        )
    if type(error).__module__.startswith(_OURS):
        return str(error), int(getattr(error, "exit_code", 1))
    kept = _keep_traceback(error)
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}{kept}", 1


def disk_full(error: BaseException | None) -> bool:
    """Whether a full disk stands behind a fault, however a library has wrapped it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return True
        text = str(error).lower()
        if "no space left on device" in text or "database or disk is full" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


def _keep_traceback(error: BaseException) -> str:
    path = Path(Workspace.at().reports, "fault.log")
    try:
        if not path.parent.is_dir():
            return ""
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"--- process {os.getpid()}\n{''.join(traceback.format_exception(error))}\n")
    except OSError:
        return ""
    return f" (traceback: {path})"
