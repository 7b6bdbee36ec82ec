"""Bad input: one clear message, the right exit code, nothing lost, nothing half-written picked up."""

import fcntl
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.flows.tiny import ROOT, Tiny, alignmill, environment, settings, wait_until


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny.write(tmp_path / "tiny")


def refused(tiny: Tiny, *words: str, code: int = 2) -> None:
    """The run ends with ``code``, says ``words`` in one message without a traceback, and has written no workspace."""
    done = alignmill(*tiny.arguments, home=tiny.home)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert json.loads(done.stdout) == {"error": done.stderr.removeprefix("alignmill: ").rstrip("\n"), "exit_code": code}
    assert not tiny.home.exists(), "nothing started, nothing written"


def with_settings(tiny: Tiny, **sections: Any) -> Tiny:
    tiny.set({**settings(), **sections})
    return tiny


def test_a_missing_experiment_file(tiny: Tiny) -> None:
    tiny.file.unlink()
    refused(tiny, "experiment.yaml cannot be read", "No such file")


def test_every_error_of_a_file_at_once(tiny: Tiny) -> None:
    changed = settings()
    changed["preference"]["loss"]["bta"] = 1
    changed["sft"]["steps"] = -1
    changed["modle"] = {}
    tiny.set(changed)
    refused(
        tiny, "3 errors", "preference.loss.bta", "did you mean 'beta'", "sft.steps: found -1", "did you mean 'model'"
    )


def test_a_missing_data_file_an_unknown_benchmark_and_a_rule_about_nothing_are_told_together(tiny: Tiny) -> None:
    changed = settings()
    changed["data"]["preferences"] = [{"path": "piars.jsonl"}]
    changed["benchmarks"]["names"] = ["tiny_choise"]
    tiny.set(changed)
    refused(tiny, "piars.jsonl does not exist", "pairs.jsonl", "tiny_choise", "tiny_choice")


def test_a_gate_rule_about_an_unknown_metric(tiny: Tiny) -> None:
    refused(
        with_settings(tiny, gate={"floors": [{"metric": "tiny_choice/ac", "minimum": 0.5}]}), "tiny_choice/ac", "acc"
    )


def test_a_base_model_folder_that_holds_no_model(tiny: Tiny) -> None:
    refused(with_settings(tiny, model={"base": "benchmarks"}), "model.base", "config.json")


def test_an_unknown_profile(tiny: Tiny) -> None:
    done = alignmill("run", str(tiny.file), "--profile", "labtop", home=tiny.home)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'laptop'" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workspace_without_permission(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    done = alignmill(*tiny.arguments, home=tmp_path / "closed" / "home")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_a_workspace_that_cannot_be_a_folder(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = alignmill(*tiny.arguments, home=tmp_path / "file" / "home")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr and "ALIGNMILL_HOME" in done.stderr


def _truncated(tiny: Tiny) -> None:
    whole = gzip.compress((tiny.folder / "pairs.jsonl").read_bytes())
    (tiny.folder / "pairs.jsonl.gz").write_bytes(whole[: len(whole) // 2])


def _columns(tiny: Tiny) -> None:
    (tiny.folder / "pairs.jsonl").write_text('{"question": "a", "best": "b"}\n' * 10)


def _same(tiny: Tiny) -> None:
    rows = ({"prompt": f"{i}?", "chosen": "yes", "rejected": "yes"} for i in range(40))
    (tiny.folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


LATE: dict[str, tuple[Callable[[Tiny], None], str, list[str]]] = {
    "truncated": (_truncated, "pairs.jsonl.gz", ["pairs.jsonl.gz"]),
    "no usable columns": (_columns, "pairs.jsonl", ["question", "best", "prompt, chosen, rejected"]),
    "nothing left after validation": (_same, "pairs.jsonl", ["identical_completions", "max_quarantined"]),
}


@pytest.mark.parametrize("fault", LATE)
def test_data_that_cannot_be_used_is_refused_by_the_run_and_by_check(fault: str, fresh: Callable[[str], Tiny]) -> None:
    tiny = fresh("late")
    make, name, words = LATE[fault]
    make(tiny)
    changed = settings()
    changed["data"]["preferences"] = [{"path": name}]
    tiny.set(changed)
    for command in (["check", str(tiny.file)], tiny.arguments):
        done = alignmill(*command, home=tiny.home)
        assert done.returncode == 2, (command, done.stderr)
        assert "Traceback" not in done.stderr
        for word in words:
            assert word in done.stderr, done.stderr
    assert not (tiny.home / "store" / "artifacts" / "model").exists()


def test_a_base_model_that_does_not_load(fresh: Callable[[str], Tiny], finished: tuple[Tiny, Any]) -> None:
    source = next((finished[0].home / "store" / "artifacts" / "model").iterdir())
    tiny = fresh("base")
    (tiny.folder / "model").mkdir()
    for path in source.iterdir():
        data = path.read_bytes()
        (tiny.folder / "model" / path.name).write_bytes(
            data[: len(data) // 2] if path.suffix == ".safetensors" else data
        )
    with_settings(tiny, model={"base": "model"})
    done = alignmill(*tiny.arguments, home=tiny.home)
    assert done.returncode == 2, done.stderr
    assert "does not load" in done.stderr and "safetensors" in done.stderr and "Traceback" not in done.stderr


def test_two_runs_of_one_experiment_at_once(fresh: Callable[[str], Tiny]) -> None:
    tiny = fresh("twice")
    command = [sys.executable, "-m", "flows.cli", *tiny.arguments]
    first = subprocess.Popen(
        command, cwd=ROOT, env=environment(tiny.home), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert wait_until(lambda: (tiny.home / "locks" / "experiment-tiny.json").exists(), 60)
    second = alignmill(*tiny.arguments, home=tiny.home)
    assert second.returncode == 1
    assert "is already being run by process" in second.stderr and "Traceback" not in second.stderr
    first.kill()
    first.communicate()
    assert wait_until(lambda: not _locked(tiny)), "the first run's end frees the experiment, however it ended"


def _locked(tiny: Tiny) -> bool:
    with open(tiny.home / "locks" / "experiment-tiny.lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize("variable", ["PREFECT_API_URL", "MLFLOW_TRACKING_URI"])
def test_a_server_that_does_not_answer_is_named(variable: str, tiny: Tiny) -> None:
    done = alignmill(*tiny.arguments, home=tiny.home, **{variable: "http://127.0.0.1:9/api"})
    assert done.returncode == 1
    assert f"no server answers at http://127.0.0.1:9/api ({variable})" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 24 MB, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_ends_with_one_message_and_the_next_run_goes_on(
    fresh: Callable[[str], Tiny], small_disk: Path
) -> None:
    tiny = fresh("full")
    subprocess.run(["cp", "-a", f"{tiny.home}/.", str(small_disk)], check=True)
    home = Tiny(tiny.folder, small_disk)
    filler = small_disk / "filler"
    free = os.statvfs(small_disk)
    filler.write_bytes(b"\0" * (free.f_bavail * free.f_frsize - 1_500_000))
    done = alignmill(*home.arguments, home=small_disk)
    assert done.returncode == 1, done.stderr
    assert "no space is left" in done.stderr and "Traceback" not in done.stderr
    filler.unlink()
    assert home.run()["champion"] == {"model": "tiny", "version": 1}
