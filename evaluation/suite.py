"""Everything that is asked of a set of models in one child process: benchmarks, then samples. A job: ``evaluation.suite``."""

from collections.abc import Callable, Mapping
from typing import Any

from evaluation import benchmarks, samples


def run(job: Mapping[str, Any], log: Callable[[dict[str, Any]], None]) -> None:
    """``job`` holds what both jobs share, ``pairs`` for the benchmarks, ``outputs`` and ``prompts`` for the samples."""
    if job["pairs"]:
        benchmarks.run(job, log)
    if job["outputs"]:
        samples.run(job, log)
