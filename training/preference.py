"""Preference optimization: settings and paths in, a policy directory out. Run as a job: ``training.preference``."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data import views
from training.data.batches import Plan, micro_batches, plan, share_out
from training.data.encode import Encoded, Encoder, Encoding, encode_records
from training.data.records import Record
from training.data.split import Split, load_records
from training.loop import Log, Part
from training.losses.base import Logps
from training.losses.kto import baseline
from training.metrics import data_facts, floor_flops, model_sizes, pair_metrics, rating_metrics
from training.models import load_model, load_tokenizer, prepare_torch, token_facts, with_lora
from training.processes import World
from training.reference import Cache, check_start, keys, model_digest, reference_totals, score_rows
from training.scorer import Scorer, make_scorer, without_adapters
from training.settings import PreferenceSettings, Profile
from training.sft import encode_sft, finish, judges, load_examples, nll_parts
from training.strict import Refused
from training.terms import Flat, Pairs, Ratings, View, preferred, view_of, why_not

if TYPE_CHECKING:
    from torch import Tensor


class Preference:
    """The sum over terms of ``coefficient * sum w loss / sum w`` over a step's rows, plus ``sft_weight`` times the mean
    NLL of the preferred completions, plus ``replay_weight`` times that of the replayed SFT rows."""

    def __init__(
        self,
        settings: PreferenceSettings,
        rows: Sequence[Encoded],
        replay: Sequence[Encoded],
        order: Plan,
        scorer: Scorer,
        profile: Profile,
        caches: Sequence[Cache] = (),
        log: Log = lambda event: None,
        judged: Sequence[Encoded] = (),
    ) -> None:
        """``judged`` are rows set aside: their margin decides an early stop. ``caches`` hold reference totals."""
        self.settings, self.rows, self.replay, self.order = settings, rows, replay, order
        self.scorer, self.profile, self.caches, self.log, self.judged = scorer, profile, caches, log, judged
        self.steps = order.steps
        self.terms = [(term, view_of(term.loss, settings.desirable_from)) for term in settings.terms]
        self.main: View = self.terms[0][1]
        self.needs_reference = any(term.loss.needs_reference for term in settings.terms)
        self.needs_baseline = any(term.loss.needs_baseline for term in settings.terms)
        self.paired = any(Pairs().weight(row) for row in rows)
        self.scale = settings.loss.reward_scale
        # Its own seed: the replayed rows must not follow the order in which the warm start saw them.
        self.replay_order = plan(order.seed + 1, len(replay), settings.replay, steps=self.steps, epochs=None)
        self.totals: dict[bytes, float] = {}
        self.sizes = model_sizes(scorer.model)

    # ------------------------------------------------------------------------------------------------ rows of a step

    def records(self, step: int) -> list[str]:
        return [row.record_id for row in [*self._step(step), *self._replayed(step)]]

    def _step(self, step: int) -> list[Encoded]:
        return [self.rows[i] for i in self.order.indices(step)]

    def _replayed(self, step: int) -> list[Encoded]:
        return [self.replay[i] for i in self.replay_order.indices(step)] if self.settings.replay else []

    def counts(self, step: int) -> dict[str, float]:
        """What a step holds: prompts, pairs, and the least floating-point operations that it takes."""
        rows, replayed, mismatched = self._step(step), self._replayed(step), self._mismatched(step)
        flops = floor_flops([*rows, *replayed], self.sizes) + floor_flops(mismatched, self.sizes, trained=False)
        return {"prompts": len(rows), "pairs": sum(len(views.pairs(row)) for row in rows), "flops": flops}

    # ------------------------------------------------------------------------------------------------ reference

    def begin(self, model: Any, world: World) -> None:
        """Before the first step, while the policy still is the initial one: the reference, and that it is the same model."""
        if not self.needs_reference:
            return
        rows = [*self.rows, *self.judged]
        covered = {key for row in rows for key in keys(row)}
        for row in (row for step in range(self.steps) for row in self._mismatched(step)):
            for key, completion in zip(keys(row), row.completions, strict=True):
                if key not in covered:
                    covered.add(key)
                    rows.append(Encoded(row.record_id, row.prompt, (completion,)))
        with without_adapters(self.scorer.model):
            self.totals = reference_totals(model, self.scorer, rows, self.profile, world, self.caches, self.log)
        worst = check_start(model, self.scorer, self.rows, self.totals, self.profile, world)
        self.log({"type": "facts", "facts": {"log_ratio_at_start": worst}})

    def _reference(self, rows: Sequence[Encoded], device: Any) -> "Tensor | None":
        import torch

        if not self.needs_reference:
            return None
        return torch.tensor([self.totals[key] for row in rows for key in keys(row)], device=device)

    def _mismatched(self, step: int) -> list[Encoded]:
        """Every rated prompt with completions of the next different prompt in the step, one for each of its ratings."""
        if not self.needs_baseline:
            return []
        view = next(view for term, view in self.terms if term.loss.needs_baseline)
        assert isinstance(view, Ratings)
        rated = [(row, [place for place, _ in view.rated(row)]) for row in self._step(step) if view.weight(row)]
        found = []
        for i, (row, places) in enumerate(rated):
            others = (rated[(i + n) % len(rated)] for n in range(1, len(rated)))
            other = next((other for other in others if other[0].prompt != row.prompt), None)
            if other is None:
                continue
            room = max(1, self.settings.max_tokens - len(row.prompt))
            borrowed = [other[0].completions[other[1][k % len(other[1])]][:room] for k in range(len(places))]
            found.append(Encoded(row.record_id, row.prompt, tuple(borrowed)))
        return found

    def _baseline(self, model: Any, step: int, budget: int, world: World) -> "Tensor | None":
        """KTO's z over the global batch, in nats, before any gradient; 0 where all prompts of the step are the same."""
        import torch

        if not self.needs_baseline:
            return None
        rows = self._mismatched(step)
        device = next(self.scorer.parameters()).device
        if not rows:
            return torch.zeros((), device=device)
        scored = torch.cat(score_rows(model, self.scorer, rows, self.profile, world, budget))
        ratios = scored - torch.tensor([self.totals[key] for row in rows for key in keys(row)])
        return baseline(ratios).to(device)

    # ------------------------------------------------------------------------------------------------ a step

    def parts(self, model: Any, step: int, budget: int, world: World) -> list[Callable[[], Part]]:
        rows = self._step(step)
        whole = [sum(view.weight(row) for row in rows) for _, view in self.terms]
        z = self._baseline(model, step, budget, world)
        norms = self._norms(rows)
        cut = micro_batches(rows, budget, self.scorer.path.tokens)
        found = [partial(self._part, model, micro, whole, norms, z) for micro in share_out(cut, world.size)[world.rank]]
        return found + nll_parts(
            model, self.scorer, self._replayed(step), budget, world, self.settings.replay_weight, "replay_nll"
        )

    def _norms(self, rows: Sequence[Encoded]) -> dict[str, float]:
        """What the sums of a step's metrics are divided by."""
        rated = [rating for row in rows for rating in self._rated(row)]
        return {
            "rows": len(rows),
            "preferred": sum(weight for row in rows for _, weight in self.main.preferred(row)),
            "pairs": sum(Pairs().weight(row) for row in rows),
            "chosen": sum(weight for _, desirable, weight in rated if desirable),
            "rejected": sum(weight for _, desirable, weight in rated if not desirable),
        }

    def _rated(self, row: Encoded) -> list[tuple[int, bool, float]]:
        if self.paired or not isinstance(self.main, Ratings):
            return []
        return [(place, desirable, row.weight) for place, desirable in self.main.rated(row)]

    def _part(
        self, model: Any, micro: Sequence[Encoded], whole: list[float], norms: dict[str, float], z: "Tensor | None"
    ) -> Part:
        import torch

        batch = self.scorer.batch(micro)
        policy = Logps(*model(batch))
        flat = Flat(policy, self._reference(micro, policy.total.device), z)
        total = policy.total.sum() * 0.0  # so that every micro-batch has a gradient, an idle one too
        for (term, view), weight_of_step in zip(self.terms, whole, strict=True):
            if weight_of_step:
                losses, weight = view.losses(term.loss, micro, flat)
                total = total + term.coefficient * (weight * losses).sum() / weight_of_step
        sums = self._metrics(micro, flat, norms)
        if norms["preferred"]:
            nll = self._nll(micro, policy) / norms["preferred"]
            if self.settings.sft_weight:
                total = total + self.settings.sft_weight * nll
            sums["nll/chosen"] = nll.detach()
        if z is not None:
            sums["kl_baseline"] = z * sum(row.weight > 0 for row in micro) / norms["rows"]
        # In one transfer: each would wait for the device by itself.
        numbers = torch.stack(list(sums.values())).tolist() if sums else []
        return Part(total, dict(zip(sums, numbers, strict=True)), batch.tokens)

    def _nll(self, micro: Sequence[Encoded], policy: Logps) -> "Tensor":
        """Weighted sum of the preferred completions' NLL per token."""
        import torch

        likely = preferred(self.main, micro)
        places = torch.tensor([place for place, _ in likely], dtype=torch.long, device=policy.total.device)
        weight = torch.tensor([weight for _, weight in likely], dtype=torch.float32, device=policy.total.device)
        return -(weight * policy.mean[places]).sum()

    def _metrics(self, micro: Sequence[Encoded], flat: Flat, norms: dict[str, float]) -> dict[str, "Tensor"]:
        """This micro-batch's share of the step's means, from log-ratios alone."""
        if self.paired:
            if not norms["pairs"]:
                return {}
            policy, reference, weight = Pairs().pairs(micro, flat)
            values = pair_metrics(policy, reference, self.scale)
            return {key: (weight * value).sum() / norms["pairs"] for key, value in values.items()}
        if not isinstance(self.main, Ratings):
            return {}
        places, desirable, weight = self.main.ratings(micro, flat.policy.total.device)
        reference_totals = flat.reference[places] if flat.reference is not None else None
        values = rating_metrics(flat.policy.total[places], reference_totals, self.scale)
        return {
            f"{key}/{side}": (weight * value * mask).sum() / norms[side]
            for key, value in values.items()
            for side, mask in (("chosen", desirable), ("rejected", ~desirable))
            if norms[side]
        }

    # ------------------------------------------------------------------------------------------------ early stop

    def judge(self, model: Any, budget: int, world: World) -> float:
        """Mean margin in nats, r(better) - r(worse), over the pairs of the rows that were set aside."""
        import torch

        scored = score_rows(model, self.scorer, self.judged, self.profile, world, budget)
        total = torch.cat(scored)
        reference = self._reference(self.judged, "cpu")
        policy, other, weight = Pairs().pairs(self.judged, Flat(Logps(total, torch.ones_like(total)), reference))
        margin = policy.chosen.total - policy.rejected.total
        if other is not None:
            margin = margin - (other.chosen.total - other.rejected.total)
        return float((weight * margin).sum() / weight.sum())


