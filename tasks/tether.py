"""Run a module in a process group that ends with its parent: ``python -m tasks.tether MODULE ARGUMENTS…``.

Servers start workers of their own; when the process that holds our standard input is gone, however it went, the
whole group is ended.
"""

import os
import runpy
import signal
import sys
import threading


def _end_group_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    if os.getpgrp() != os.getpid():
        os.setpgrp()
    threading.Thread(target=_end_group_with_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
