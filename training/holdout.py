"""Log-probabilities of held-out preferences under each model: the raw facts of their scores. A job: ``training.holdout``."""

from pathlib import Path
from typing import Any

from training.data import views
from training.data.encode import Encoder, encode_records
from training.digest import canonical_json
from training.loop import Log
from training.models import load_model, load_tokenizer, prepare_torch
from training.preference import load_split
from training.processes import World
from training.reference import score_rows
from training.scorer import make_scorer
from training.settings import Profile


def run(job: dict[str, Any], log: Log) -> None:
    """``inputs``: models by label, pairs; ``outputs``: a folder per label, written whole: ``logps.jsonl``.

    A line per pair: record, chosen and rejected totals in nats, their lengths in tokens. Of a record without a pair, a line per
    labelled completion: record, nats, length, desirable.
    """
    profile = Profile.model_validate_json(job["profile"])
    prepare_torch(profile)
    records = load_split(job["inputs"]["pairs"], "holdout")
    for done, (label, output) in enumerate(job["outputs"].items()):
        folder = Path(job["inputs"]["models"][label])
        encoder = Encoder(load_tokenizer(folder), job["max_tokens"])
        rows = encode_records(encoder, records, lambda row: bool(views.pairs(row)) or row.kind == "label").rows
        lines = []
        if rows:
            scorer = make_scorer(load_model(folder, profile), rows, profile, log)
            for row, totals in zip(rows, score_rows(scorer, scorer, rows, profile, World()), strict=True):
                nats, lengths = totals.tolist(), [len(completion) for completion in row.completions]
                facts: list[dict[str, Any]] = [
                    {
                        "chosen": nats[i],
                        "rejected": nats[j],
                        "chosen_length": lengths[i],
                        "rejected_length": lengths[j],
                    }
                    for i, j in views.pairs(row)
                ]
                if not facts:
                    rated = views.ratings(row, None)
                    facts = [{"nats": nats[i], "length": lengths[i], "desirable": good} for i, good in rated]
                lines += [canonical_json({"record": row.record_id, **fact}) for fact in facts]
        partial = Path(output).with_name(f".partial-{Path(output).name}")
        partial.mkdir(parents=True, exist_ok=True)
        (partial / "logps.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
        partial.rename(output)
        log(
            {
                "type": "progress",
                "done": done + 1,
                "total": len(job["outputs"]),
                "message": f"held-out preferences, {label}",
            }
        )
