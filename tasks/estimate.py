"""What a run will cost, before it starts: parameters, tokens, memory, disk, seconds. Plain arithmetic, no torch.

Counts of parameters are exact. Everything else is an estimate: within a factor of two on a machine that is otherwise
idle, and each function's docstring states its formula. All sizes are bytes, all times seconds.
"""

import json
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.settings import LoRA, NewModel, Optimiser, Profile, Refused

START = 5.0  # a child process: Python, torch, transformers, the model
SUITE = 9.0  # the same with lm-eval
EFFICIENCY = 0.5  # share of a bare matrix product's speed that training reaches
PROCESS = 700 * 2**20  # Python with torch and transformers, before any model
_FLOAT = 4
_NO_LINEAR = ("embed", "wte", "wpe", "lm_head")


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes. ``matrices``: (module name, inputs, outputs) of each linear layer but the output head.

    ``lookup``: parameters of an input table that no matrix product reads (0 where it is tied to the head).
    """

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    context: int | None
    lookup: int
    matrices: tuple[tuple[str, int, int], ...]


def new_shape(settings: NewModel, vocabulary: int | None = None) -> Shape:
    """The Llama of ``training.models.new_model``; ``vocabulary`` where the text was too little for the one asked for.

    parameters = V H (tied) + layers (4 H^2 + 3 H I + 2 H) + H, I = floor(8 H / 3) rounded down to a multiple of 8.
    """
    hidden, inner = settings.hidden, settings.hidden * 8 // 3 // 8 * 8
    words = settings.vocabulary if vocabulary is None else vocabulary
    layer = [(f"self_attn.{name}_proj", hidden, hidden) for name in "qkvo"]
    layer += [("mlp.gate_proj", hidden, inner), ("mlp.up_proj", hidden, inner), ("mlp.down_proj", inner, hidden)]
    matrices = tuple((f"layers.{i}.{name}", a, b) for i in range(settings.layers) for name, a, b in layer)
    total = words * hidden + sum(a * b for _, a, b in matrices) + (2 * settings.layers + 1) * hidden
    return Shape(total, settings.layers, hidden, inner, words, settings.context, 0, matrices)


def folder_shape(folder: Path) -> Shape:
    """A local model's sizes from config.json and the headers of its safetensors; no weight is read.

    Raises Refused on a file that is cut off or has no valid header, and on a config.json that is no JSON object.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = {**config, **config.get("text_config", {})}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Refused(
            f"model.base: {folder / 'config.json'} is no JSON object of settings ({error}); save the model again with "
            "save_pretrained"
        ) from None
    tensors: dict[str, list[int]] = {}
    for path in _weights(folder):
        tensors |= _header(path)
    total = sum(math.prod(shape) for shape in tensors.values())
    flat = {name.removesuffix(".weight"): s for name, s in tensors.items() if name.endswith(".weight") and len(s) == 2}
    linear = tuple((name, s[1], s[0]) for name, s in flat.items() if not any(word in name for word in _NO_LINEAR))
    untied = any("lm_head" in name for name in flat)
    table = max((math.prod(s) for name, s in flat.items() if "embed" in name or "wte" in name), default=0)

    def size(*names: str) -> int:
        return next((int(config[name]) for name in names if isinstance(config.get(name), int)), 0)

    hidden = size("hidden_size", "n_embd", "d_model")
    return Shape(
        total,
        size("num_hidden_layers", "n_layer", "num_layers"),
        hidden,
        size("intermediate_size", "n_inner", "ffn_dim") or 4 * hidden,
        size("vocab_size"),
        size("max_position_embeddings", "n_positions") or None,
        table if untied else 0,
        linear,
    )


