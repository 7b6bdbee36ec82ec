"""Servers in place of the embedded default, and the pages that ``alignmill ui`` opens."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.flows.tiny import ROOT, Tiny, environment, ran, settings, wait_until


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def children(pid: int) -> list[int]:
    """Process ids of all descendants."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found += [int(stat.parent.name), *children(int(stat.parent.name))]
    return found


def test_runs_go_to_the_servers_that_are_named_and_the_pages_end_cleanly(fresh: Callable[[str], Tiny]) -> None:
    pages, tiny = fresh("pages"), fresh("served")
    (tiny.home / "mlflow.db").unlink()
    without_sft = {key: value for key, value in settings().items() if key != "sft"}
    tiny.set(without_sft)
    prefect, mlflow = free_port(), free_port()
    command = [sys.executable, "-m", "flows.cli", "ui", "--json"]
    command += ["--prefect-port", str(prefect), "--mlflow-port", str(mlflow)]
    server = subprocess.Popen(command, cwd=ROOT, env=environment(pages.home), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        addresses = json.loads(server.stdout.readline())
        assert addresses == {"prefect": f"http://127.0.0.1:{prefect}", "mlflow": f"http://127.0.0.1:{mlflow}"}
        with urllib.request.urlopen(f"{addresses['prefect']}/ui-settings") as page:
            assert json.loads(page.read())["api_url"] == f"{addresses['prefect']}/api"
        named = {"PREFECT_API_URL": f"{addresses['prefect']}/api", "MLFLOW_TRACKING_URI": addresses["mlflow"]}
        first = tiny.run(**named)
        assert first["champion"] == {"model": "tiny", "version": 1}
        assert first["weights"]["base"] == first["weights"]["warm_start"] != first["weights"]["policy"]
        assert ran(tiny.run(**named)) == []
        assert not (tiny.home / "mlflow.db").exists()
    finally:
        family = children(server.pid)
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        server.stdout.close()
    assert len(family) >= 2
    assert wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in family))
    with sqlite3.connect(pages.home / "mlflow.db") as database:
        assert database.execute("SELECT count(*) FROM model_versions").fetchone() == (1,)
    with sqlite3.connect(pages.home / "prefect" / "prefect.db") as database:
        states = database.execute("SELECT state_name FROM task_run ORDER BY start_time").fetchall()
    assert [name for (name,) in states][-9:] == ["Cached"] * 9


def test_pages_that_are_killed_leave_no_server_behind(fresh: Callable[[str], Tiny]) -> None:
    pages = fresh("killed")
    command = [sys.executable, "-m", "flows.cli", "ui", "--json"]
    command += ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    server = subprocess.Popen(command, cwd=ROOT, env=environment(pages.home), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert json.loads(server.stdout.readline())
    family = children(server.pid)
    server.kill()
    server.wait()
    server.stdout.close()
    assert len(family) >= 2
    assert wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in family))
