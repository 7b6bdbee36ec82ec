"""Benchmarks: lm-evaluation-harness behind one job, each (model, benchmark) pair a result folder of its own.

The scores are those of ``lm_eval --model hf``: the same requests, batches and aggregation functions. What is added are
per-item values for every metric whose mean is its score, and standard errors without a bootstrap.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evaluation.catalogue import Benchmark, benchmark_digest_parts, find_benchmark
from evaluation.conversion import convert
from evaluation.loading import load_policy, prepare_process, release, seed_everything
from evaluation.scores import finite, write_results
from evaluation.settings import BenchmarkSettings

__all__ = ["Benchmark", "benchmark_digest_parts", "find_benchmark", "run"]

Log = Callable[[dict[str, Any]], None]


def run(job: Mapping[str, Any], log: Log) -> None:
    """Evaluate every pair of ``job`` whose output does not exist yet; the entry of a child process.

    ``job``: ``inputs`` {label: model folder}, ``pairs`` [{``model``: label, ``benchmark``: name, ``output``: folder}],
    ``include`` (folder or null), ``settings`` (BenchmarkSettings as JSON), ``seed``, ``profile`` {``device``,
    ``dtype``, ``threads``}, and optionally ``work``, a folder for prepared data sets (default: a temporary one).

    Events: ``{"type": "progress", "done", "total", "message"}`` before each pair and at the end, ``{"type": "metrics",
    "metrics": {"label/benchmark/metric": value}}`` after each. An output folder appears whole or not at all.
    Raises Refused for a name, a file or a model folder that is wrong, before anything is evaluated.
    """
    settings = BenchmarkSettings.model_validate_json(json.dumps(job["settings"]))
    include = Path(job["include"]) if job.get("include") else None
    todo = [pair for pair in job["pairs"] if not Path(pair["output"]).exists()]
    total, done = len(job["pairs"]), len(job["pairs"]) - len(todo)
    benchmarks = {name: find_benchmark(name, include) for name in dict.fromkeys(p["benchmark"] for p in todo)}
    if todo:
        prepare_process(job["profile"])
        with tempfile.TemporaryDirectory(prefix="alignmill-") as temporary:
            prepared = Tasks(benchmarks, Path(job.get("work") or temporary))
            for label in dict.fromkeys(pair["model"] for pair in todo):
                judged = _language_model(Path(job["inputs"][label]), settings, job["profile"])
                for pair in (pair for pair in todo if pair["model"] == label):
                    name = pair["benchmark"]
                    log({"type": "progress", "done": done, "total": total, "message": f"{label}: {name}"})
                    metrics = _evaluate(judged, prepared, benchmarks[name], settings, job["seed"], Path(pair["output"]))
                    log({"type": "metrics", "metrics": {f"{label}/{key}": value for key, value in metrics.items()}})
                    done += 1
                del judged
                release(job["profile"].get("device", "cpu"))
    log({"type": "progress", "done": done, "total": total, "message": "benchmarks finished"})


class Tasks:
    """lm-eval's task objects, built once and used for every model."""

    def __init__(self, benchmarks: Mapping[str, Benchmark], cache: Path) -> None:
        self._benchmarks, self._cache, self._built = benchmarks, cache, {}  # type: ignore[var-annotated]

    def get(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = self._build(self._benchmarks[name])
        return self._built[name]

    def _build(self, benchmark: Benchmark) -> Any:
        import datasets
        from lm_eval.tasks import TaskManager
        from lm_eval.tasks._yaml_loader import load_yaml

        datasets.disable_progress_bars()
        logging.getLogger("lm_eval").setLevel(logging.WARNING)
        logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)
        settings = load_yaml(benchmark.yaml) | dict(benchmark.dataset)
        for key in ("tag", "task_list"):
            settings.pop(key, None)
        if benchmark.data:
            # Local data is cheap to read again; a prepared copy of it must not outlive the run in a home directory.
            settings["dataset_kwargs"] = {**settings.get("dataset_kwargs", {}), "cache_dir": str(self._cache)}
        try:
            task = TaskManager(include_defaults=False).load([settings])["tasks"][benchmark.name]
        except Exception as error:
            source = f"the hub data set {benchmark.remote}" if benchmark.remote else "its local data"
            raise RuntimeError(
                f"benchmark {benchmark.name!r} ({benchmark.yaml}) could not be prepared from {source}: {error}"
            ) from error
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        return task


def _language_model(folder: Path, settings: BenchmarkSettings, profile: Mapping[str, Any]) -> Any:
    """The model as lm-eval wants it: its own HFLM, without progress bars."""
    import lm_eval.models.huggingface as huggingface

    logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)

    class Judged(huggingface.HFLM):  # type: ignore[misc]
        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

    model, tokenizer = load_policy(folder, profile)
    return Judged(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=settings.batch_size)


def _evaluate(
    judged: Any, prepared: Tasks, benchmark: Benchmark, settings: BenchmarkSettings, seed: int, output: Path
) -> dict[str, float]:
    from lm_eval import evaluator

    seed_everything(seed)
    task = prepared.get(benchmark.name)
    task.set_fewshot_seed(seed=seed)
    results = evaluator.evaluate(
        judged,
        {"tasks": {benchmark.name: task}},
        limit=settings.limit,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=settings.chat_template and judged.tokenizer.chat_template is not None,
        fewshot_as_multiturn=True,
    )
    scores, items, generations = convert(benchmark.name, task, results)
    write_results(output, scores, items, generations)
    values = {score.name: finite(score.value) for score in scores}
    return {name: value for name, value in values.items() if value is not None}
