"""The preference engine against TRL, on one machine: ``python -m tests.benchmarks.speed --data FOLDER --peer PYTHON``.

Both sides are processes that train on the same token ids, weights and batches. They are set up first, then take turns: a few
optimiser steps of one, then of the next, five times over, so that whatever else the machine does hits all alike. A ratio
is taken per turn; the table has its median, least and greatest. Writes its section of RESULTS.md.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.demo import ROOT, machine, write_section
from tests.benchmarks.ours import SEED, Side, Tokens, grouped, new, records, rows_of, shuffled, spread
from training.data.encode import Encoded
from training.models import load_tokenizer

PEER = Path(__file__).with_name("peer.py")
# What both sides are told, in TRL's words; everything else is TRL's default. ``sequential``: in the order given.
COMMON = {"learning_rate": 1e-5, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
          "train_sampling_strategy": "sequential", "seed": SEED, "output_dir": "trl"}  # fmt: skip
BEST = {"gradient_checkpointing": False, "precompute_ref_log_probs": True}
LORA = {"rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": "all-linear"}


@dataclass(frozen=True)
class Regime:
    """What is measured: ``rows`` (see ``Bench.rows``) in batches of ``batch``, ``steps`` of them a turn.

    ``bounds``: for every side that ours is compared with, how many times our time it must take (None: only told).
    Sides: TRL's ``default`` and ``best``; ``packed`` and ``padded`` are ours without sharing.
    """

    title: str
    bounds: dict[str, float | None]
    rows: str = "pairs"
    batch: int = 8
    steps: int = 4
    order: str = "grouped"
    lora: bool = False
    dtype: str = "float32"
    loss: dict[str, Any] = field(default_factory=lambda: {"name": "dpo", "beta": 0.1})


GROUPED = Regime("length-grouped batches of 8", {"best": 2.2, "default": None}, steps=4)
REGIMES = {
    "grouped": GROUPED,
    "random": Regime("random batches of 8", {"default": 5.0, "best": None}, order="random", steps=2),
    "long": Regime("long prompts", {"best": 2.5}, rows="long", steps=2),
    "short": Regime("short prompts", {"best": 1.8}, rows="short", steps=4),
    "lora": Regime("LoRA of rank 16 on all linear layers", {"best": 2.2, "default": None}, lora=True, steps=3),
    "bf16": Regime("bf16 autocast", {"best": None, "default": None}, dtype="bfloat16", steps=2),
    "two": Regime("batches of 2", {"best": None, "default": None}, batch=2, steps=6),
    "graded": Regime("4 graded completions, listwise, against no sharing", {"packed": 1.8, "padded": None},
                     rows="graded", steps=2, loss={"name": "listwise", "beta": 0.1}),
    "shots": Regime("the same behind two worked examples", {"packed": None, "padded": None},
                    rows="shots", steps=2, loss={"name": "listwise", "beta": 0.1}),
    "sft": Regime("SFT, batches of equal length", {"default": 1.4}, rows="sft", order="equal", steps=4),
    "sft-random": Regime("SFT, random batches", {"default": 1.4}, rows="sft", order="random", steps=3),
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """Where and on what everything is measured."""

    data: Path
    peer: Path | None
    work: Path
    repeats: int
    device: str
    dtype: str
    shape: str
    threads: int

    def model(self) -> Path:
        return self.work / f"model-{self.shape}"

    def rows(self, name: str) -> list[Encoded]:
        """``pairs``: hh-rlhf. ``short`` and ``long``: the third of it with the shortest, the longest prompts. ``sft``: its
        chosen answers. ``graded``: GSM8K with four graded solutions; ``shots``: the same, each question behind the prompts
        and first solutions of the two questions before it."""
        hh, gsm = records(self.data, "hh_harmless_base.jsonl.gz"), records(self.data, "gsm8k_graded.jsonl.gz")
        new(self.shape, SEED, [*hh, *gsm], self.model())
        tokenizer = load_tokenizer(self.model())
        if name == "sft":
            return rows_of(hh, tokenizer, "sft")
        if name in ("graded", "shots"):
            rows = rows_of(gsm, tokenizer, "graded")
            if name == "shots":
                shown = [row.prompt + row.completions[0] for row in rows]
                rows = [replace(row, prompt=shown[i - 2] + shown[i - 1] + row.prompt) for i, row in enumerate(rows)]
            return rows
        rows = sorted(rows_of(hh, tokenizer, "pairs"), key=lambda row: (len(row.prompt), row.record_id))
        third = len(rows) // 3
        return {"pairs": rows, "short": rows[:third], "long": rows[-third:]}[name]

    def batches(self, regime: Regime, rows: list[Encoded]) -> tuple[list[list[int]], list[list[int]]]:
        """All batches of the rows in the regime's order, and those of a turn."""
        batch = regime.batch * (4 if self.device == "cuda" else 1)
        if regime.order == "random":
            every = shuffled(rows, batch, SEED)
            return every, every[: regime.steps]
        every = grouped(rows, batch, SEED, len(rows) if regime.order == "equal" else 50 * batch)
        return every, spread(rows, every, regime.steps)

    def side(self, name: str, regime: Regime, rows: list[Encoded], batches: list[list[int]], **more: Any) -> Side:
        """Start one side on all of ``batches`` and wait until it is set up; ``more`` replaces parts of its job."""
        used = sorted({i for one in batches for i in one})
        place = {row: i for i, row in enumerate(used)}
        dtype = "bfloat16" if "bfloat16" in (regime.dtype, self.dtype) else "float32"
        sft = regime.rows == "sft"
        folder = self.work / "sides" / f"{time.time_ns()}-{name}"
        job: dict[str, Any] = {
            "kind": "sft" if sft else "preference",
            "model": str(self.model()),
            "batches": [[place[i] for i in one] for one in batches],
            "lora": LORA if regime.lora else None,
            "threads": self.threads,
            "device": self.device,
            "scratch": str(folder / "scratch"),
            "free": False,
            "save": None,
        }
        if name in ("best", "default"):
            assert self.peer is not None
            command = [str(self.peer), str(PEER)]
            job["rows"] = [[list(rows[i].prompt), *map(list, rows[i].completions)] for i in used]
            job["settings"] = COMMON | {
                "output_dir": str(folder / "trl"),
                "max_steps": len(batches),
                "per_device_train_batch_size": len(batches[0]),
                "bf16": dtype == "bfloat16",
                "use_cpu": self.device == "cpu",
            }
            job["settings"] |= BEST if name == "best" else {}
        else:
            command = [sys.executable, "-m", "tests.benchmarks.ours"]
            job["rows"] = [asdict(rows[i]) for i in used]
            job["settings"] = {"steps": len(batches), "batch": len(batches[0]), "learning_rate": COMMON["learning_rate"],
                               "schedule": "linear", "warmup": 0.0, "betas": [0.9, 0.999], "lora": job["lora"],
                               **({} if sft else {"loss": regime.loss})}  # fmt: skip
            job["profile"] = {"device": self.device, "dtype": dtype, "threads": self.threads,
                              "checkpoint_seconds": 1e9, "layout": "shared" if name == "ours" else name}  # fmt: skip
        return Side(command, job | more, folder)


