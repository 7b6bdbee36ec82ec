"""Our side of the comparison: what both sides are given, and the process that trains our engine on it.

``rows_of`` and ``new`` make token ids and weights with this repository's reader, encoder and model maker; TRL gets the same
ids. ``python -m tests.benchmarks.ours JOB`` answers like ``peer``: what was set up, then for every line ``go N`` the seconds
and losses of the next N optimiser steps.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.demo import ROOT
from tests.benchmarks.peer import Memory, load
from training.data.encode import Encoded, Encoder
from training.data.records import Record, pairs, sft
from training.data.settings import Source
from training.data.sources import read
from training.models import load_tokenizer, new_model
from training.settings import NewModel

SEED = 7
MAX_TOKENS = 1024  # TRL's default ``max_length``: nothing is left for it to cut
# Random weights. The first has the size of the smallest models that people do train (a quarter of it is the vocabulary).
SHAPES = {
    "34m": NewModel(layers=8, hidden=512, heads=8, vocabulary=16384, context=2048),
    "0.5b": NewModel(layers=24, hidden=1280, heads=20, vocabulary=32768, context=2048),
    "1b": NewModel(layers=24, hidden=1792, heads=28, vocabulary=32768, context=2048),
    "small": NewModel(layers=4, hidden=128, heads=4, vocabulary=2048, context=2048),
}


# ------------------------------------------------------------------------------------------------ what both are given


def records(data: Path, name: str) -> list[Record]:
    """The readable records of one file."""
    lines = read(Source(path=name), data).lines
    return [line.content for line in lines if isinstance(line.content, Record)]


def new(shape: str, seed: int, found: Iterable[Record], folder: Path) -> None:
    """A Llama with random weights and a tokenizer trained on all texts of the records; kept where it is there."""
    texts = (t for r in found for t in (*(turn.content for turn in r.prompt), *(c.text for c in r.completions)))
    if not folder.exists():
        new_model(SHAPES[shape], seed, texts, folder)


def rows_of(found: Iterable[Record], tokenizer: Any, kind: str, max_tokens: int = MAX_TOKENS) -> list[Encoded]:
    """``pairs``: the best against the best of those below, one row a prompt. ``sft``: the best alone. ``graded``: four of the
    completions with their grades, where these differ. Rows that a cut makes useless are left out."""
    encoder = Encoder(tokenizer, max_tokens)
    rows = []
    for record in found:
        grades: tuple[float, ...] = ()
        if kind == "pairs":
            texts = next(([pair.chosen, pair.rejected] for pair in pairs(record)), [])
            grades = (0.0, -1.0)
        elif kind == "sft":
            texts = [sft(record).completion]
        else:
            four = record.completions[:4]
            texts, grades = [one.text for one in four], tuple(float(one.score or 0) for one in four)
        row = encoder.join(record.id, record.prompt, texts, 1.0) if texts else None
        graded = kind == "sft" or len(set(grades)) > 1
        if row is not None and graded and all(row.completions) and len(set(row.completions)) == len(texts):
            rows.append(replace(row, grades=grades, kind="" if kind == "sft" else "score"))
    return rows


def shuffled(rows: Sequence[Encoded], batch: int, seed: int) -> list[list[int]]:
    """Whole batches in random order: TRL's default sampler."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [order[i : i + batch] for i in range(0, len(order) - batch + 1, batch)]


def grouped(rows: Sequence[Encoded], batch: int, seed: int, window: int) -> list[list[int]]:
    """Batches of similar length: ``window`` rows in random order at a time, sorted. transformers' ``group_by_length`` has
    a window of 50 batches; a window of all rows gives batches of equal length."""
    order = [i for one in shuffled(rows, batch, seed) for i in one]
    windows = [order[at : at + window] for at in range(0, len(order), window)]
    order = [i for one in windows for i in sorted(one, key=lambda i: -rows[i].longest)]
    return [order[i : i + batch] for i in range(0, len(order), batch)]


def spread(rows: Sequence[Encoded], batches: list[list[int]], count: int) -> list[list[int]]:
    """``count`` of the batches at evenly spaced ranks of their padded size, so that a few stand for all."""
    by_size = sorted(batches, key=lambda one: (max(rows[i].longest for i in one), one))
    return [by_size[int((k + 0.5) * len(by_size) / count)] for k in range(count)]


@dataclass(frozen=True)
class Tokens:
    """Of one batch list: ``padded`` to the longest row of each batch, ``real``, and ``unique`` (a prompt counts once)."""

    padded: int
    real: int
    unique: int

    @classmethod
    def of(cls, rows: Sequence[Encoded], batches: list[list[int]]) -> "Tokens":
        each = [[rows[i] for i in one] for one in batches]
        # All tokens, as a padded batch holds them: ``Encoded.longest`` leaves out the last, which is never fed.
        padded = sum(max(row.longest + 1 for row in one) * sum(len(row.completions) for row in one) for one in each)
        completions = sum(len(ids) for one in each for row in one for ids in row.completions)
        prompts = sum(len(row.prompt) for one in each for row in one)
        repeated = sum(len(row.prompt) * len(row.completions) for one in each for row in one)
        return cls(padded, repeated + completions, prompts + completions)


