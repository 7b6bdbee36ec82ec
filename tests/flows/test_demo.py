"""The demo as a new user meets it: the README's commands as they stand, and the bounds that the demo promises."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.demo import score_row
from tests.flows.tiny import ROOT, alignmill, environment, ran

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
DEMO = "deployments/experiments/helpdesk.yaml"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "home"


@pytest.fixture(scope="module")
def outcome(home: Path) -> dict[str, Any]:
    """The demo, run once, as `make run` does it."""
    done = alignmill("run", DEMO, "--json", home=home)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def test_the_demo_holds_its_bounds_and_its_policy_is_champion(outcome: dict[str, Any]) -> None:
    assert score_row(5, outcome["scores"]).endswith("| hold |"), outcome["scores"]
    assert outcome["decision"]["accepted"], outcome["decision"]["reasons"]
    assert outcome["champion"] == {"model": "helpdesk", "version": 1}


def test_the_same_again_does_nothing_again(outcome: dict[str, Any], home: Path) -> None:
    again = json.loads(alignmill("run", DEMO, "--json", home=home).stdout)
    assert ran(again) == []
    assert again["scores"] == outcome["scores"]


def test_the_registered_model_loads_in_another_process_and_answers(outcome: dict[str, Any], home: Path) -> None:
    code = (
        "import mlflow, sys\n"
        "model = mlflow.transformers.load_model('models:/helpdesk@champion', return_type='components')\n"
        "print(sum(p.numel() for p in model['model'].parameters()))\n"
        "answer = mlflow.pyfunc.load_model('models:/helpdesk@champion').predict(['<|bos|><|user|>Hi<|end|><|assistant|>'])\n"
        "print(repr(answer))\n"
    )
    uri = f"sqlite:///{home / 'mlflow.db'}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(home, MLFLOW_TRACKING_URI=uri, HF_HUB_OFFLINE="1", MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[0] == "715648"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_s_commands_work_as_they_stand(command: str, outcome: dict[str, Any], home: Path) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        listed = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
        assert {"run": f"alignmill run {DEMO}", "test": "-m pytest"}[words[1]] in listed.stdout
        return
    assert words[0] == ".venv/bin/alignmill"
    if words[1] == "ui":
        pytest.skip("tests/flows/test_servers.py starts and stops the pages")
    if words[1:] == ["run", "mine.yaml"]:
        pytest.skip("a training run of its own: test_an_experiment_written_by_init_runs (make soak)")
    mine = home.parent / "mine.yaml"
    if words[1] == "init":
        mine.unlink(missing_ok=True)
    elif "mine.yaml" in words and not mine.exists():
        assert alignmill("init", "deployments/helpdesk/preferences.jsonl", "-o", str(mine), home=home).returncode == 0
    done = alignmill(*[str(mine) if word == "mine.yaml" else word for word in words[1:]], home=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_readme_names_commands_and_files_that_exist() -> None:
    known = subprocess.run(
        [sys.executable, "-m", "flows.cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in re.findall(r"^\| `alignmill (\w+)", README, re.MULTILINE):
        assert re.search(rf"^    {name} ", known, re.MULTILINE), name
    tree = README.partition("## Files\n\n```\n")[2].partition("```")[0]
    folder: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.match(r"[^ ]+(?: [\w-]+\.\w+)*", line.strip())
        assert names, line
        for name in names[0].split():
            path = "/".join([*folder[:depth], name.rstrip("/")])
            assert (ROOT / path).exists(), path
            if name.endswith("/"):
                folder[depth:] = [name.rstrip("/")]


@pytest.mark.soak
@pytest.mark.parametrize(
    "data", ["deployments/helpdesk/preferences.jsonl", "hh_harmless_base.jsonl.gz", "gsm8k_graded.jsonl.gz"]
)
def test_an_experiment_written_by_init_runs(data: str, tmp_path: Path) -> None:
    path = ROOT / data if "/" in data else ROOT.parent / "shared" / "data" / data
    if not path.exists():
        pytest.skip(f"{path} is not here")
    written = alignmill("init", str(path), "-o", str(tmp_path / "mine.yaml"), home=tmp_path / "home")
    assert written.returncode == 0, written.stderr
    done = alignmill("run", str(tmp_path / "mine.yaml"), home=tmp_path / "home")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "holdout/preference_accuracy" in done.stdout and "gate:" in done.stdout
