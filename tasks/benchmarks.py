"""Benchmarks, held-out pairs and samples of several models: one step per (weights, benchmark), one child for all."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evaluation.catalogue import benchmark_digest_parts, find_benchmark
from evaluation.scores import Results
from evaluation.settings import BenchmarkSettings
from tasks.data import Data, holdout_prompts
from tasks.lineage.step import Made, Step, StepResult, Work
from tasks.lineage.store import Artifact
from tasks.run import BENCHMARK_PACKAGES, TRAINING_PACKAGES, Run, StepRun
from training.digest import Digest, digest_file, digest_json


@dataclass(frozen=True)
class Scores:
    """Result folders by model label, then by what was asked (a benchmark, ``holdout``, ``samples``)."""

    folders: Mapping[str, Mapping[str, Artifact]]
    step: StepResult

    @property
    def cached(self) -> bool:
        return self.step.cached

    @cached_property
    def results(self) -> dict[str, Results]:
        return {label: Results.read([a.path for a in asked.values()]) for label, asked in self.folders.items()}

    def inputs(self, label: str) -> dict[str, Digest]:
        return {f"{label} {name}": artifact.digest for name, artifact in self.folders.get(label, {}).items()}


@dataclass(frozen=True)
class Question:
    """One (model, benchmark): ``kind`` is benchmark, holdout or samples."""

    label: str
    name: str
    kind: str
    step: Step

    @property
    def key(self) -> str:
        return f"{self.label} {self.name}"


def include_folder(settings: BenchmarkSettings, root: Path) -> Path | None:
    return (root / settings.include).resolve() if settings.include else None


def benchmark_digest(name: str, include: Path | None) -> Digest:
    """Everything local that a benchmark's score depends on, and lm-eval's version. Raises Refused if it is unknown."""
    files, versions = benchmark_digest_parts(find_benchmark(name, include))
    return digest_json({"files": [[relative, str(digest_file(path))] for relative, path in files], **versions})


def questions(
    run: Any, settings: BenchmarkSettings, models: Mapping[str, Digest], data: Data, max_tokens: int
) -> Iterator[Question]:
    """Every (model, benchmark) as a step, without doing anything."""
    include = include_folder(settings, run.root)
    digests = {name: benchmark_digest(name, include) for name in settings.names}
    pairs = data.pair_inputs()
    asked = settings.model_dump(mode="json", include={"limit", "batch_size", "chat_template"}) | {"seed": run.seed}
    samples = settings.samples.model_dump(mode="json") | {"batch_size": settings.batch_size, "seed": run.seed}
    for label, model in models.items():
        for name, digest in digests.items():
            inputs = {"model": model, "benchmark": digest}
            step = run.step(
                "benchmark",
                {"name": name, **asked},
                inputs,
                ("evaluation.benchmarks",),
                BENCHMARK_PACKAGES,
                run.compute,
            )
            yield Question(label, name, "benchmark", step)
        inputs = {"model": model, **pairs}
        yield Question(
            label,
            "holdout",
            "holdout",
            run.step(
                "holdout",
                {"max_tokens": max_tokens},
                inputs,
                ("training.holdout", "evaluation.heldout"),
                TRAINING_PACKAGES,
                run.compute,
            ),
        )
        step = run.step("samples", samples, inputs, ("evaluation.samples",), TRAINING_PACKAGES, run.compute)
        yield Question(label, "samples", "samples", step)


def group_step(run: Any, asked: list[Question]) -> Any:
    """All questions as one step: when nothing changed, one look finds all answers."""
    return run.step(
        "benchmarks", [q.key for q in asked], {q.key: q.step.key for q in asked}, ("tasks.lineage.step",), (), {}
    )


def run_benchmarks(
    run: Run, settings: BenchmarkSettings, models: Mapping[str, Artifact], data: Data, max_tokens: int
) -> Scores:
    """Evaluate ``models`` (by label) on every benchmark, on the held-out pairs, and by their generations.

    Raises Refused where a benchmark is unknown.
    """
    asked = list(questions(run, settings, {label: a.digest for label, a in models.items()}, data, max_tokens))

    def work(work: Work, step: StepRun) -> Made:
        answers = {question.key: run.find(question.step) for question in asked}
        # Two labels may stand for the same weights (a base that is the warm start too): they are asked once.
        missing = {question.step.key: question for question in asked if answers[question.key] is None}
        folders = _evaluate(run, settings, models, data, max_tokens, list(missing.values()), step)
        for key, question in missing.items():
            run.record(question.step, {"result": ("result", folders[key])})
        answers = {question.key: run.find(question.step) for question in asked}
        outputs = {key: answer["result"] for key, answer in answers.items() if answer is not None}
        return Made(outputs, {"evaluated": len(missing), "reused": len(asked) - len(missing)})

    result = run.perform(group_step(run, asked), work)
    folders: dict[str, dict[str, Artifact]] = {label: {} for label in models}
    for question in asked:
        folders[question.label][question.name] = result[question.key]
    return Scores(folders, result)


def _evaluate(
    run: Run,
    settings: BenchmarkSettings,
    models: Mapping[str, Artifact],
    data: Data,
    max_tokens: int,
    missing: list[Question],
    step: StepRun,
) -> dict[Digest, Path]:
    """Answer the missing questions in child processes; each answer's folder appears whole or not at all."""
    folder = step.work.folder
    out = {question.step.key: folder / "results" / question.step.key.value[:24] for question in missing}
    (folder / "results").mkdir(exist_ok=True)
    paths = {label: str(artifact.path) for label, artifact in models.items()}
    waiting = [question for question in missing if not out[question.step.key].exists()]
    minutes = run.profile.minutes.benchmarks

    heldout = [question for question in waiting if question.kind == "holdout"]
    if heldout:
        from evaluation.heldout import judge
        from evaluation.scores import write_results

        raw = {q.label: folder / "logps" / q.label for q in heldout if not (folder / "logps" / q.label).exists()}
        payload = {
            "inputs": {"models": paths, "pairs": data.pairs()},
            "outputs": {label: str(path) for label, path in raw.items()},
            "max_tokens": max_tokens,
        }
        if raw:
            step.job("training.holdout", payload, minutes, folder="holdout")
        for question in heldout:
            lines = (folder / "logps" / question.label / "logps.jsonl").read_text(encoding="utf-8").splitlines()
            write_results(out[question.step.key], *judge(map(json.loads, lines)))

    pairs = [
        {"model": q.label, "benchmark": q.name, "output": str(out[q.step.key])}
        for q in waiting
        if q.kind == "benchmark"
    ]
    samples = {q.label: str(out[q.step.key]) for q in waiting if q.kind == "samples"}
    if pairs or samples:
        prompts = folder / "prompts.jsonl"
        holdout_prompts(data, prompts)
        include = include_folder(settings, run.root)
        remote = any(find_benchmark(name, include).remote for name in settings.names)
        payload = {
            "inputs": paths,
            "pairs": pairs,
            "include": str(include) if include else None,
            "outputs": samples,
            "prompts": str(prompts),
            "settings": settings.model_dump(mode="json"),
            "profile": run.profile.model_dump(mode="json"),
            "work": str(folder / "datasets"),
        }
        step.job("evaluation.suite", payload, minutes, online=remote, folder="suite")
    return out
