"""The supervised warm start: settings and paths in, a model directory out. Run as a job: ``training.sft``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training.data.batches import Plan, micro_batches, plan
from training.data.encode import Encoded, Encoder, Encoding, encode_examples
from training.data.records import Example
from training.data.split import load_sft, sft_from_preferences
from training.logps import branches, completion_logps, pad
from training.loop import Log, Part, train
from training.models import load_model, load_tokenizer, prepare_torch, save_model, token_facts, with_lora
from training.settings import Profile, Refused, SFTSettings


class SFT:
    """Mean negative log-likelihood of the step's completion tokens, each row times its weight."""

    def __init__(self, rows: Sequence[Encoded], order: Plan, token_budget: int, device: str) -> None:
        self.rows, self.order, self.token_budget, self.device = rows, order, token_budget, device
        self.steps = order.steps

    def _step(self, step: int) -> list[Encoded]:
        return [self.rows[i] for i in self.order.indices(step)]

    def records(self, step: int) -> list[str]:
        return [row.record_id for row in self._step(step)]

    def parts(self, model: Any, step: int) -> Iterator[Part]:
        rows = self._step(step)
        whole = sum(row.weight * len(row.completions[0]) for row in rows)
        for micro in micro_batches(rows, self.token_budget):
            yield nll_part(model, micro, whole, self.device)


def nll_part(model: Any, micro: Sequence[Encoded], whole: float, device: str, per_token: bool = False) -> Part:
    """One micro-batch's ``sum(weight * nll) / whole``; ``per_token`` takes each row's mean over its tokens instead."""
    import torch

    batch = pad(branches(micro, 0), device)
    logps = completion_logps(model, batch)
    weight = torch.tensor([row.weight for row in micro], device=device)
    loss = -(weight * (logps.mean if per_token else logps.total)).sum() / whole
    return Part(loss, {"nll": float(loss.detach())}, batch.tokens)


def load_examples(where: dict[str, Any]) -> list[Example]:
    """``where``: ``parts`` (snapshot folders), ``selection``, and ``kind``: whether SFT or preference records teach."""
    load = {"sft": load_sft, "preferences": sft_from_preferences}[where["kind"]]
    return load({name: Path(path) for name, path in where["parts"].items()}, Path(where["selection"]))


def encode_sft(examples: Sequence[Example], tokenizer: Any, max_tokens: int, log: Log) -> Encoding:
    """Token ids of the SFT rows. Raises Refused where none is left."""
    encoding = encode_examples(Encoder(tokenizer, max_tokens), examples)
    log({"type": "facts", "facts": {f"sft_{key}": value for key, value in encoding.facts.items()}})
    if not encoding.rows:
        raise Refused(
            f"no SFT row is left of {len(examples)} after cutting to max_tokens {max_tokens}; raise max_tokens"
        )
    return encoding


def run(job: dict[str, Any], log: Log) -> None:
    """``inputs``: model, examples (see ``load_examples``); ``output``: the warm start's directory."""
    settings = SFTSettings.model_validate_json(job["settings"])
    profile = Profile.model_validate_json(job["profile"])
    prepare_torch(profile)
    model = load_model(Path(job["inputs"]["model"]), profile)
    tokenizer = load_tokenizer(Path(job["inputs"]["model"]))
    examples = load_examples(job["inputs"]["examples"])
    rows = encode_sft(examples, tokenizer, settings.max_tokens, log).rows
    order = plan(job["seed"], len(rows), settings.batch, steps=settings.steps, epochs=settings.epochs)
    objective = SFT(rows, order, profile.token_budget, profile.device)
    model = with_lora(model, settings.lora, job["seed"])
    log({"type": "facts", "facts": token_facts(model)})
    folder = Path(job["checkpoints"])
    model = train(model, objective, settings, profile, job["seed"], job["objective"], folder, log)
    save_model(model, tokenizer, Path(job["output"]))
