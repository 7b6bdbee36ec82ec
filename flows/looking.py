"""The workspace as ``alignmill check`` sees it: looked at, never written."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.catalogue import find_benchmark
from evaluation.settings import BenchmarkSettings
from evaluation.settings import Refused as BenchmarkRefused
from tasks.benchmarks import include_folder
from tasks.lineage.step import Step, StepResult, find
from tasks.lineage.store import Artifact, Store
from tasks.run import Context
from tasks.validation import TEXTS, texts_job, texts_step

ROOT = Path(__file__).resolve().parents[1]


class _ReadOnly(Store):
    """A store that is only looked at: what a full check found is not remembered."""

    def _remember(self, artifact: Artifact, manifest: Any) -> None:
        pass


@dataclass
class Looking(Context):
    """A context whose ``find`` leaves the workspace as it is; what it would warn about is kept."""

    warnings: list[str] = field(default_factory=list)

    def find(self, step: Step) -> StepResult | None:
        try:
            return find(_ReadOnly(self.workspace.store.root), step, self.warn)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.warn(f"the record of step {step.name} cannot be read ({error}); a run will stop there: move it away")
        return None

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def manifests(self, name: str) -> list[Path]:
        """The recorded executions of a step, the newest first."""
        folder = self.workspace.store.root / "steps" / name
        return sorted(folder.glob("*.json"), key=lambda path: -path.stat().st_mtime)


def look_at_texts(look: Looking, settings: BenchmarkSettings, temporary: Path) -> tuple[StepResult | None, Path | None]:
    """The recorded step that wrote the benchmarks' texts, and the file: the recorded one, or one written in ``temporary``.

    lm-eval is heavy and runs in a process of its own. Where the texts cannot be had now, a warning says so.
    """
    try:
        if not settings.names:
            return None, None
        done = look.find(texts_step(look, settings))
        if done is not None:
            return done, done["texts"].path / TEXTS
        include = include_folder(settings, look.root)
        if any(find_benchmark(name, include).remote for name in settings.names):
            look.warn("contamination is not looked at: a benchmark's data stand on the hub, and check fetches nothing")
            return None, None
    except BenchmarkRefused:  # told already, among the problems
        return None, None
    job = texts_job(settings, include, temporary / "texts") | {"events": str(temporary / "texts.events")}
    (temporary / "texts.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "tasks.child", "evaluation.texts", str(temporary / "texts.json")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(temporary / "datasets")}
    offline["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.run(
        command, cwd=temporary, env=os.environ | offline, stdin=subprocess.DEVNULL, capture_output=True
    )
    if child.returncode:
        look.warn(f"contamination is not looked at: the benchmarks' texts could not be written: {_last(child.stderr)}")
        return None, None
    return None, temporary / "texts" / TEXTS


def _last(told: bytes) -> str:
    lines = told.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "the process said nothing"
