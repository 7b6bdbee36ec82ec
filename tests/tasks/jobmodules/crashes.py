"""Has a fault of its own."""

from typing import Any


def run(job: dict[str, Any], log: Any) -> None:
    cause = {"known": 1}
    cause["unknown"]
