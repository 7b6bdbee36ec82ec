"""A step's key holds what can change its outcome and nothing else; what was done is verified, and skipped or redone."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.lineage.closure import ROOT
from tasks.lineage.step import Made, Step, Work, find, locked, manifest_path, perform
from tasks.lineage.store import Store
from training.digest import Digest, digest_bytes

STEP = Step(
    name="train",
    settings={"learning_rate": 1e-4, "limit": 1e18, "layers": [1, 2], "note": "é"},
    inputs={"data": digest_bytes(b"data"), "model": digest_bytes(b"model")},
    code=digest_bytes(b"code"),
    environment={"torch": "2.13", "threads": 1},
)


class Function:
    """A step's work that counts its calls."""

    def __init__(self, text: str = "result") -> None:
        self.calls = 0
        self.text = text

    def __call__(self, work: Work) -> Made:
        self.calls += 1
        out = work.folder / "out"
        out.mkdir()
        (out / "file").write_text(self.text)
        return Made({"model": ("model", out)}, {"rows": 3, "loss": 1e17}, {"note": "beside"})


class Warnings(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def warn() -> Warnings:
    return Warnings()


# ------------------------------------------------------------------------------------------------ the key


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"settings": {**STEP.settings, "learning_rate": 1.0000000000000002e-4}},
        {"settings": {**STEP.settings, "more": None}},
        {"settings": {**STEP.settings, "layers": [2, 1]}},
        {"inputs": {**STEP.inputs, "data": digest_bytes(b"datb")}},
        {"inputs": {"data": STEP.inputs["model"], "model": STEP.inputs["data"]}},
        {"inputs": {"data": STEP.inputs["data"]}},
        {"code": digest_bytes(b"codf")},
        {"environment": {**STEP.environment, "torch": "2.14"}},
        {"environment": {**STEP.environment, "threads": 2}},
    ],
    ids=str,
)
def test_the_key_changes_with_every_part(change: dict[str, Any]) -> None:
    assert dataclasses.replace(STEP, **change).key != STEP.key


def test_the_key_changes_with_nothing_else() -> None:
    same = Step(
        "train",
        dict(reversed(STEP.settings.items())) | {"layers": (1, 2), "limit": 10**18},
        dict(reversed(list(STEP.inputs.items()))),
        Digest.parse(str(STEP.code)),
        {"threads": 1.0, "torch": "2.13"},
    )
    assert same.key == STEP.key


# ------------------------------------------------------------------------------------------------ hits


def test_a_step_that_is_done_is_not_run_again(store: Store, warn: Warnings) -> None:
    function = Function()
    first = perform(store, STEP, function, warn)
    second = perform(store, STEP, function, warn)
    assert (function.calls, warn) == (1, [])
    assert not first.cached and second.cached
    assert (second["model"], second.key, dict(second.facts)) == (first["model"], STEP.key, {"rows": 3, "loss": 1e17})
    assert second.extra == {"note": "beside"} and second.seconds == first.seconds
    assert (first["model"].path / "file").read_text() == "result"
    assert not list((store.root / "work").glob("*/"))  # the work folder is gone


def test_what_stands_beside_the_record_is_outside_of_its_digest(store: Store, warn: Warnings) -> None:
    perform(store, STEP, Function(), warn)
    manifest = json.loads(manifest_path(store, STEP).read_bytes())
    assert set(manifest) == {"record", "digest", "timing"} and set(manifest["timing"]) == {
        "started",
        "seconds",
        "extra",
    }
    assert "started" not in manifest["record"] and "note" not in json.dumps(manifest["record"]["facts"])


def test_another_step_is_no_hit(store: Store, warn: Warnings) -> None:
    perform(store, STEP, Function(), warn)
    assert find(store, dataclasses.replace(STEP, name="other"), warn) is None
    assert find(store, dataclasses.replace(STEP, code=digest_bytes(b"new")), warn) is None
    assert warn == []


def test_an_artifact_that_is_stored_already_can_be_an_output(store: Store, warn: Warnings) -> None:
    first = perform(store, STEP, Function(), warn)
    other = dataclasses.replace(STEP, name="other")
    perform(store, other, lambda work: Made({"same": first["model"]}), warn)
    again = find(store, other, warn)
    assert again is not None and again["same"] == first["model"]


def damage_file(path: Path) -> None:
    (path / "file").write_text("RESULT!")


def remove(path: Path) -> None:
    (path / "file").unlink()
    path.rmdir()


