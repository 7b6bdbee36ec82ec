"""A whole experiment in miniature, and the command line as a user calls it: a process of its own."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ANIMALS = ["otter", "heron", "badger", "lynx", "newt", "stoat", "raven", "vole", "hare", "toad"]
PLACES = ["lake", "barn", "hill", "wood", "marsh", "field", "cave", "shore"]


def write_data(folder: Path, seed: int = 0) -> None:
    """Preference pairs that want the courteous answer, SFT rows that show both, and a small benchmark."""
    rng = random.Random(seed)
    combinations = [(animal, place) for animal in ANIMALS for place in PLACES]
    rng.shuffle(combinations)
    pairs, sft, items = [], [], []
    for animal, place in combinations:
        prompt, good = f"Where is the {animal} of the {place}?", f"Gladly: the {animal} is at the {place}."
        pairs.append({"prompt": prompt, "chosen": good, "rejected": f"No idea about any {animal}."})
        answer = good if rng.random() < 0.5 else f"No idea about any {animal}."
        sft.append({"prompt": f"Tell me of the {animal} and the {place}.", "completion": answer})
        # Not the prompt itself: that would be a benchmark item in the training text, and the row be put aside.
        question = f"In which spot near the {place} could one meet some {animal}?"
        items.append({"question": question, "choices": [good, f"The {place} ate it."], "answer": 0})
    _write_lines(folder / "pairs.jsonl", pairs)
    _write_lines(folder / "sft.jsonl", sft)
    (folder / "benchmarks").mkdir(exist_ok=True)
    _write_lines(folder / "benchmarks" / "items.jsonl", items[:24])
    (folder / "benchmarks" / "tiny_choice.yaml").write_text(
        yaml.safe_dump(
            {
                "task": "tiny_choice",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}}",
                "doc_to_choice": "choices",
                "doc_to_target": "answer",
                "target_delimiter": "",
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
                "metadata": {"version": 1.0},
            }
        )
    )


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings() -> dict[str, Any]:
    """The experiment's settings, to be changed by a test."""
    return {
        "name": "tiny",
        "seed": 3,
        "model": {"new": {"layers": 1, "hidden": 32, "heads": 2, "vocabulary": 400, "context": 128}},
        "data": {"preferences": [{"path": "pairs.jsonl"}], "sft": [{"path": "sft.jsonl"}], "holdout": {"share": 0.2}},
        "validation": {"max_quarantined": 0.2},
        "sft": {"steps": 40, "batch": 8, "learning_rate": 0.004, "max_tokens": 64},
        "preference": {
            "loss": {"name": "dpo", "beta": 0.1},
            "epochs": 2,
            "batch": 4,
            "learning_rate": 0.0005,
            "sft_weight": 1.0,
            "replay": 2,
            "max_tokens": 64,
        },
        "benchmarks": {
            "include": "benchmarks",
            "names": ["tiny_choice"],
            "samples": {"prompts": 4, "max_new_tokens": 16},
        },
        "gate": {
            "collapse": None,
            "collapse_off_reason": "a toy model",
            "floors": [{"metric": "tiny_choice/acc", "minimum": 0.0}],
        },
        "registry": {"model": "tiny"},
    }


PROFILE = {"device": "cpu", "threads": 1, "token_budget": 2048, "checkpoint_seconds": 0.05}


@dataclass
class Tiny:
    """One experiment folder; ``home`` is its workspace."""

    folder: Path
    home: Path

    @classmethod
    def write(cls, folder: Path) -> "Tiny":
        folder.mkdir(parents=True, exist_ok=True)
        write_data(folder)
        tiny = cls(folder, folder / "home")
        tiny.set(settings())
        tiny.set_profile(PROFILE)
        return tiny

    def set(self, value: dict[str, Any]) -> None:
        self.file.write_text(yaml.safe_dump(value, sort_keys=False))

    def set_profile(self, value: dict[str, Any]) -> None:
        (self.folder / "profile.yaml").write_text(yaml.safe_dump(value))

    @property
    def file(self) -> Path:
        return self.folder / "experiment.yaml"

    @property
    def arguments(self) -> list[str]:
        return ["run", str(self.file), "--profile", str(self.folder / "profile.yaml"), "--json"]

    def run(self, **environment: str) -> dict[str, Any]:
        """Run to the end; the outcome. Fails the test with the run's own words where it does not end well."""
        done = alignmill(*self.arguments, home=self.home, **environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return dict(json.loads(done.stdout))

    def run_until(self, moment: Callable[[str], bool], delay: float) -> bool:
        """Start a run and kill it (-9) ``delay`` seconds after a line for which ``moment`` holds.

        Only the run's own process is killed; its children have to notice. False where it ended before.
        """
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *self.arguments],
            cwd=ROOT,
            env=environment(self.home),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stderr is not None
        timer: threading.Timer | None = None
        for line in process.stderr:
            if timer is None and moment(line):
                timer = threading.Timer(delay, lambda: os.kill(process.pid, signal.SIGKILL))
                timer.start()
        process.wait()
        if timer is not None:
            timer.cancel()
        process.stderr.close()
        return process.returncode == -signal.SIGKILL


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment without what would lead a run elsewhere."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "ALIGNMILL_"))}
    return {**kept, "ALIGNMILL_HOME": str(home), "PYTHONPATH": str(ROOT), "COLUMNS": "120", **more}


def alignmill(*arguments: str, home: Path, cwd: Path = ROOT, **more: str) -> "subprocess.CompletedProcess[str]":
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=cwd,
        env=environment(home, **more),
        capture_output=True,
        text=True,
        timeout=540,
    )


def ran(outcome: dict[str, Any]) -> list[str]:
    """The steps that really ran."""
    return [step["step"] for step in outcome["steps"] if not step["cached"]]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False
