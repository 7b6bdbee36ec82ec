"""Tells what its process looks like."""

import os
import sys
from typing import Any

NAMES = ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "PYTHONHASHSEED")


def run(job: dict[str, Any], log: Any) -> None:
    heavy = [name for name in ("torch", "prefect", "mlflow", "pandas", "pydantic") if name in sys.modules]
    facts: dict[str, Any] = {name: os.environ.get(name) for name in NAMES}
    facts |= {"folder": os.getcwd(), "own group": os.getpgid(0) == os.getpid(), "heavy": heavy}
    log({"type": "facts", "facts": facts})
