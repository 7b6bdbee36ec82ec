"""What a run will cost, before it starts: parameters, tokens, memory, disk, seconds. Plain arithmetic, no torch.

Counts of parameters are exact. Everything else is an estimate: within a factor of two on a machine that is otherwise
idle, and each function's docstring states its formula. All sizes are bytes, all times seconds.
"""

import math
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.shapes import Shape, trained_parameters
from training.data.batches import micro_batches
from training.data.encode import Encoded
from training.logps import CHUNK
from training.settings import Optimiser, Profile

START = 5.0  # a child process: Python, torch, transformers, the model
SUITE = 9.0  # the same with lm-eval
EFFICIENCY = 0.5  # share of a bare matrix product's speed that training reaches
PROCESS = 700 * 2**20  # Python with torch and transformers, before any model
_FLOAT = 4


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


@dataclass(frozen=True)
class Row:
    """Tokens of a prompt and of each of its completions, their closing token included."""

    prompt: int
    completions: tuple[int, ...]

    @property
    def longest(self) -> int:
        return self.prompt + max(self.completions, default=0)

    def cut(self, limit: int) -> "Row":
        """The row as training cuts it: the prompt gives way first, down to a quarter of ``limit``."""
        over = self.longest - limit
        if over <= 0:
            return self
        prompt = min(self.prompt, max(self.prompt - over, limit // 4))
        return Row(prompt, tuple(min(length, limit - prompt) for length in self.completions))

    @property
    def encoded(self) -> Encoded:
        """A row of these lengths, as the packing sees it."""
        return Encoded("", (0,) * self.prompt, tuple((0,) * length for length in self.completions))


def row_of(count: Callable[[str], int], prompt: Iterable[Any], completions: Iterable[str], each: int = 2) -> Row:
    """A row's tokens; ``each`` special tokens a message, two more around the prompt, one behind a completion."""
    return Row(2 + sum(count(m.content) + each for m in prompt), tuple(count(text) + 1 for text in completions))


def percentile(values: Sequence[int], share: float) -> int:
    """The smallest value that at least ``share`` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True)
class Load:
    """What the model computes: ``step`` tokens in a mean step, ``unique`` of them if no prompt were repeated and nothing
    padded; ``micro`` tokens in the largest micro-batch, ``predicted`` of which go through the output head."""

    step: float
    unique: float
    micro: int
    predicted: int


NOTHING = Load(0.0, 0.0, 0, 0)


def load_of(rows: Sequence[Row], batch: int, profile: Profile) -> Load:
    """Random steps of ``batch`` out of ``rows``, cut into micro-batches as training does it."""
    draw, few = random.Random(0), min(batch, 4096)
    encoded = [row.encoded for row in rows]
    costs: dict[str, Callable[[Encoded, Encoded], int]] = {
        "shared": lambda row, longest: row.unique,
        "packed": lambda row, longest: row.repeated,
        "padded": lambda row, longest: len(row.completions) * longest.longest,
    }
    cost = costs[profile.layout]
    totals, unique, micro, predicted = [], [], 0, 0
    for _ in range(max(1, min(32, 4096 // few))):
        chosen = draw.choices(encoded, k=few)
        cut = micro_batches(chosen, profile.token_budget, cost)
        sizes = [sum(cost(row, rows[0]) for row in rows) for rows in cut]
        totals.append(sum(sizes) * batch / few)
        unique.append(sum(row.unique for row in chosen) * batch / few)
        micro = max(micro, *sizes)
        ends = [sum(len(completion) for row in rows for completion in row.completions) for rows in cut]
        # The padded path gives every position to the output head.
        predicted = max(predicted, *(sizes if profile.layout == "padded" else ends))
    return Load(sum(totals) / len(totals), sum(unique) / len(unique), micro, predicted)


def optimiser_steps(settings: Optimiser, rows: int) -> int:
    return settings.steps or math.ceil(max(1, round(rows * (settings.epochs or 0))) / settings.batch)


# ------------------------------------------------------------------------------------------------ memory and disk


def training_memory(shape: Shape, trained: int, load: Load, profile: Profile, bits: int | None = None) -> int:
    """Peak of a training step in one process, in bytes.

    w P (weights) + w T (gradients) + 2 w T (AdamW), w = 4, or 2 in pure-bfloat16; 4-bit base weights take 0.6 P. Under FSDP
    each process holds its share of these. Activations kept for the way back: 4 t layers (14 H + 4 I) for t tokens in the
    largest micro-batch; half of that in bfloat16; with checkpointing 4 t H per layer and one whole layer. The output head:
    12 bytes a logit, of at most 2^24 logits at a time where the layout is packed. 700 MiB for Python and torch.
    """
    width = 2 if profile.dtype == "pure-bfloat16" else _FLOAT
    weights = int(0.6 * shape.parameters) if bits == 4 else width * shape.parameters
    state = weights + 3 * width * trained
    if profile.strategy == "fsdp":
        state //= profile.processes
    layer = _FLOAT * load.micro * (14 * shape.hidden + 4 * shape.intermediate)
    kept = shape.layers * layer
    if profile.activation_checkpointing:
        kept = _FLOAT * load.micro * shape.hidden * shape.layers + layer
    logits = load.predicted * shape.vocabulary
    if profile.layout != "padded":
        logits = min(logits, CHUNK)
    return state + kept // (1 if profile.dtype == "float32" else 2) + 12 * logits + PROCESS


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


def arithmetic(shape: Shape, tokens: float, width: int, passes: int) -> float:
    """FLOPs of ``tokens`` tokens: passes N + 2 passes layers H width each, N the parameters that matrix products read (the
    head among them). ``passes``: 2 forward only, 4 with frozen weights, 6 where all are trained."""
    return tokens * passes * (shape.parameters - shape.lookup + 2 * shape.layers * shape.hidden * width)


def training_seconds(shape: Shape, steps: float, flops: float, speed: float) -> float:
    """``steps`` steps of ``flops`` each at ``speed`` FLOP/s, of which training reaches EFFICIENCY, plus 6 ms and 3 ms a layer
    for what is not arithmetic; without the process's start."""
    return steps * (flops / (EFFICIENCY * speed) + 0.006 + 0.003 * shape.layers)


@dataclass(frozen=True)
class Passes:
    """What a preference step computes without a gradient. ``reference``: whether the log-probabilities of all rows under
    the reference are needed and not known yet; ``baseline``: whether every step scores its prompts with completions of
    other ones (KTO's z), under the policy and, where no earlier run has, under the reference."""

    reference: bool = False
    baseline: bool = False


def training_cost(
    settings: Optimiser,
    count: int,
    sample: Sequence[Row],
    shape: Shape,
    profile: Profile,
    speed: float | None,
    passes: Passes = Passes(),
    replayed: Sequence[Row] = (),
) -> dict[str, Any]:
    """What a training step over ``count`` rows costs, as JSON; ``sample`` are some of them, uncut.

    ``speed`` is that of all processes together in FLOP/s; ``seconds`` is None where it is not known.
    """
    rows = [row.cut(settings.max_tokens) for row in sample]
    steps = optimiser_steps(settings, count)
    load, replay, beside = load_of(rows, settings.batch, profile), NOTHING, int(getattr(settings, "replay", 0))
    if beside and replayed:
        replay = load_of([row.cut(settings.max_tokens) for row in replayed], beside, profile)
    trained = trained_parameters(shape, settings.lora)
    width = sum(row.longest for row in rows) // len(rows)
    seconds = None
    if speed is not None:
        both = load.step + replay.step
        flops = arithmetic(shape, both, width, 4 if settings.lora else 6)
        if profile.activation_checkpointing:
            flops += arithmetic(shape, both, width, 2)
        once = load.step * count / settings.batch if passes.reference else 0.0
        if passes.baseline:
            flops += arithmetic(shape, load.step, width, 2)
            once += load.step * steps if passes.reference else 0.0
        seconds = START * (1 if profile.processes == 1 else 2)
        seconds += training_seconds(shape, steps, flops, speed)
        seconds += arithmetic(shape, once, width, 2) / (EFFICIENCY * speed)
    largest = Load(0.0, 0.0, max(load.micro, replay.micro), max(load.predicted, replay.predicted))
    return {
        "rows": count,
        "visits": settings.steps * settings.batch if settings.steps else round(count * (settings.epochs or 0)),
        "steps": steps,
        "batch": settings.batch,
        "width": width,
        "cut": sum(row.longest > settings.max_tokens for row in sample) / len(sample),
        "tokens_per_step": round(load.step + replay.step),
        "unique_tokens_per_step": round(load.unique + replay.unique),
        "reference": passes.reference,
        "trained_parameters": trained,
        "memory": training_memory(shape, trained, largest, profile, settings.lora.bits if settings.lora else None),
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
