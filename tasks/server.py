"""The embedded Prefect server: a child on 127.0.0.1 with its database in the workspace, started early and in parallel.

Prefect can start such a server by itself, but only when the flow starts, and then everybody waits for it: here it
boots while this process imports Prefect and MLflow and works out what there is to do. It ends with its parent,
however that ends.
"""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tasks.lineage.closure import ROOT
from tasks.lineage.step import locked

# A temporary server schedules nothing; these services would only cost start-up time.
_IDLE = (
    "SCHEDULER",
    "LATE_RUNS",
    "FOREMAN",
    "PAUSE_EXPIRATIONS",
    "CANCELLATION_CLEANUP",
    "REPOSSESSOR",
    "CLEANUP_RECONCILER",
    "TRIGGERS",
)


class ServerFailed(RuntimeError):
    """The embedded Prefect server did not come up; the message says where its log is."""


class EmbeddedPrefect:
    """``with EmbeddedPrefect(home):`` sets ``PREFECT_API_URL`` for this process, unless it names a server already."""

    def __init__(self, home: Path, timeout_seconds: float = 180.0) -> None:
        self.home, self.timeout = home, timeout_seconds
        self.log = home / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.migrated = home / "migrated"
        self.stack = ExitStack()
        self.url = os.environ.get("PREFECT_API_URL") or ""

    def __enter__(self) -> "EmbeddedPrefect":
        if self.url:
            return self
        if not self.migrated.exists():
            # Prefect makes its tables while it starts: one process at a time, and what a kill left is no database yet.
            self.stack.enter_context(locked(self.home.parent / "locks" / "prefect.lock"))
            if not self.migrated.exists():
                for left in self.home.glob("prefect.db*"):
                    left.replace(left.with_name(f"interrupted-{left.name}"))
        # We bind and the server inherits the socket: nobody can take the port in between.
        with socket.create_server(("127.0.0.1", 0)) as listener, open(self.log, "wb") as log:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tasks.server", str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=_environment(),
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        os.environ["PREFECT_API_URL"] = self.url
        return self

    def wait(self) -> None:
        """Return when the server answers. Raises ServerFailed where it ended, took too long, or cannot be reached."""
        if self.process is None:
            must_answer("PREFECT_API_URL", self.url)
            return
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    self.migrated.touch()
                    self.stack.close()
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise ServerFailed(
            f"the embedded Prefect server did not start within {self.timeout:g} s; its log is {self.log}. Run again, or start "
            "a server of your own and name it in PREFECT_API_URL"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()
        if self.process is None:
            return
        os.environ.pop("PREFECT_API_URL", None)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


def must_answer(variable: str, url: str) -> None:
    """Raise ServerFailed at once where nothing answers at ``url``: clients of both servers would retry for minutes."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=10):
            return
    except urllib.error.HTTPError:
        return  # it answers; whether it lets us in is for the client to say
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ServerFailed(
            f"no server answers at {url} ({variable}): {reason}; start it, correct the variable, or unset it for the "
            "embedded one"
        ) from error


def _environment() -> dict[str, str]:
    environment = os.environ | {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in _IDLE}
    environment |= {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return environment


def _serve(descriptor: int) -> None:
    from tasks.child import end_with_parent

    threading.Thread(target=end_with_parent, daemon=True).start()
    import uvicorn

    uvicorn.run("prefect.server.api.server:create_app", factory=True, fd=descriptor, log_level="error", lifespan="on")


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
