"""Preference optimization: settings and paths in, a policy directory out. Run as a job: ``training.preference``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.batches import Plan, micro_batches, plan
from training.data.encode import Encoded, Encoder, encode_pairs
from training.data.records import Pair
from training.data.split import Split, load_pairs
from training.logps import branches, completion_logps, pad
from training.loop import Log, Part, train
from training.losses.base import Logps, PairLogps
from training.metrics import pair_metrics
from training.models import load_model, load_tokenizer, prepare_torch, save_model, token_facts, with_lora
from training.reference import check_start, reference_totals
from training.settings import PreferenceSettings, Profile, Refused
from training.sft import encode_sft, load_examples, nll_part

if TYPE_CHECKING:
    from torch import Tensor


class Preference:
    """``sum w (loss + sft_weight * nll(chosen)/|chosen|) / sum w`` over a step's pairs, plus the replayed rows' NLL."""

    def __init__(
        self,
        settings: PreferenceSettings,
        pairs: Sequence[Encoded],
        totals: "Tensor",
        replay: Sequence[Encoded],
        order: Plan,
        profile: Profile,
    ) -> None:
        self.settings, self.pairs, self.totals, self.replay = settings, pairs, totals, replay
        self.order, self.profile, self.steps = order, profile, order.steps
        # Its own seed: the replayed rows must not follow the order in which the warm start saw them.
        self.replay_order = plan(order.seed + 1, len(replay), settings.replay, steps=self.steps, epochs=None)

    def records(self, step: int) -> list[str]:
        pairs = [self.pairs[i].record_id for i in self.order.indices(step)]
        return pairs + [row.record_id for row in self._replayed(step)]

    def _replayed(self, step: int) -> list[Encoded]:
        return [self.replay[i] for i in self.replay_order.indices(step)] if self.settings.replay else []

    def parts(self, model: Any, step: int) -> Iterator[Part]:
        index = {id(self.pairs[i]): i for i in self.order.indices(step)}
        pairs = [self.pairs[i] for i in self.order.indices(step)]  # twice the same one, where an epoch ends in the step
        whole = sum(row.weight for row in pairs)
        for micro in micro_batches(pairs, self.profile.token_budget):
            yield self._pairs_part(model, micro, [index[id(row)] for row in micro], whole)
        replayed = self._replayed(step)
        whole = sum(row.weight for row in replayed) / self.settings.replay_weight
        for micro in micro_batches(replayed, self.profile.token_budget):
            part = nll_part(model, micro, whole, self.profile.device, per_token=True)
            yield Part(part.loss, {"replay_nll": part.sums["nll"] / self.settings.replay_weight}, part.tokens)

    def _pairs_part(self, model: Any, micro: Sequence[Encoded], index: list[int], whole: float) -> Part:
        import torch

        device, n = self.profile.device, len(micro)
        batch = pad(branches(micro, 0) + branches(micro, 1), device)
        logps = completion_logps(model, batch)
        policy = PairLogps(Logps(logps.total[:n], logps.length[:n]), Logps(logps.total[n:], logps.length[n:]))
        totals = self.totals[index].to(device)
        reference = PairLogps(Logps(totals[:, 0], logps.length[:n]), Logps(totals[:, 1], logps.length[n:]))
        weight = torch.tensor([row.weight for row in micro], device=device) / whole
        nll = -policy.chosen.mean
        loss = (weight * (self.settings.loss(policy, reference) + self.settings.sft_weight * nll)).sum()
        values = {**pair_metrics(policy, reference, self.settings.loss.beta), "nll/chosen": nll.detach()}
        return Part(loss, {key: float((weight * value).sum()) for key, value in values.items()}, batch.tokens)


def pairs_of(where: dict[str, Any], split: Split) -> list[Pair]:
    """``where``: ``parts`` (snapshot folders by name) and ``selection``."""
    return load_pairs({name: Path(path) for name, path in where["parts"].items()}, Path(where["selection"]), split)


def run(job: dict[str, Any], log: Log) -> None:
    """``inputs``: model (the warm start), pairs, examples (for the replay); ``output``: the policy's directory."""
    settings = PreferenceSettings.model_validate_json(job["settings"])
    profile = Profile.model_validate_json(job["profile"])
    prepare_torch(profile)
    model = load_model(Path(job["inputs"]["model"]), profile)
    tokenizer = load_tokenizer(Path(job["inputs"]["model"]))
    encoding = encode_pairs(Encoder(tokenizer, settings.max_tokens), pairs_of(job["inputs"]["pairs"], "train"))
    log({"type": "facts", "facts": {f"pairs_{key}": value for key, value in encoding.facts.items()}})
    if not encoding.rows:
        raise Refused(f"no pair is left after cutting to max_tokens {settings.max_tokens}; raise max_tokens")
    replay: Sequence[Encoded] = ()
    if settings.replay:
        replay = encode_sft(load_examples(job["inputs"]["examples"]), tokenizer, settings.max_tokens, log).rows
    folder = Path(job["checkpoints"])
    cache = folder / "reference.safetensors"
    totals = reference_totals(model, encoding.rows, profile, cache)
    model = with_lora(model, settings.lora, job["seed"])
    log({"type": "facts", "facts": token_facts(model)})
    worst = check_start(model, encoding.rows, totals, profile)
    log({"type": "facts", "facts": {"log_ratio_at_start": worst}})
    order = plan(job["seed"], len(encoding.rows), settings.batch, steps=settings.steps, epochs=settings.epochs)
    objective = Preference(settings, encoding.rows, totals, replay, order, profile)
    model = train(model, objective, settings, profile, job["seed"], job["objective"], folder, log)
    save_model(model, tokenizer, Path(job["output"]))