def _weights(folder: Path) -> list[Path]:
    """The files that transformers reads: model.safetensors, else those of the index, else all there are."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        return [folder / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Refused(f"model.base: {index} names no weights in 'weight_map'; copy the model again") from None


def _header(path: Path) -> dict[str, list[int]]:
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= size - 8:
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        whole = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if size < whole:
            raise ValueError(f"{size:,} bytes of {whole:,} are there")
        return {name: [int(n) for n in entry["shape"]] for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise Refused(
            f"model.base: {path} is no whole safetensors file ({getattr(error, 'strerror', None) or error}); "
            "copy it again"
        ) from None


def trained_parameters(shape: Shape, lora: LoRA | None) -> int:
    """All parameters, or with LoRA the sum of rank (inputs + outputs) over the adapted linear layers."""
    if lora is None:
        return shape.parameters
    chosen = [
        (a, b)
        for name, a, b in shape.matrices
        if isinstance(lora.targets, str) or any(name == t or name.endswith(f".{t}") for t in lora.targets)
    ]
    return sum(lora.rank * (a + b) for a, b in chosen)


# ------------------------------------------------------------------------------------------------ tokens


def token_counter(texts: Sequence[str], vocabulary: int = 1024, folder: Path | None = None) -> Callable[[str], int]:
    """Counts a text's tokens, by the tokenizer in ``folder`` or by a BPE like a new model's, learnt from ``texts``.

    A folder without tokenizer.json is taken to have 3.5 characters a token.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if folder is not None:
        try:
            bpe = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception:  # the library raises bare exceptions; a real run explains what is wrong
            return lambda text: math.ceil(len(text) / 3.5)
    else:
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
        bpe.train_from_iterator(texts, trainer)
    return lambda text: len(bpe.encode(text, add_special_tokens=False).ids)


def row_tokens(count: Callable[[str], int], prompt: Iterable[Any], completions: Iterable[str], each: int = 2) -> int:
    """Tokens of a row: the prompt with its longest completion; ``each`` special tokens a message and three more."""
    longest = max((count(text) for text in completions), default=0)
    return 3 + sum(count(message.content) + each for message in prompt) + longest


