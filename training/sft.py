"""The supervised warm start: settings and paths in, a model directory out. Run as a job: ``training.sft``."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from training.data.batches import Plan, micro_batches, plan, set_aside, share_out
from training.data.encode import Encoded, Encoder, Encoding, encode_examples
from training.data.records import Example
from training.data.split import load_sft, sft_from_preferences
from training.loop import Log, Objective, Part, train
from training.losses.base import Logps
from training.metrics import floor_flops, model_sizes
from training.models import (
    load_model,
    load_tokenizer,
    on_whole_weights,
    prepare_torch,
    save_model,
    token_facts,
    with_lora,
)
from training.processes import World
from training.reference import score_rows
from training.scorer import Scorer, make_scorer
from training.settings import Optimiser, Profile, SFTSettings
from training.strict import Refused


class SFT:
    """Mean negative log-likelihood of the step's completion tokens, each row times its weight."""

    def __init__(
        self, rows: Sequence[Encoded], order: Plan, scorer: Scorer, profile: Profile, judged: Sequence[Encoded] = ()
    ) -> None:
        self.rows, self.order, self.scorer, self.profile, self.judged = rows, order, scorer, profile, judged
        self.steps = order.steps
        self.sizes = model_sizes(scorer.model)

    def _step(self, step: int) -> list[Encoded]:
        return [self.rows[i] for i in self.order.indices(step)]

    def records(self, step: int) -> list[str]:
        return [row.record_id for row in self._step(step)]

    def counts(self, step: int) -> dict[str, float]:
        """What a step holds: prompts, and the least floating-point operations that it takes."""
        rows = self._step(step)
        return {"prompts": len(rows), "flops": floor_flops(rows, self.sizes)}

    def begin(self, model: Any, world: World) -> None:
        """Nothing has to be known before the first step."""

    def parts(self, model: Any, step: int, budget: int, world: World) -> list[Callable[[], Part]]:
        rows = self._step(step)
        whole = sum(row.weight * len(row.completions[0]) for row in rows)
        return [
            partial(nll_part, model, self.scorer, micro, whole, 1.0, "nll", False)
            for micro in share_out(micro_batches(rows, budget, self.scorer.path.tokens), world.size)[world.rank]
        ]

    def judge(self, model: Any, budget: int, world: World) -> float:
        """Mean log-probability in nats per token of the rows that were set aside."""
        totals = score_rows(model, self.scorer, self.judged, self.profile, world, budget)
        weighted = sum(row.weight * float(total) for row, total in zip(self.judged, totals, strict=True))
        return weighted / sum(row.weight * len(row.completions[0]) for row in self.judged)


def nll_parts(
    model: Any, scorer: Scorer, rows: Sequence[Encoded], budget: int, world: World, factor: float, name: str
) -> list[Callable[[], Part]]:
    """``factor`` times the weighted mean over ``rows`` of each row's mean NLL per token."""
    whole = sum(row.weight for row in rows)
    cut = micro_batches(rows, budget, scorer.path.tokens)
    return [
        partial(nll_part, model, scorer, micro, whole, factor, name, True)
        for micro in share_out(cut, world.size)[world.rank]
    ]


def nll_part(
    model: Any, scorer: Scorer, micro: Sequence[Encoded], whole: float, factor: float, name: str, per_token: bool
) -> Part:
    """One micro-batch's ``factor * sum(weight * nll) / whole``; ``per_token`` takes each row's mean over its tokens."""
    import torch

    batch = scorer.batch(micro)
    logps = Logps(*model(batch))
    weight = torch.tensor([row.weight for row in micro], device=logps.total.device)
    nll = -(weight * (logps.mean if per_token else logps.total)).sum() / whole
    return Part(factor * nll, {name: float(nll.detach())}, batch.tokens)


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


def judges(rows: Sequence[Encoded], settings: Optimiser) -> tuple[Sequence[Encoded], Sequence[Encoded]]:
    """(rows to train on, rows to judge an early stop on). Raises Refused where one of them would be empty."""
    if settings.early_stop is None:
        return rows, ()
    kept, judged = set_aside(rows, settings.early_stop.share)
    if not kept or not judged:
        raise Refused(
            f"early_stop.share {settings.early_stop.share:g} of {len(rows)} rows leaves {len(kept)} to train on and "
            f"{len(judged)} to judge; change the share, or take early_stop out"
        )
    return kept, judged


def finish(
    job: dict[str, Any],
    log: Log,
    settings: Optimiser,
    profile: Profile,
    world: World,
    scorer: Scorer,
    objective: Objective,
    tokenizer: Any,
) -> None:
    """Train, and let the main process write the model."""
    trained = train(
        scorer, objective, settings, profile, job["seed"], job["objective"], Path(job["checkpoints"]), log, world,
        job.get("token_budgets"),
    )  # fmt: skip
    if world.main:
        model = on_whole_weights(trained.release(), settings.lora, Path(job["inputs"]["model"]))
        save_model(model, tokenizer, Path(job["output"]))
    world.wait()


def run(job: dict[str, Any], log: Log) -> None:
    """``inputs``: model, examples (see ``load_examples``); ``output``: the warm start's directory."""
    settings = SFTSettings.model_validate_json(job["settings"])
    profile = Profile.model_validate_json(job["profile"])
    prepare_torch(profile)
    world = World.current(profile)
    source = Path(job["inputs"]["model"])
    tokenizer = load_tokenizer(source)
    rows = encode_sft(load_examples(job["inputs"]["examples"]), tokenizer, settings.max_tokens, log).rows
    kept, judged = judges(rows, settings)
    order = plan(job["seed"], len(kept), settings.batch, steps=settings.steps, epochs=settings.epochs)
    model = with_lora(load_model(source, profile, settings.lora), settings.lora, job["seed"])
    log({"type": "facts", "facts": token_facts(model)})
    scorer = make_scorer(model, rows, profile, log)
    objective = SFT(kept, order, scorer, profile, judged)
    finish(job, log, settings, profile, world, scorer, objective, tokenizer)
