"""Twelve pairs and twelve examples, written as the snapshot and selection that a job reads; and jobs over them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.settings import Source
from training.data.snapshot import read_snapshot, write_snapshot
from training.data.split import Selected, write_selection
from training.settings import LoRA, PreferenceSettings, Profile, SFTSettings

WORDS = ("red", "green", "blue", "a cat", "two dogs", "the moon", "rain", "snow", "tea", "milk", "iron", "gold")
TEXTS = [f"Tell me about {word}. {word} is fine, I think; no, {word} is bad!" for word in WORDS]
LORA = LoRA(rank=2, alpha=4.0, dropout=0.2)


class Stopped(Exception):
    """Raised from ``log`` in place of a kill."""


@dataclass(frozen=True)
class Tiny:
    """``folder/base`` is the model, ``folder/sft`` and ``folder/preferences`` the snapshots."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def examples(self) -> dict[str, Any]:
        return {
            "parts": {"sft": str(self.folder / "sft")},
            "selection": str(self.folder / "sft.parquet"),
            "kind": "sft",
        }

    @property
    def pairs(self) -> dict[str, Any]:
        parts = {"preferences": str(self.folder / "preferences")}
        return {"parts": parts, "selection": str(self.folder / "preferences.parquet")}


def write_data(folder: Path) -> None:
    """Rows of different lengths and weights, so that nothing balances by accident."""
    rows: dict[str, list[dict[str, Any]]] = {"sft": [], "preferences": []}
    for i, word in enumerate(WORDS):
        good, bad = f"{word} is fine" + " indeed" * (i % 4), "no" + " no" * (i % 3)
        weight = 1.0 + 0.5 * (i % 3)
        rows["sft"].append({"prompt": f"Tell me about {word}.", "completion": good, "weight": weight})
        rows["preferences"].append({"prompt": f"What of {word}?", "chosen": good, "rejected": bad, "weight": weight})
    for part, lines in rows.items():
        (folder / f"{part}.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
        write_snapshot([Source(path=f"{part}.jsonl")], folder, folder / part)
        kept = [Selected(part, number, row.id, "train") for number, row in enumerate(read_snapshot(folder / part))]
        write_selection(kept, folder / f"{part}.parquet")


def profile(token_budget: int = 256) -> Profile:
    """Every step is saved."""
    return Profile(threads=1, token_budget=token_budget, checkpoint_seconds=1e-9)


def sft_settings(steps: int = 5, lora: LoRA | None = None, **other: Any) -> SFTSettings:
    return SFTSettings(**{"steps": steps, "batch": 4, "learning_rate": 1e-2, "max_tokens": 64, "lora": lora, **other})


def preference_settings(steps: int = 5, lora: LoRA | None = None, **other: Any) -> PreferenceSettings:
    given = {"steps": steps, "batch": 4, "learning_rate": 1e-2, "max_tokens": 64, "lora": lora, "loss": {"name": "dpo"}}
    return PreferenceSettings(**{**given, **other})


def job(tiny: Tiny, settings: Any, root: Path, output: str, **other: Any) -> dict[str, Any]:
    """Both kinds of job take the same keys; ``root`` holds checkpoints and output."""
    return {
        "settings": settings.model_dump_json(),
        "profile": profile().model_dump_json(),
        "seed": 3,
        "inputs": {"model": str(tiny.base), "examples": tiny.examples, "pairs": tiny.pairs},
        "checkpoints": str(root / f"checkpoints-{output}"),
        "objective": "this one",
        "output": str(root / output),
        **other,
    }


def stop_at(step: int, events: list[dict[str, Any]]) -> Callable[[dict[str, Any]], None]:
    """A ``log`` that keeps events and raises Stopped as the step's metrics come, before its checkpoint is written."""

    def log(event: dict[str, Any]) -> None:
        events.append(event)
        if event["type"] == "metrics" and event["step"] == step:
            raise Stopped

    return log


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def stored(root: Path, name: str, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lines as a snapshot of which all is selected for training."""
    (root / f"{name}.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    write_snapshot([Source(path=f"{name}.jsonl")], root, root / name)
    rows = list(read_snapshot(root / name))
    write_selection([Selected(name, i, row.id, "train") for i, row in enumerate(rows)], root / f"{name}.parquet")
    return {"parts": {name: str(root / name)}, "selection": str(root / f"{name}.parquet")}


def ratings_only(root: Path) -> dict[str, Any]:
    return stored(
        root,
        "ratings",
        [{"prompt": f"What is {i}?", "completions": [{"text": f"it is {i}", "label": i % 2 == 0}]} for i in range(8)],
    )
