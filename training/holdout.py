"""Log-probabilities of held-out pairs under each model: the raw facts of preference accuracy. A job: ``training.holdout``."""

from pathlib import Path
from typing import Any

from training.data.encode import Encoder, encode_pairs
from training.digest import canonical_json
from training.loop import Log
from training.models import load_model, load_tokenizer, prepare_torch
from training.preference import pairs_of
from training.reference import score_pairs
from training.settings import Profile


def run(job: dict[str, Any], log: Log) -> None:
    """``inputs``: models by label, pairs; ``outputs``: a folder per label, written whole: ``logps.jsonl``.

    A line: record, chosen and rejected totals in nats, their lengths in tokens.
    """
    profile = Profile.model_validate_json(job["profile"])
    prepare_torch(profile)
    pairs = pairs_of(job["inputs"]["pairs"], "holdout")
    for done, (label, output) in enumerate(job["outputs"].items()):
        folder = Path(job["inputs"]["models"][label])
        encoding = encode_pairs(Encoder(load_tokenizer(folder), job["max_tokens"]), pairs)
        scored = score_pairs(load_model(folder, profile), encoding.rows, profile)
        (chosen, chosen_length), (rejected, rejected_length) = scored["chosen"], scored["rejected"]
        columns = zip(
            encoding.rows, *(t.tolist() for t in (chosen, rejected, chosen_length, rejected_length)), strict=True
        )
        lines = [
            canonical_json(
                {"record": row.record_id, "chosen": c, "rejected": r, "chosen_length": cl, "rejected_length": rl}
            )
            for row, c, r, cl, rl in columns
        ]
        partial = Path(output).with_name(f".partial-{Path(output).name}")
        partial.mkdir(parents=True, exist_ok=True)
        (partial / "logps.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        partial.rename(output)
        log({"type": "progress", "done": done + 1, "total": len(job["outputs"]), "message": f"held-out pairs, {label}"})