@pytest.mark.parametrize("damage, found", [(damage_file, "has changed"), (remove, "is missing at")])
def test_a_damaged_output_is_reported_and_made_again(
    store: Store, warn: Warnings, damage: Callable[[Path], None], found: str
) -> None:
    function = Function()
    first = perform(store, STEP, function, warn)
    damage(first["model"].path)
    again = perform(store, STEP, function, warn)
    assert function.calls == 2 and not again.cached and again["model"] == first["model"]
    assert len(warn) == 1 and found in warn[0] and warn[0].endswith("step train runs again")
    store.verify(again["model"], full=True)
    if damage is damage_file:
        assert list((store.root / "damaged").iterdir()), "what was damaged is kept as evidence"


def edit_fact(manifest: dict[str, Any]) -> Any:
    manifest["record"]["facts"]["rows"] = 4
    return manifest


def drop_outputs(manifest: dict[str, Any]) -> Any:
    del manifest["record"]["outputs"]
    return manifest


def forge(manifest: dict[str, Any]) -> Any:
    """An edit whose author has recomputed the digest, over the record of another step."""
    from training.digest import digest_json

    manifest["record"]["settings"]["learning_rate"] = 5
    manifest["digest"] = str(digest_json(manifest["record"]))
    return manifest


@pytest.mark.parametrize(
    "edit", [edit_fact, drop_outputs, forge, lambda _: {}, lambda _: [], lambda m: {**m, "digest": "sha256:0"}]
)
def test_an_edited_manifest_is_reported_and_the_step_runs_again(store: Store, warn: Warnings, edit: Any) -> None:
    function = Function()
    perform(store, STEP, function, warn)
    path = manifest_path(store, STEP)
    path.write_text(json.dumps(edit(json.loads(path.read_bytes()))))
    perform(store, STEP, function, warn)
    assert function.calls == 2
    assert warn == [f"the manifest {path} has changed since it was written; step train runs again"]
    assert find(store, STEP, warn) is not None


@pytest.mark.parametrize("text", ["", '{"record": {', "\ud800".encode("utf-8", "surrogatepass"), "NaN"], ids=repr)
def test_a_manifest_that_is_no_json_is_reported_and_the_step_runs_again(
    store: Store, warn: Warnings, text: str | bytes
) -> None:
    function = Function()
    perform(store, STEP, function, warn)
    manifest_path(store, STEP).write_bytes(text if isinstance(text, bytes) else text.encode())
    perform(store, STEP, function, warn)
    assert function.calls == 2 and len(warn) == 1 and "has changed" in warn[0]


def test_a_step_that_fails_is_not_recorded_and_finds_its_folder_again(store: Store, warn: Warnings) -> None:
    def fails(work: Work) -> Made:
        (work.folder / "checkpoint").write_text("step 3")
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError):
        perform(store, STEP, fails, warn)
    assert find(store, STEP, warn) is None

    def goes_on(work: Work) -> Made:
        assert (work.folder / "checkpoint").read_text() == "step 3"
        return Function()(work)

    assert not perform(store, STEP, goes_on, warn).cached
    assert warn == []


# ------------------------------------------------------------------------------------------------ several processes

PERFORMS = """
import sys, time
from pathlib import Path
from tasks.lineage.step import Made, Step, perform
from tasks.lineage.store import Store
from training.digest import digest_bytes

root = Path(sys.argv[1])

def work(work):
    with open(root / "calls", "a") as file:
        file.write("called\\n")
    time.sleep(0.5)
    out = work.folder / "out"
    out.mkdir()
    (out / "file").write_text("result")
    return Made({"model": ("model", out)})

step = Step("slow", {}, {}, digest_bytes(b""), {})
(root / f"ready-{sys.argv[2]}").touch()
while not (root / "go").exists():
    time.sleep(0.005)
print(perform(Store(root / "store"), step, work, print).cached)
"""

HOLDS = """
import sys, time
from pathlib import Path
from tasks.lineage.step import locked
with locked(Path(sys.argv[1])):
    Path(sys.argv[2]).touch()
    time.sleep(60)
"""


def start(code: str, *arguments: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 20
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_processes_that_perform_one_step_at_once_run_it_once(tmp_path: Path) -> None:
    processes = [start(PERFORMS, tmp_path, i) for i in range(2)]
    wait_for(tmp_path / "ready-0", tmp_path / "ready-1")
    (tmp_path / "go").touch()
    told = [process.communicate(timeout=20)[0] for process in processes]
    assert sorted(told) == ["False\n", "True\n"]
    assert (tmp_path / "calls").read_text() == "called\n"


def test_a_lock_is_freed_when_its_holder_is_killed(tmp_path: Path) -> None:
    path, ready = tmp_path / "locks" / "x.lock", tmp_path / "ready"
    process = start(HOLDS, path, ready)
    wait_for(ready)
    with pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with locked(path, wait=False):
        pass


def test_a_child_that_inherits_a_lock_keeps_it_held(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with locked(path) as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    with pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    child.communicate(b"\n")
    with locked(path, wait=False):
        pass
