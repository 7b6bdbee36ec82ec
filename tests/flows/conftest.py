"""Workspaces for the flow tests; databases are made once and copied, because their first migration takes long."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.lineage.step import locked
from tests.flows.tiny import Tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, dict[str, Any]]:
    """The tiny experiment, run once to its end undisturbed, and its outcome. Not to be changed: copy it.

    Test workers share it: whoever comes first makes it, the others wait.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "finished"
    with locked(shared.with_suffix(".lock")):
        outcome = shared / "outcome.json"
        if not outcome.exists():
            outcome.write_text(json.dumps(Tiny.write(shared).run()))
    return Tiny(shared, shared / "home"), json.loads(outcome.read_text())


@pytest.fixture
def fresh(tmp_path: Path, finished: tuple[Tiny, dict[str, Any]]) -> Callable[[str], Tiny]:
    """A tiny experiment whose workspace has databases but neither runs nor artifacts."""

    def make(name: str = "fresh") -> Tiny:
        tiny = Tiny.write(tmp_path / name)
        _empty_databases(finished[0].home, tiny.home)
        return tiny

    return make


@pytest.fixture
def copied(tmp_path: Path, finished: tuple[Tiny, dict[str, Any]]) -> Tiny:
    """The finished experiment, copied with its workspace (MLflow's paths point to the original's artifacts)."""
    shutil.copytree(finished[0].folder, tmp_path / "copied", ignore=shutil.ignore_patterns("*.lock"))
    return Tiny(tmp_path / "copied", tmp_path / "copied" / "home")


def _empty_databases(source: Path, home: Path) -> None:
    import sqlite3

    (home / "prefect").mkdir(parents=True, exist_ok=True)
    (home / "prefect" / "migrated").touch()
    for name in ("mlflow.db", "prefect/prefect.db"):
        target = home / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, target)
        with sqlite3.connect(target) as database:
            database.execute("PRAGMA foreign_keys = OFF")
            tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            kept = {
                "alembic_version",
                "workspaces",
                "configuration",
                "block_type",
                "block_schema",
                "block_schema_reference",
            }
            for table in set(tables) - kept:
                if not table.startswith("sqlite_"):
                    database.execute(f'DELETE FROM "{table}"')
        database.close()
