"""Do both sides train equally good policies? ``python -m tests.benchmarks.quality --data FOLDER --peer PYTHON``.

For each data set and seed a small Llama is warm-started on the preferred answers of the training rows; from it TRL and our
engine train by DPO, with the same settings and the same rows in every step. A plain forward pass of transformers judges
both on held-out rows: accuracy and mean of the margin ``beta (r_chosen - r_rejected)`` against the warm start. The seed
decides initial weights and order. Writes its section of RESULTS.md.
"""

import argparse
import hashlib
import json
import math
import random
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.demo import ROOT, machine, write_section
from tests.benchmarks.ours import Side, grouped, new, records, rows_of
from tests.benchmarks.peer import load
from tests.benchmarks.speed import BEST, COMMON, PEER
from training.data.encode import Encoded
from training.models import load_tokenizer

SETS = {"hh-rlhf harmless": "hh_harmless_base.jsonl.gz", "GSM8K graded": "gsm8k_graded.jsonl.gz"}
MAX_TOKENS, BATCH, BETA = 256, 16, 0.1
WARM = {"epochs": 2, "learning_rate": 2e-3}
ALIGN = {"epochs": 1, "learning_rate": 5e-4}


def held_out(row: Encoded) -> bool:
    """A quarter of the prompts, by their tokens: the same prompt is never on both sides."""
    return hashlib.sha256(str(row.prompt).encode()).digest()[0] < 64


def epoch_of(rows: list[Encoded], seed: int) -> list[list[int]]:
    """Length-grouped batches in random order: less padding for TRL, no curriculum for either."""
    batches = grouped(rows, BATCH, seed, 50 * BATCH)
    random.Random(seed).shuffle(batches)
    return batches


def job(
    rows: list[Encoded], model: Path, save: Path, how: dict[str, Any], seed: int, peer: bool, sft: bool
) -> dict[str, Any]:
    """The job of one side; both get the same batches."""
    batches = [one for epoch in range(how["epochs"]) for one in epoch_of(rows, 1000 * seed + epoch)]
    common = {"batches": batches, "model": str(model), "lora": None, "threads": 1, "device": "cpu", "free": True,
              "save": str(save), "scratch": str(save.with_name(f"{save.name}-scratch")),
              "kind": "sft" if sft else "preference"}  # fmt: skip
    if peer:
        settings = COMMON | BEST | {"learning_rate": how["learning_rate"], "max_steps": len(batches), "beta": BETA,
                                    "per_device_train_batch_size": BATCH, "bf16": False, "use_cpu": True,
                                    "output_dir": f"{save}-trl"}  # fmt: skip
        plain = [[list(row.prompt), *map(list, row.completions)] for row in rows]
        return common | {"rows": plain, "settings": settings}
    settings = {"steps": len(batches), "batch": BATCH, "learning_rate": how["learning_rate"], "schedule": "linear",
                "warmup": 0.0, "betas": [0.9, 0.999], "lora": None,
                **({} if sft else {"loss": {"name": "dpo", "beta": BETA}})}  # fmt: skip
    profile = {"device": "cpu", "dtype": "float32", "threads": 1, "checkpoint_seconds": 1e9, "layout": "shared"}
    return common | {"rows": [asdict(row) for row in rows], "settings": settings, "profile": profile}


def finish(sides: list[Side]) -> None:
    for side in sides:
        side.answer()
        side.end()


def totals(folder: Path, rows: Sequence[Encoded]) -> list[tuple[float, float]]:
    """Summed log-probabilities in nats of the chosen and the rejected completion, by transformers' own forward."""
    import torch

    model = load(str(folder), "cpu").eval()
    found: list[float] = []
    with torch.no_grad():
        for row in rows:
            for completion in row.completions:
                ids = torch.tensor([row.prompt + completion])
                logps = torch.log_softmax(model(ids).logits[0, len(row.prompt) - 1 : -1], dim=-1)
                found.append(float(logps.gather(1, torch.tensor(completion)[:, None]).double().sum()))
    return list(zip(found[::2], found[1::2], strict=True))


def margins(policy: list[tuple[float, float]], warm: list[tuple[float, float]]) -> list[float]:
    return [BETA * ((w - w0) - (r - r0)) for (w, r), (w0, r0) in zip(policy, warm, strict=True)]


