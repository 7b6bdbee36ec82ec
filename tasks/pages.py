"""Prefect's and MLflow's pages over the workspace: both servers on 127.0.0.1, started together, stopped together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from tasks.lineage.closure import ROOT
from tasks.workspace import Workspace
from training.strict import Refused

START_SECONDS = 180.0


class PageServerFailed(RuntimeError):
    """A page server ended or did not answer; the message says where its log is."""


def serve_pages(prefect_port: int, mlflow_port: int, as_json: bool) -> None:
    """Start both servers, print their addresses when both answer, and stay until interrupted.

    Raises Refused where a port is taken or the workspace cannot be written, PageServerFailed where a server ends.
    """
    workspace = Workspace.at()
    commands = _commands(workspace, prefect_port, mlflow_port)
    for name, port in (("prefect", prefect_port), ("mlflow", mlflow_port)):
        if name in commands and not _free(port):
            raise Refused(f"port {port} on 127.0.0.1 is taken; give another one with --{name}-port")
    workspace.prepare()
    addresses = {"prefect": f"http://127.0.0.1:{prefect_port}", "mlflow": f"http://127.0.0.1:{mlflow_port}"}
    if "mlflow" not in commands:
        addresses["mlflow"] = workspace.tracking_uri
    with ExitStack() as stack:
        # A termination request ends the pages as cleanly as the keyboard does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        servers = {name: _Server(name, command, workspace, addresses["prefect"]) for name, command in commands.items()}
        for server in servers.values():
            stack.callback(server.stop)
        servers["prefect"].wait(f"{addresses['prefect']}/api/health")
        if "mlflow" in servers:
            servers["mlflow"].wait(f"{addresses['mlflow']}/health")
        text = (
            f"Prefect: {addresses['prefect']}\nMLflow:  {addresses['mlflow']}\nstop both with Ctrl-C\n"
            f"runs find this server with: export PREFECT_API_URL={addresses['prefect']}/api"
        )
        # Told now and not when the command ends, so straight to the standard output that the command line keeps.
        print(json.dumps(addresses) if as_json else text, file=sys.__stdout__, flush=True)
        try:
            while all(server.alive for server in servers.values()):
                time.sleep(0.5)
        except KeyboardInterrupt:
            return
        ended = next(server for server in servers.values() if not server.alive)
        raise PageServerFailed(f"the {ended.name} server ended by itself; its log is {ended.log}")


def _commands(workspace: Workspace, prefect_port: int, mlflow_port: int) -> dict[str, list[str]]:
    """What to start: Prefect's server, and MLflow's unless the runs are on a server already."""
    commands = {"prefect": ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect_port)]}
    if not workspace.tracking_uri.startswith("http"):
        commands["mlflow"] = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(mlflow_port), "--workers", "1"]
        commands["mlflow"] += ["--backend-store-uri", workspace.tracking_uri]
        commands["mlflow"] += ["--artifacts-destination", str(workspace.home / "mlartifacts")]
    return commands


class _Server:
    """One server in a process group of its own, its log in the workspace."""

    def __init__(self, name: str, command: list[str], workspace: Workspace, prefect: str) -> None:
        self.name = name
        self.log = Path(workspace.home, f"{name}-server.log")
        environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
        environment["PREFECT_SERVER_UI_API_URL"] = f"{prefect}/api"  # else the page asks Prefect's default port
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tasks.tether", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def wait(self, address: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.alive and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(address, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise PageServerFailed(f"the {self.name} server did not start; its log is {self.log}")

    def stop(self) -> None:
        if self.alive:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


def _free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
