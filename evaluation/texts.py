"""The texts of all benchmark items, as JSON Lines of {benchmark, item, text}: what must not stand in training data.

They come from lm-eval's own task objects, so that an item reads here as it is asked. A job: ``evaluation.texts``.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evaluation.benchmarks import Tasks
from evaluation.catalogue import find_benchmark

FILE = "texts.jsonl"


def run(job: Mapping[str, Any], log: Callable[[dict[str, Any]], None]) -> dict[str, int]:
    """``job``: ``names``, ``include`` (folder or null), ``output`` (a folder, written whole). Logs items per benchmark."""
    output = Path(job["output"])
    partial = output.with_name(f".partial-{output.name}")
    partial.mkdir(parents=True, exist_ok=True)
    include = Path(job["include"]) if job.get("include") else None
    counts = write_benchmark_texts(tuple(job["names"]), include, partial / FILE)
    partial.rename(output)
    log({"type": "facts", "facts": {"items": counts}})
    return counts


def write_benchmark_texts(names: tuple[str, ...], include: Path | None, out: Path) -> dict[str, int]:
    """Write every item of the benchmarks ``names`` to ``out``; the number of items per benchmark.

    An item has a line for its question and one with each right answer. Raises Refused where a benchmark is unknown,
    RuntimeError where its data cannot be had.
    """
    counts: dict[str, int] = {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="alignmill-") as temporary, open(out, "w", encoding="utf-8") as file:
        tasks = Tasks({name: find_benchmark(name, include) for name in names}, Path(temporary))
        for name in names:
            task = tasks.get(name)
            counts[name] = 0
            for number, item in enumerate(task.eval_docs):
                counts[name] += 1
                for text in texts_of(task, item):
                    line = {"benchmark": name, "item": number, "text": text}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return counts


def texts_of(task: Any, item: Mapping[str, Any]) -> Iterator[str]:
    """The question, and the question with each of its right answers."""
    target = task.doc_to_target(item)
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        yield str(target)
        return
    choices = task.doc_to_choice(item) if task.OUTPUT_TYPE == "multiple_choice" else []
    if getattr(task, "multiple_input", 0):  # the choices are the questions, and doc_to_text says which is the right one
        yield f"{_answer(task.doc_to_text(item), choices)} {target}"
        return
    question = str(task.doc_to_text(item)).strip()
    if question:
        yield question
    for answer in target if isinstance(target, list) and target else [target]:
        yield f"{question} {_answer(answer, choices)}".strip()


def _answer(target: Any, choices: list[str]) -> str:
    """A target that is the number of a choice, or a letter that no choice is, as text."""
    if isinstance(target, int) and not isinstance(target, bool) and -len(choices) <= target < len(choices):
        return str(choices[target])
    return str(target)