# ------------------------------------------------------------------------------------------------ a process


class Side:
    """One process of the comparison, paced through its standard streams."""

    def __init__(self, command: list[str], job: dict[str, Any], folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps(job))
        self.errors = folder / "errors"
        threads = str(job["threads"])
        quiet = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [*command, str(folder / "job.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors.open("w"),
            text=True,
            cwd=ROOT,
            env=os.environ | quiet,
        )
        self.ready = self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}; its last words:\n{self._tail()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def go(self, steps: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"go {steps}\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> dict[str, Any]:
        last = self.answer()
        self.process.wait()
        return last

    def _tail(self) -> str:
        return self.errors.read_text()[-3000:]


# ------------------------------------------------------------------------------------------------ our process


@dataclass(frozen=True)
class Given:
    """The batches of a job in place of the engine's own order."""

    batches: list[list[int]]
    seed: int = 0

    @property
    def steps(self) -> int:
        return len(self.batches)

    def indices(self, step: int) -> list[int]:
        return self.batches[step]


class Paced:
    """Waits for ``go N`` before a step and answers when N steps are done; ``free`` never waits."""

    def __init__(self, device: str, free: bool) -> None:
        self.lines = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # whatever the libraries print is no answer
        self.device, self.free, self.left, self.began = device, free, 0, 0.0
        self.losses: list[float] = []
        self.tokens: list[int] = []
        self.facts: dict[str, Any] = {}

    def say(self, value: dict[str, Any]) -> None:
        self.lines.write(json.dumps(value) + "\n")

    def log(self, event: dict[str, Any]) -> None:
        """What the engine reports."""
        if event["type"] == "facts":
            self.facts |= event["facts"]
        elif event["type"] == "metrics":
            self.losses.append(event["metrics"]["loss"])
            self.tokens.append(event["tokens"])

    def step(self) -> None:
        """Before every step. The first one is when all is set up."""
        if self.free:
            self.began = self.began or time.perf_counter()
            return
        if self.left == 0:
            if self.began:
                self.answer()
            self.left = int(sys.stdin.readline().removeprefix("go "))
            self.began = time.perf_counter()
        self.left -= 1

    def answer(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.say({"seconds": time.perf_counter() - self.began, "losses": self.losses})
        self.losses = []


def main() -> None:
    from training.loop import train
    from training.models import prepare_torch, save_model, with_lora
    from training.preference import Preference
    from training.reference import Cache, model_digest
    from training.scorer import make_scorer
    from training.settings import PreferenceSettings, Profile, SFTSettings
    from training.sft import SFT

    job = json.loads(Path(sys.argv[1]).read_text())
    pace = Paced(job["device"], job["free"])
    profile = Profile.model_validate_json(json.dumps(job["profile"]))
    kind: Any = SFTSettings if job["kind"] == "sft" else PreferenceSettings
    settings = kind.model_validate_json(json.dumps(job["settings"]))
    rows = [Encoded(**{key: tupled(value) for key, value in row.items()}) for row in job["rows"]]
    prepare_torch(profile)
    model = load(job["model"], job["device"])
    memory = Memory(job["device"])
    began = time.perf_counter()
    reference = 0.0
    scorer = make_scorer(with_lora(model, settings.lora, SEED), rows, profile, pace.log)
    objective: Any
    if job["kind"] == "sft":
        objective = SFT(rows, Given(job["batches"]), scorer, profile)  # type: ignore[arg-type]
    else:
        start = time.perf_counter()
        digest = model_digest(Path(job["model"]), profile, scorer.path.attention)
        reference = time.perf_counter() - start
        caches = [Cache(Path(job["scratch"]) / digest, pace.log)]
        objective = Preference(settings, rows, (), Given(job["batches"]), scorer, profile, caches, pace.log)  # type: ignore[arg-type]
    begin, parts = objective.begin, objective.parts

    def timed_begin(*given: Any) -> None:
        start = time.perf_counter()
        begin(*given)
        pace.say(
            {
                "ready": True,
                "layout": f"{scorer.path.name}, {scorer.path.attention}",
                "reference": reference + time.perf_counter() - start,
                "setup": time.perf_counter() - began,
            }
        )

    def paced_parts(*given: Any) -> Any:
        pace.step()
        return parts(*given)

    objective.begin, objective.parts = timed_begin, paced_parts
    train(scorer, objective, settings, profile, SEED, "benchmark", Path(job["scratch"]) / "checkpoints", pace.log)
    pace.answer()
    peak = memory.peak()
    if job["save"] is not None:
        save_model(scorer.release(), load_tokenizer(Path(job["model"])), Path(job["save"]))
    pace.say({"tokens": pace.tokens, "facts": pace.facts, "peak": peak})


def tupled(value: Any) -> Any:
    return tuple(tupled(one) for one in value) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