def one(data: Path, peer: Path, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Margins on the held-out rows of both policies from one warm start."""
    found = records(data, SETS[name])
    new("small", seed, found, folder / "new")
    tokenizer = load_tokenizer(folder / "new")
    pairs = rows_of(found, tokenizer, "pairs", MAX_TOKENS)
    train, test = [row for row in pairs if not held_out(row)], [row for row in pairs if held_out(row)]
    prompts = {row.prompt for row in train}
    taught = [row for row in rows_of(found, tokenizer, "sft", MAX_TOKENS) if row.prompt in prompts]
    ours, theirs = [sys.executable, "-m", "tests.benchmarks.ours"], [str(peer), str(PEER)]
    warm = folder / "warm"
    finish([Side(ours, job(taught, folder / "new", warm, WARM, seed, peer=False, sft=True), folder / "warm-job")])
    finish(
        [
            Side(ours, job(train, warm, folder / "ours", ALIGN, seed, peer=False, sft=False), folder / "ours-job"),
            Side(theirs, job(train, warm, folder / "trl", ALIGN, seed, peer=True, sft=False), folder / "trl-job"),
        ]
    )
    start = totals(warm, test)
    return {
        "train": len(train),
        "ours": margins(totals(folder / "ours", test), start),
        "trl": margins(totals(folder / "trl", test), start),
    }


def accuracy(found: list[float]) -> list[float]:
    return [(margin > 0) + 0.5 * (margin == 0) for margin in found]


def error(values: Sequence[float]) -> float:
    """Standard error of a mean; of zeros and ones it is the binomial one."""
    return statistics.pstdev(values) / math.sqrt(len(values))


def row(name: str, seed: object, ours: list[float], trl: list[float]) -> str:
    """Percent and margins with standard errors; the difference's error is that of the paired differences."""
    a, b = accuracy(ours), accuracy(trl)
    paired = [x - y for x, y in zip(a, b, strict=True)]
    gap = statistics.mean(paired)
    return (
        f"| {name} | {seed} | {100 * statistics.mean(a):.1f} ± {100 * error(a):.1f} | "
        f"{100 * statistics.mean(b):.1f} ± {100 * error(b):.1f} | {100 * gap:+.2f} ± {100 * error(paired):.2f} | "
        f"{statistics.mean(ours):.4f} ± {error(ours):.4f} | {statistics.mean(trl):.4f} ± {error(trl):.4f} | "
        f"{'agree' if abs(gap) <= 2 * error(paired) + 1e-9 else '**DIFFER**'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer", type=Path, required=True, help="TRL's Python")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench" / "quality")
    given = parser.parse_args()
    shutil.rmtree(given.work, ignore_errors=True)
    lines = ["| data | seed | ours, accuracy | TRL | difference (paired) | ours, margin | TRL | |",
             "|---|---|---:|---:|---:|---:|---:|---|"]  # fmt: skip
    sizes = []
    began = time.monotonic()
    for name in SETS:
        every: dict[str, list[float]] = {"ours": [], "trl": []}
        for seed in map(int, given.seeds.split(",")):
            folder = given.work.absolute() / f"{SETS[name].partition('.')[0]}-{seed}"
            found = one(given.data.absolute(), given.peer.absolute(), name, seed, folder)
            (folder / "margins.json").write_text(json.dumps(found))
            lines.append(row(name, seed, found["ours"], found["trl"]))
            print(lines[-1], flush=True)
            for side, margin in every.items():
                margin += found[side]
        lines.append(row(name, "all", every["ours"], every["trl"]))
        sizes.append(f"{name} {found['train']} training and {len(found['ours'])} held-out pairs")
    body = [
        f"`make bench`, {time.monotonic() - began:.0f} s ({machine()}).",
        "",
        f"A Llama of 4 layers and width 128: {WARM['epochs']} epochs of SFT at {WARM['learning_rate']}, then",
        f"{ALIGN['epochs']} of DPO at {ALIGN['learning_rate']} (beta {BETA}, batches of {BATCH}, {MAX_TOKENS} tokens), by TRL",
        f"and by us from the same warm start. {'; '.join(sizes)}. Held-out accuracy in percent and mean margin, each ±",
        "its standard error; agree: the paired difference is within two of its own.",
        "",
        *lines,
    ]
    write_section("Quality against TRL", body)


if __name__ == "__main__":
    main()