# ------------------------------------------------------------------------------------------------ measuring


def measure(bench: Bench, regime: Regime) -> dict[str, Any]:
    """Seconds per side and turn, largest difference of the losses, tokens; all sides take turns."""
    rows = bench.rows(regime.rows)
    every, batches = bench.batches(regime, rows)
    warm = [batches[-1], batches[0]]
    order = warm + batches * bench.repeats
    names = ["ours", *(name for name in regime.bounds if bench.peer is not None or name not in ("best", "default"))]
    sides = {name: bench.side(name, regime, rows, order) for name in names}
    losses: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(bench.repeats + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            told = sides[name].go(len(batches) if turn else len(warm))
            losses[name] += told["losses"]
            if turn:
                seconds[name].append(told["seconds"])
    ends = {name: side.end() for name, side in sides.items()}
    gaps = {name: max(abs(a - b) for a, b in zip(losses["ours"], losses[name], strict=True)) for name in names[1:]}
    tokens = asdict(Tokens.of(rows, batches))
    theirs = [sum(end["padded"][: len(order)][len(warm) :]) for end in ends.values() if "padded" in end]
    assert all(count == tokens["padded"] * bench.repeats for count in theirs), "TRL padded other batches"
    tokens["computed"] = sum(ends["ours"]["tokens"][len(warm) :]) // bench.repeats
    whole = Tokens.of(rows, every)
    return {
        "seconds": seconds,
        "gaps": gaps,
        "tokens": tokens | {"padding": whole.padded / whole.unique},
        "steps": len(batches),
        "arguments": {name: side.ready["arguments"] for name, side in sides.items() if "arguments" in side.ready},
        "versions": next((side.ready["versions"] for side in sides.values() if "versions" in side.ready), {}),
        "layout": {name: side.ready["layout"] for name, side in sides.items() if "layout" in side.ready},
    }


def memory(bench: Bench) -> dict[str, Any]:
    """Bytes of peak memory above the loaded model, each side alone in a fresh process, three times."""
    rows = bench.rows("pairs")
    _, batches = bench.batches(GROUPED, rows)
    names = ["ours", *(["best", "default"] if bench.peer is not None else [])]
    found: dict[str, list[int]] = {name: [] for name in names}
    for _ in range(3):
        for name in names:
            side = bench.side(name, GROUPED, rows, batches, free=True)
            side.answer()
            found[name].append(side.end()["peak"])
    return {"bytes": found}


def second(bench: Bench) -> dict[str, Any]:
    """Seconds of two runs over the same rows and weights with other losses, and of their reference alone."""
    rows = bench.rows("pairs")
    batches = spread(rows, grouped(rows, GROUPED.batch, SEED, 50 * GROUPED.batch), 20)
    found = []
    for loss in ({"name": "dpo", "beta": 0.1}, {"name": "ipo", "tau": 0.1}):
        regime = replace(GROUPED, loss=loss)
        side = bench.side("ours", regime, rows, batches, free=True, scratch=str(bench.work / "second"))
        trained = side.answer()["seconds"]
        side.end()
        found.append({"loss": loss["name"], "reference": side.ready["reference"], "training": trained})
    return {"runs": found}


SINGLE = {"memory": memory, "second": second}


# ------------------------------------------------------------------------------------------------ telling


def ratios(found: dict[str, Any], name: str) -> list[float]:
    return [theirs / ours for ours, theirs in zip(found["seconds"]["ours"], found["seconds"][name], strict=True)]


def verdict(bound: float | None, holds: Callable[[float], bool]) -> str:
    return "" if bound is None else "holds" if holds(bound) else "**BROKEN**"


def tables(results: dict[str, Any]) -> list[str]:
    """Markdown: ratios with their bounds, then tokens."""
    names = {"best": "TRL best", "default": "TRL default", "packed": "ours, packed", "padded": "ours, padded"}
    times = ["| regime | against | bound | median | least–greatest | ours, s/step | largest loss difference | |",
             "|---|---|---:|---:|---|---:|---:|---|"]  # fmt: skip
    tokens = ["| regime | padded (TRL) | real | unique | computed by ours | padded/unique, of all batches |",
              "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    limits: list[str] = []
    for key, regime in REGIMES.items():
        if key not in results:
            continue
        found = results[key]
        step = statistics.median(found["seconds"]["ours"]) / found["steps"]
        for name, bound in regime.bounds.items():
            if name in found["seconds"]:
                each = ratios(found, name)
                median = statistics.median(each)
                times.append(
                    f"| {regime.title} | {names[name]} | {f'≥ {bound}' if bound else ''} | {median:.2f} | "
                    f"{min(each):.2f}–{max(each):.2f} | {step:.2f} | {found['gaps'][name]:.1e} | "
                    f"{verdict(bound, lambda least, median=median: median >= least)} |"
                )
        count = found["tokens"]
        tokens.append(
            f"| {regime.title} | {count['padded']:,} | {count['real']:,} | {count['unique']:,} | {count['computed']:,} | "
            f"{count['padding']:.2f} |"
        )
        if "packed" in regime.bounds:
            limits.append(
                f"{regime.title}: {count['real']:,} tokens without sharing are {count['computed']:,} with it, so that no "
                f"more than {count['real'] / count['computed']:.2f} times can be gained on the layout `packed`."
            )
    return [*times, "", *singles(results), "", "Tokens of the batches of one turn:", "", *tokens, "", *limits]


def singles(results: dict[str, Any]) -> list[str]:
    lines = []
    if "memory" in results:
        held = {name: statistics.median(values) / 2**20 for name, values in results["memory"]["bytes"].items()}
        shown = ", ".join(f"{name} {value:,.0f} MiB" for name, value in held.items())
        lines.append(f"Peak memory above the loaded model, each alone in a fresh process, median of three: {shown}.")
        if "best" in held:
            share = held["ours"] / held["best"]
            state = verdict(0.45, lambda most: share <= most)
            lines.append(f"Ours / TRL best: {share:.2f} (bound: at most 0.45; {state}).")
    if "second" in results:
        first, again = results["second"]["runs"]
        share = again["reference"] / (again["reference"] + again["training"])
        lines.append(
            f"The reference took {first['reference']:.1f} s of the first run ({first['loss']}, 160 pairs) and "
            f"{100 * share:.2f} % of the second ({again['loss']}; bound: below 2 %; "
            f"{verdict(0.02, lambda most: share < most)})."
        )
    return lines


def section(bench: Bench, results: dict[str, Any], command: str) -> list[str]:
    if bench.device == "cuda":
        import torch

        where = f"{time.strftime('%Y-%m-%d')}; {torch.cuda.get_device_name()}, torch {torch.__version__}"
    else:
        where = machine()
    versions = next((found["versions"] for found in results.values() if found.get("versions")), {})
    peers = ", ".join(f"{name} {value}" for name, value in versions.items()) or "not measured"
    times = sorted(found["at"] for found in results.values())
    told = ", ".join(f"`{key}`" for key in COMMON if key != "output_dir")
    missing = [name for name in (*REGIMES, *SINGLE) if name not in results]
    return [
        f"`{command}` ({where}). TRL's environment: {peers}.",
        f"{bench.threads} threads; model `{bench.shape}` with random weights; full fine-tuning in {bench.dtype} unless said;",
        f"{bench.repeats} turns, measured from {times[0]} to {times[-1]}. Ratios: the other's time over ours, turn by turn.",
        "",
        "TRL default: `DPOConfig()`, that is gradient checkpointing and an online reference, but `bf16` as ours. TRL best: no",
        f"checkpointing, reference precomputed. Both are given what ours has: {told}, the batch size, and batches",
        "of token ids. Batches of a turn stand at evenly spaced ranks of size among all length-grouped ones; random ones are the",
        "first. Long and short prompts: the thirds of the pairs with the longest and the shortest.",
        "",
        *tables(results),
        *(["", f"Not measured: {', '.join(missing)}."] if missing else []),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with hh_harmless_base.jsonl.gz")
    parser.add_argument("--peer", type=Path, help="TRL's Python; without it only ours is measured")
    parser.add_argument("--only", help=f"some of {','.join([*REGIMES, *SINGLE])}; the others keep their last results")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--shape", default="34m")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench")
    given = parser.parse_args()
    peer = given.peer.absolute() if given.peer is not None and given.peer.exists() else None
    if peer is None:
        print("TRL is not installed here: only ours is measured")
    threads = len(os.sched_getaffinity(0)) if given.device == "cpu" else 4
    work = given.work.absolute() / given.device
    bench = Bench(given.data.absolute(), peer, work, given.repeats, given.device, given.dtype, given.shape, threads)
    for old in ("sides", "second"):
        shutil.rmtree(work / old, ignore_errors=True)
    kept = work / "results.json"
    results = json.loads(kept.read_text()) if given.only and kept.exists() else {}
    for name in given.only.split(",") if given.only else [*REGIMES, *SINGLE]:
        began = time.monotonic()
        results[name] = SINGLE[name](bench) if name in SINGLE else measure(bench, REGIMES[name])
        results[name]["at"] = time.strftime("%Y-%m-%d %H:%M")
        kept.write_text(json.dumps(results))
        print(f"{name}: {time.monotonic() - began:.0f} s")
        for side, arguments in results[name].get("arguments", {}).items():
            print(f"TRL {side}, complete arguments: {json.dumps(arguments)}")
        print("\n".join(tables({name: results[name]})), flush=True)
    command = "make bench" if given.device == "cpu" else "make bench-gpu"
    if given.only:
        command = "python -m tests.benchmarks.speed --data FOLDER --peer PYTHON --only REGIME"
    write_section(f"Speed against TRL{'' if given.device == 'cpu' else ', on a GPU'}", section(bench, results, command))


if __name__ == "__main__":
    main()
