"""Finds its input unacceptable."""

from typing import Any

from training.strict import Refused


def run(job: dict[str, Any], log: Any) -> None:
    raise Refused("data.jsonl: line 3 is no record; mend it and run again")
