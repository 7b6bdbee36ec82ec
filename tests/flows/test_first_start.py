"""kill -9 while a new workspace makes its databases: the next run starts as if nothing had been."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.tiny import ROOT, Tiny, environment, wait_until


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 8))])
def test_a_workspace_killed_while_it_is_made_works_the_next_time(seed: int, tmp_path: Path) -> None:
    tiny, rng = Tiny.write(tmp_path), random.Random(seed)
    for trial in range(2):
        command = [sys.executable, "-m", "flows.cli", *tiny.arguments]
        run = subprocess.Popen(
            command, cwd=ROOT, env=environment(tiny.home), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        begun = tiny.home / "prefect" / "prefect.db" if trial else tiny.home / ".partial-mlflow.db"
        assert wait_until(begun.exists, 60)
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(rng.uniform(0, 3))
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    assert tiny.run()["champion"] == {"model": "tiny", "version": 1}