def load_split(where: dict[str, Any], split: Split) -> list[Record]:
    """``where``: ``parts`` (snapshot folders by name) and ``selection``."""
    parts = {name: Path(path) for name, path in where["parts"].items()}
    return list(load_records(parts, Path(where["selection"]), split))


def encode_preferences(settings: PreferenceSettings, records: Sequence[Record], tokenizer: Any, log: Log) -> Encoding:
    """Token ids of the rows that any of the losses can use. Raises Refused where one of them can use none."""
    terms = [(term.loss, view_of(term.loss, settings.desirable_from)) for term in settings.terms]
    encoder = Encoder(tokenizer, settings.max_tokens)
    encoding = encode_records(encoder, records, lambda row: any(view.weight(row) for _, view in terms))
    log({"type": "facts", "facts": {f"preference_{key}": value for key, value in encoding.facts.items()}})
    for loss, view in terms:
        why = why_not(loss, view, encoding.rows or encode_records(encoder, records, bool).rows)
        if why:
            raise Refused(
                f"preference.loss {loss.name}: {why} (after cutting to max_tokens {settings.max_tokens}: "
                f"{encoding.cut} cut, {len(encoding.dropped)} dropped)"
            )
    return encoding


def run(job: dict[str, Any], log: Log) -> None:
    """``inputs``: model (the warm start), pairs, examples (for the replay); ``output``: the policy's directory.

    ``cache`` is where reference totals are kept for other runs.
    """
    settings = PreferenceSettings.model_validate_json(job["settings"])
    profile = Profile.model_validate_json(job["profile"])
    prepare_torch(profile)
    world = World.current(profile)
    source = Path(job["inputs"]["model"])
    tokenizer = load_tokenizer(source)
    rows = encode_preferences(settings, load_split(job["inputs"]["pairs"], "train"), tokenizer, log).rows
    log({"type": "facts", "facts": data_facts(rows)})
    kept, judged = judges(rows, settings)
    if judged and not any(Pairs().weight(row) for row in judged):
        raise Refused(
            f"early_stop: the margin is taken over pairs, and none of the {len(judged)} row(s) that were set aside has two "
            "completions of different grade; take early_stop out, or change its share"
        )
    replay: Sequence[Encoded] = ()
    if settings.replay:
        replay = encode_sft(load_examples(job["inputs"]["examples"]), tokenizer, settings.max_tokens, log).rows
    model = with_lora(load_model(source, profile, settings.lora), settings.lora, job["seed"])
    log({"type": "facts", "facts": token_facts(model)})
    scorer = make_scorer(model, [*rows, *replay], profile, log)
    caches = []
    if any(term.loss.needs_reference for term in settings.terms):
        weights = model_digest(source, profile, scorer.path.attention, settings.lora.bits if settings.lora else None)
        folders = [Path(job["checkpoints"], "reference"), *([Path(job["cache"])] if job.get("cache") else [])]
        caches = [Cache(folder / weights, log) for folder in folders]
    order = plan(job["seed"], len(kept), settings.batch, steps=settings.steps, epochs=settings.epochs)
    objective = Preference(settings, kept, replay, order, scorer, profile, caches, log, judged)
    finish(job, log, settings, profile, world, scorer, objective, tokenizer)
