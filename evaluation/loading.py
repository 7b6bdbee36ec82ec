"""A policy loaded for judging: weights and tokenizer from one folder, on one device, in one dtype."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from evaluation.settings import Refused


def prepare_process(profile: Mapping[str, Any]) -> None:
    """Fix the thread count (bits depend on it) and silence progress bars; the first call in a child process.

    ``profile``: ``threads`` (0 or absent: torch's own choice).
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Spinning threads on a busy machine made two threads forty times slower than one; waiting ones cost nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    import transformers

    if profile.get("threads"):
        torch.set_num_threads(int(profile["threads"]))
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def load_policy(folder: Path, profile: Mapping[str, Any]) -> tuple[Any, Any]:
    """(model in evaluation mode, tokenizer) from a local folder; nothing is fetched.

    ``profile``: ``device`` (default ``cpu``), ``dtype`` (default ``float32``). Raises Refused where the folder is none.
    """
    if not folder.is_dir():
        raise Refused(f"model folder {folder} does not exist; train or download the model first")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = getattr(torch, profile.get("dtype", "float32"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.to(profile.get("device", "cpu")).eval(), tokenizer


def release(device: str) -> None:
    """Give back the memory of a model that nobody refers to any more."""
    import gc

    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def seed_everything(seed: int) -> None:
    """Python, NumPy and torch generators, so that a result does not depend on what ran before it."""
    import random

    random.seed(seed)
    with suppress(ImportError):
        import numpy

        numpy.random.seed(seed % 2**32)
    import torch

    torch.manual_seed(seed)
