"""Make, link or fetch the base model. Run as a job: ``training.base``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.loop import Log
from training.models import base_model
from training.settings import ModelSettings
from training.sft import load_examples


def run(job: dict[str, Any], log: Log) -> None:
    """``inputs``: examples (whose text a new tokenizer learns from); ``root``: where a relative ``base`` starts."""
    settings = ModelSettings.model_validate_json(job["settings"])

    def texts() -> Iterable[str]:
        for example in load_examples(job["inputs"]["examples"]):
            yield from (message.content for message in example.prompt)
            yield example.completion

    log({"type": "milestone", "message": "makes a new model" if settings.new else f"takes {settings.base}"})
    base_model(settings, job["seed"], Path(job["root"]), texts, Path(job["output"]))