def percentile(values: Sequence[int], share: float) -> int:
    """The smallest value that at least ``share`` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def padded_tokens(lengths: Sequence[int], batch: int, branches: int, budget: int) -> tuple[float, int]:
    """(padded tokens of a mean step, those of the largest micro-batch): random steps packed as in training.

    ``lengths``: tokens per row; a row of K branches takes K padded rows.
    """
    draw, few = random.Random(0), min(batch, 4096)
    totals, largest = [], 0
    for _ in range(max(1, min(32, 4096 // few))):
        micro: list[tuple[int, int]] = []  # (padded rows, width)
        for length in sorted(draw.choices(lengths, k=few), reverse=True):
            rows, width = micro[-1] if micro else (0, length)
            if micro and (rows + branches) * width <= budget:
                micro[-1] = (rows + branches, width)
            else:
                micro.append((branches, length))
        totals.append(sum(rows * width for rows, width in micro) * batch / few)
        largest = max(largest, *(rows * width for rows, width in micro))
    return sum(totals) / len(totals), largest


def optimiser_steps(settings: Optimiser, rows: int) -> int:
    return settings.steps or math.ceil(max(1, round(rows * (settings.epochs or 0))) / settings.batch)


# ------------------------------------------------------------------------------------------------ memory and disk


def training_memory(shape: Shape, trained: int, tokens: int, half: bool = False) -> int:
    """Peak of a training step, in bytes, for ``tokens`` padded tokens in the largest micro-batch.

    4 P (weights) + 4 T (gradients) + 8 T (AdamW) + 4 tokens layers (14 H + 4 I) (activations kept for the way back;
    half of that in bfloat16) + 12 tokens V (logits, their gradient, the float32 copy) + 700 MiB (Python and torch).
    """
    activations = _FLOAT * tokens * shape.layers * (14 * shape.hidden + 4 * shape.intermediate) // (2 if half else 1)
    return 4 * shape.parameters + 12 * trained + activations + 12 * tokens * shape.vocabulary + PROCESS


def run_disk(shape: Shape, trained: Sequence[int], models: int) -> int:
    """Bytes that a run adds: 4 P for each of ``models`` and for MLflow's copy, and two checkpoints of 12 T (weights and
    AdamW) of the step that trains most, with a third while it is being written."""
    return 4 * shape.parameters * (models + 1) + 3 * 12 * max(trained, default=0)


# ------------------------------------------------------------------------------------------------ time


def calibrate(seconds: float = 0.1) -> float:
    """FLOP/s of one CPU thread: the fastest of many float32 matrix products, too small for numpy to share out."""
    import numpy as np

    size = 96

    matrix = np.ones((size, size), np.float32)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - began)
    return float(2 * size**3 / best)


def training_seconds(shape: Shape, steps: float, tokens: float, width: int, speed: float, lora: bool = False) -> float:
    """``steps`` steps of ``tokens`` padded tokens at ``speed`` FLOP/s (all threads), without the process's start.

    A step: 6 N tokens (with LoRA 4 N) + 12 layers H width tokens FLOPs at EFFICIENCY of the speed, N the parameters
    that matrix products read (the head among them), plus 6 ms and 3 ms a layer for what is not arithmetic.
    """
    read = (4 if lora else 6) * (shape.parameters - shape.lookup)
    flops = tokens * (read + 12 * shape.layers * shape.hidden * width)
    return steps * (flops / (EFFICIENCY * speed) + 0.006 + 0.003 * shape.layers)


def training_cost(
    settings: Optimiser,
    rows: int,
    lengths: Sequence[int],
    branches: int,
    shape: Shape,
    profile: Profile,
    speed: float | None,
) -> dict[str, Any]:
    """What a training step over ``rows`` rows costs, as JSON; ``lengths`` are the tokens of some of them, uncut.

    With two branches (preferences) the reference's forward passes count as a third of a training pass over all rows;
    replayed rows count as rows of one branch. ``seconds`` is None where ``speed`` (FLOP/s) is not known.
    """
    cut = [min(length, settings.max_tokens) for length in lengths]
    steps = optimiser_steps(settings, rows)
    tokens, largest = padded_tokens(cut, settings.batch, branches, profile.token_budget)
    replay = getattr(settings, "replay", 0)
    reference = tokens * rows / settings.batch / 3 if branches > 1 else 0.0
    tokens += padded_tokens(cut, replay, 1, profile.token_budget)[0] if replay else 0.0
    trained, width = trained_parameters(shape, settings.lora), sum(cut) // len(cut)
    seconds = None
    if speed is not None:
        seconds = START + training_seconds(shape, steps, tokens, width, speed, settings.lora is not None)
        seconds += reference * 6 * shape.parameters / (EFFICIENCY * speed)
    return {
        "rows": rows,
        "visits": settings.steps * settings.batch if settings.steps else round(rows * (settings.epochs or 0)),
        "steps": steps,
        "batch": settings.batch,
        "width": width,
        "cut": sum(length > settings.max_tokens for length in lengths) / len(lengths),
        "tokens_per_step": round(tokens),
        "trained_parameters": trained,
        "memory": training_memory(shape, trained, largest, profile.dtype == "bfloat16"),
        "seconds": seconds,
    }


def benchmark_seconds(
    shape: Shape, models: int, items: int, benchmarks: int, samples: int, pairs: int, width: int, speed: float
) -> float:
    """``models`` models on ``items`` benchmark items in all, ``samples`` generated tokens one after the other, and
    ``pairs`` held-out pairs: forward passes of 2 N FLOPs a token, two rows of ``width`` tokens an item and a pair;
    4 ms + 2 ms a layer for a generated token; 0.4 s a benchmark; and the start of two processes."""
    read = 2 * (shape.parameters - shape.lookup) / (EFFICIENCY * speed)
    once = 2 * width * (items + pairs) * read + samples * (0.004 + 0.002 * shape.layers) + 0.4 * benchmarks
    return START + SUITE + models * once
