"""The known defects of well-known trainers, by their numbers in the project's list: each one is put in here and is seen.

Every entry is a check that the engine passes, and one or more plants that make the engine what the other trainer was:
with any of them in, the same check fails.
"""

import copy
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training import naive
from tests.training.tiny import LORA, Stopped, Tiny, job, preference_settings, profile, sft_settings, stop_at
from tests.training.workers import ignore
from training import checkpoint, logps, loop, preference, reference, scorer, sft, terms
from training.data import encode
from training.data.batches import micro_batches, plan
from training.data.encode import Encoded, Encoder, encode_examples, encode_records
from training.data.records import Completion, Example, Message, Record
from training.digest import digest_json
from training.loop import Part
from training.losses import orpo
from training.losses.base import Logps, PairLogps
from training.losses.ipo import IPO
from training.losses.orpo import ORPO
from training.models import load_model, load_tokenizer
from training.preference import Preference
from training.processes import World
from training.scorer import make_scorer
from training.settings import Profile

Patch = pytest.MonkeyPatch
ROWS = [row for row in naive.rows() if len(row.completions) > 1]


@dataclasses.dataclass
class Place:
    """What a check or a plant may use."""

    tiny: Tiny
    root: Path
    patch: Patch

    @property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.tiny.base)


@dataclasses.dataclass(frozen=True)
class Defect:
    number: int
    says: str
    check: Callable[[Place], None]
    plants: tuple[Callable[[Place], None], ...]


def events_of(place: Place, settings: Any, output: str = "model", run: Any = preference.run, **other: Any) -> list[Any]:
    events: list[dict[str, Any]] = []
    run(job(place.tiny, settings, place.root, output, **other), events.append)
    return events


def metrics(events: list[Any]) -> list[dict[str, float]]:
    return [event["metrics"] for event in events if event["type"] == "metrics"]


def objective_of(loss: dict[str, Any], rows: Sequence[Encoded] = ROWS, seed: int = 1, **other: Any) -> Preference:
    """All rows in one step of a policy that has moved away from its reference."""
    settings = preference_settings(1, loss=loss, batch=len(rows), max_tokens=4096, **other)
    made = make_scorer(naive.model("llama"), rows, profile(), ignore)
    order = plan(seed, len(rows), len(rows), steps=1, epochs=None)
    objective = Preference(settings, rows, (), order, made, profile())
    objective.begin(made, World())
    naive.moved(made.model)
    return objective


def step_of(objective: Preference, budget: int = 4096) -> tuple[float, dict[str, float]]:
    """(loss, metrics) of the step."""
    loss, sums = 0.0, {}
    for compute in objective.parts(objective.scorer, 0, budget, World()):
        part = compute()
        loss += float(part.loss.detach())
        for key, value in part.sums.items():
            sums[key] = sums.get(key, 0.0) + value
    return loss, sums


def both(objective: Preference, rows: Sequence[Encoded]) -> tuple[list[Tensor], list[Tensor]]:
    """Totals of the policy and of the reference by naive passes."""
    return naive.scored(objective.scorer.model, rows), naive.scored(naive.model("llama"), rows)


# ------------------------------------------------------------------------------------------------ 1: IPO and lengths


def ipo_is_per_token(place: Place) -> None:
    objective = objective_of({"name": "ipo", "tau": 0.2})
    for budget in (64, 4096):  # whatever stands in the same packed row
        loss, _ = step_of(objective, budget)
        expected = naive.loss_of(objective.settings.loss, ROWS, *both(objective, ROWS))
        assert loss == pytest.approx(float(expected), rel=1e-4)
    (first,) = metrics(events_of(place, preference_settings(1, loss={"name": "ipo"})))
    assert first["loss"] == pytest.approx(25.0, abs=1e-4)  # (0 - 1 / (2 * 0.1))^2, where every log-ratio is 0


def over_sums(place: Place) -> None:
    """OpenRLHF."""

    def loss(self: IPO, policy: PairLogps, reference: PairLogps) -> Tensor:
        r_w, r_l = policy.chosen.total - reference.chosen.total, policy.rejected.total - reference.rejected.total
        return (r_w - r_l - 1 / (2 * self.tau)) ** 2

    place.patch.setattr(IPO, "__call__", loss)


def by_the_packed_row(place: Place) -> None:
    """ms-swift."""
    real = logps.sum_by_completion

    def summed(token: Tensor, branch: Tensor, completions: int) -> tuple[Tensor, Tensor]:
        total, length = real(token, branch, completions)
        return total, torch.full_like(length, float(length.sum()))

    place.patch.setattr(scorer, "sum_by_completion", summed)


def by_tokens_that_moved(place: Place) -> None:
    """HALOs: the length is the number of tokens whose reward is not zero, which at the first step is none."""
    real = IPO.__call__

    def loss(self: IPO, policy: PairLogps, reference: PairLogps) -> Tensor:
        def counted(one: Logps, other: Logps) -> Logps:
            return Logps(one.total, one.length * (one.total != other.total))

        chosen, rejected = counted(policy.chosen, reference.chosen), counted(policy.rejected, reference.rejected)
        return real(self, PairLogps(chosen, rejected), reference)

    place.patch.setattr(IPO, "__call__", loss)


# ------------------------------------------------------------------------------------------------ 2, 3, 4: tokens


ASK = (Message("user", "Tell me about a cat. " * 4 + "What of rain?"),)


def ends_are_where_the_text_ends(place: Place) -> None:
    encoder, long = Encoder(place.tokenizer, 40), "tea, milk; " * 20
    (row,) = encode_records(encoder, [pair("fine", long)], lambda row: True).rows
    whole, cut = row.completions
    ids = tuple(place.tokenizer(long, add_special_tokens=False)["input_ids"])
    assert place.tokenizer.decode(whole) == "fine<|end|>"
    assert cut == ids[: len(cut)] and len(row.prompt) + len(cut) == 40
    examples = [Example("r", ASK, text, 1.0) for text in ("fine", long)]
    short, long_row = encode_examples(encoder, examples).rows
    assert short.completions[0][-1] == 2 and 2 not in long_row.completions[0]


def pair(chosen: str, rejected: str, prompt: tuple[Message, ...] = ASK) -> Record:
    return Record(prompt, (Completion(chosen, rank=1), Completion(rejected, rank=2)))


def a_space_before_the_end(place: Place) -> None:
    real = Encoder.completions
    place.patch.setattr(Encoder, "completions", lambda self, texts: real(self, [text + " " for text in texts]))


def an_end_on_what_was_cut(place: Place) -> None:
    """OpenRLHF."""
    real = Encoder.join_all

    def join_all(self: Encoder, rows: Any) -> list[Encoded]:
        def ended(row: Encoded) -> Encoded:
            found = tuple(ids if ids[-1] == self.end else (*ids[:-1], self.end) for ids in row.completions)
            return dataclasses.replace(row, completions=found)

        return [ended(row) for row in real(self, rows)]

    place.patch.setattr(Encoder, "join_all", join_all)


def the_question_is_kept(place: Place) -> None:
    encoder = Encoder(place.tokenizer, 40)
    same = "tea, milk; " * 20
    lost, kept = pair(same + "fine", same + "bad"), pair("fine indeed", "bad")
    encoding = encode_records(encoder, [lost, kept], lambda row: len(row.completions) > 1)
    assert len(encoding.rows) == 1
    row = encoding.rows[0]
    text = place.tokenizer.decode(list(row.prompt))
    assert row.cut and text.startswith("<|bos|><|user|>") and text.endswith("What of rain?<|end|><|assistant|>")
    assert all(ids[-1] == 2 for ids in row.completions)
    assert encoding.dropped == (lost.id,) and encoding.facts["dropped_after_truncation"] == 1


def the_end_of_the_prompt_goes(place: Place) -> None:
    """LLaMA-Factory."""
    place.patch.setattr(Encoder, "_cut_left", lambda self, ids, keep: ids[:keep])


def pairs_that_became_the_same_stay(place: Place) -> None:
    place.patch.setattr(encode, "_distinct", lambda row: row)


def the_boundary_is_known(place: Place) -> None:
    # The byte pairs have learnt " about" as one token, which " ab" and "out" are not.
    tokenizer = place.tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    example = Example("r", (Message("user", "Tell me ab"),), "out", 1.0)
    (row,) = encode_examples(Encoder(tokenizer, 64), [example]).rows
    assert tokenizer.decode(list(row.prompt)) == "Tell me ab"
    assert tokenizer.decode(list(row.completions[0])) == "out<|end|>"
    tokenizer.chat_template = "<|bos|>" + encode.CHAT_TEMPLATE  # over a tokenizer that writes one too
    (row,) = encode_examples(Encoder(tokenizer, 64), [example]).rows
    assert row.prompt.count(tokenizer.bos_token_id) == 1
    assert sum(ids.count(2) for ids in row.completions) == 1


def a_slice_of_the_joint_tokens(place: Place) -> None:
    """TRL issue 5213."""

    def join(self: Encoder, record_id: str, messages: Any, texts: Any, weight: float) -> Encoded:
        before = self.tokenizer.apply_chat_template([vars(m) for m in messages], tokenize=False)
        at = len(self.tokenizer(before, add_special_tokens=False)["input_ids"])
        joint = [self.tokenizer(before + text, add_special_tokens=False)["input_ids"] for text in texts]
        return Encoded(record_id, tuple(joint[0][:at]), tuple((*ids[at:], self.end) for ids in joint), weight)

    place.patch.setattr(Encoder, "join_all", lambda self, rows: [join(self, *row) for row in rows])


def every_bos_that_is_written(place: Place) -> None:
    def prompt(self: Encoder, messages: Any) -> list[int]:
        turns = [vars(message) for message in messages]
        return list(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))

    place.patch.setattr(Encoder, "prompts", lambda self, prompts: [prompt(self, one) for one in prompts])


# ------------------------------------------------------------------------------------------------ 5, 6, 7: the reference


def the_reference_is_the_warm_start(place: Place) -> None:
    kept: list[Any] = []
    real = sft.save_model
    place.patch.setattr(
        sft, "save_model", lambda model, *other: (kept.append(copy.deepcopy(model)), real(model, *other))
    )
    events_of(place, sft_settings(5, LORA), "warm", sft.run)
    place.kept = kept[0]  # type: ignore[attr-defined]
    inputs = {"model": str(place.root / "warm"), "examples": place.tiny.examples, "pairs": place.tiny.pairs}
    cache = str(place.root / "cache")
    found = events_of(place, preference_settings(1, LORA), "policy", inputs=inputs, cache=cache)
    assert metrics(found)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    # What is stored as the reference are the numbers of the merged warm start, and not those of the base.
    rows = rows_of(place)
    (folder,) = (place.root / "cache").iterdir()
    stored = reference.Cache(folder, ignore).find(key for row in rows for key in reference.keys(row))
    warm, base = (naive.scored(load_model(path), rows) for path in (place.root / "warm", place.tiny.base))
    for row, right, wrong in zip(rows, warm, base, strict=True):
        numbers = [stored[key] for key in reference.keys(row)]
        assert numbers == pytest.approx(right.tolist(), abs=2e-4)
        assert all(abs(a - b) > 0.01 for a, b in zip(numbers, wrong.tolist(), strict=True))


def rows_of(place: Place) -> tuple[Encoded, ...]:
    records = preference.load_split(place.tiny.pairs, "train")
    return preference.encode_preferences(preference_settings(), records, place.tokenizer, ignore).rows


def adapters_off(place: Place) -> None:
    """TRL issues 956 and 6591: the policy goes on with the adapter of the warm start, and the reference is without it."""
    place.patch.setattr(preference, "with_lora", lambda *given: place.kept)  # type: ignore[attr-defined]


def weights_and_not_the_path_are_the_key(place: Place) -> None:
    mine = Tiny(Path(shutil.copytree(place.tiny.folder, place.root / "data")))
    place = dataclasses.replace(place, tiny=mine)
    cache = str(place.root / "cache")
    first = events_of(place, preference_settings(1), "before", cache=cache)
    naive.moved(model := load_model(mine.base), size=0.3)
    shutil.rmtree(mine.base)
    shutil.copytree(place.root / "before", mine.base)  # its tokenizer; the weights follow
    model.save_pretrained(mine.base)
    second = events_of(place, preference_settings(1), "after", cache=cache)
    assert [facts["reference_computed"] for events in (first, second) for facts in told(events)] == [24, 24]
    assert metrics(second)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def told(events: list[Any]) -> list[dict[str, Any]]:
    return [event["facts"] for event in events if "reference_computed" in event.get("facts", {})]


def keyed_by_path(place: Place) -> None:
    """open-instruct."""

    def digest(folder: Path, *other: Any) -> str:
        return digest_json({"path": str(folder)}).value

    place.patch.setattr(preference, "model_digest", digest)


def log_ratios_begin_at_zero(place: Place) -> None:
    chosen = profile().model_copy(update={"dtype": "bfloat16"})
    for lora in (None, LORA):
        first, *_ = metrics(
            events_of(place, preference_settings(1, lora), f"{lora is None}", profile=chosen.model_dump_json())
        )
        assert abs(first["rewards/chosen"]) < 1e-5 and abs(first["rewards/rejected"]) < 1e-5
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)


def in_float32(place: Place) -> None:
    """The policy trains under autocast, and the reference was scored without."""
    real = preference.reference_totals

    def totals(model: Any, scorer: Any, rows: Any, profile: Profile, *other: Any) -> Any:
        wrapped = vars(scorer).pop("forward")
        try:
            return real(model, scorer, rows, profile.model_copy(update={"dtype": "float32"}), *other)
        finally:
            scorer.forward = wrapped

    place.patch.setattr(preference, "reference_totals", totals)


def behind_padding(place: Place) -> None:
    """TRL issue 7083: padding on the left that the reference can see."""
    real = preference.reference_totals

    def totals(model: Any, scorer: Any, rows: Sequence[Encoded], *other: Any) -> Any:
        padded = [dataclasses.replace(row, prompt=(0, 0, *row.prompt)) for row in rows]
        found = real(model, scorer, padded, *other)
        names = [
            (a, b) for row, pad in zip(rows, padded, strict=True)
            for a, b in zip(reference.keys(row), reference.keys(pad), strict=True)
        ]  # fmt: skip
        return {own: found[key] for own, key in names}

    place.patch.setattr(preference, "reference_totals", totals)


def with_dropout(place: Place) -> None:
    """The reference is scored in training mode."""

    @contextmanager
    def judging(model: Any, profile: Profile) -> Iterator[None]:
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.3
        model.train()
        with torch.no_grad(), scorer.precision(profile):
            yield

    place.patch.setattr(reference, "judging", judging)


# ------------------------------------------------------------------------------------------------ 8: the mean


def a_step_is_one_mean(place: Place) -> None:
    objective = objective_of({"name": "dpo"}, sft_weight=0.5)
    whole, sums = step_of(objective)
    for budget in (64, 90):
        loss, found = step_of(objective, budget)
        assert loss == pytest.approx(whole, rel=1e-5) and found == pytest.approx(sums, rel=1e-4, abs=1e-5)

    def one(world: World) -> float:
        mine = copy.copy(objective)
        mine.scorer = copy.deepcopy(objective.scorer)
        return sum(float(compute().loss.detach()) for compute in mine.parts(mine.scorer, 0, 90, world))

    totals = naive.together(7, one)  # one of whom has nothing but a repeat
    assert sum(totals) == pytest.approx(whole, rel=1e-5)


def means_are_averaged(place: Place) -> None:
    """LLaMA-Factory issue 5747, transformers issue 34191: the mean of each micro-batch, averaged over them."""
    real_parts, real_part = Preference.parts, Preference._part

    def parts(self: Preference, model: Any, step: int, budget: int, world: World) -> Any:
        self.count = len(micro_batches(self._step(step), budget, self.scorer.path.tokens))  # type: ignore[attr-defined]
        return real_parts(self, model, step, budget, world)

    def part(self: Preference, model: Any, micro: Any, whole: Any, norms: Any, z: Any) -> Part:
        own = [sum(view.weight(row) for row in micro) * self.count for _, view in self.terms]  # type: ignore[attr-defined]
        return real_part(self, model, micro, own, norms, z)

    place.patch.setattr(Preference, "parts", parts)
    place.patch.setattr(Preference, "_part", part)


def rows_are_counted_and_not_weighed(place: Place) -> None:
    real = Preference._part

    def part(self: Preference, model: Any, micro: Any, whole: Any, norms: Any, z: Any) -> Part:
        return real(self, model, micro, [float(len(micro))] * len(whole), norms, z)

    place.patch.setattr(Preference, "_part", part)


def idle_repeats_count(place: Place) -> None:
    """A process without work of its own computes a micro-batch again, and that counts."""
    from training.data import batches

    real = dataclasses.replace

    def replaced(row: Any, **changes: Any) -> Any:
        return real(row, **{key: value for key, value in changes.items() if key != "weight"})

    place.patch.setattr(batches, "replace", replaced)


# ------------------------------------------------------------------------------------------------ 9: log(1 - e^m)


def odds_near_one_are_finite_and_right(place: Place) -> None:
    # log odds = m - log(1 - e^m), which for small m is -log(-m) + m / 2; the chosen has odds e^13.8, the rejected 1.
    for m in (-1e-6, -1e-5, -1e-3):
        total = torch.tensor([4 * m, -0.0, 0.0], requires_grad=True)
        zero = Logps(torch.full((3,), -math.log(2)), torch.ones(3))
        policy = PairLogps(Logps(total, torch.full((3,), 4.0)), zero)
        losses = ORPO(lambda_=1.0)(PairLogps(zero, policy.chosen))
        losses.sum().backward()
        assert bool(losses.isfinite().all()) and total.grad is not None and bool(total.grad.isfinite().all())
        odds = -math.log(-m) + m / 2
        assert float(losses[0].detach()) == pytest.approx(math.log(2) + math.log1p(math.exp(odds)), rel=1e-5)


def log1p_of_minus_exp(place: Place) -> None:
    """TRL issues 1473 and 2564."""
    place.patch.setattr(orpo, "log1mexp", lambda x: torch.log1p(-x.exp()))


def odds_as_they_stand(place: Place) -> None:
    place.patch.setattr(orpo, "_log_odds", lambda one: one.mean - torch.log1p(-one.mean.exp()))


# ------------------------------------------------------------------------------------------------ 10: KTO's order

SPLIT = [  # pairs that were split into ratings: neighbours have the same prompt
    Encoded(f"{name}-{i}", ids, (completion,), grades=(float(i == 0),), kind="label")
    for name, ids in (("a", (5, 6)), ("b", (7, 8, 9)), ("c", (4,)))
    for i, completion in enumerate(((11, 12, len(ids), 2), (13, len(ids), 2)))
]


def labels_and_mismatches_follow_the_order(place: Place) -> None:
    for seed in range(6):
        objective = objective_of({"name": "kto", "beta": 0.3}, SPLIT, seed)
        ordered = [SPLIT[i] for i in objective.order.indices(0)]
        other = naive.mismatched(ordered, None)
        assert len(other) == len(SPLIT)
        for row, lent in zip(ordered, other, strict=True):
            assert row.prompt == lent.prompt and lent.completions[0] not in {
                one.completions[0] for one in SPLIT if one.prompt == row.prompt
            }
        now, before = both(objective, other)
        z = (torch.cat(now) - torch.cat(before)).mean().clamp(min=0)
        policy, initial = both(objective, ordered)
        losses = [  # from the labels themselves
            torch.sigmoid(-0.3 * (p[0] - q[0] - z) if row.grades[0] else 0.3 * (p[0] - q[0] - z))
            for row, p, q in zip(ordered, policy, initial, strict=True)
        ]
        loss, sums = step_of(objective, 16)
        assert loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
        assert sums["kl_baseline"] == pytest.approx(float(z), rel=1e-4, abs=1e-5)


def labels_are_shuffled_later(place: Place) -> None:
    """LLaMA-Factory."""
    real = terms.Ratings.ratings

    def ratings(self: terms.Ratings, rows: Any, device: Any) -> Any:
        places, desirable, weight = real(self, rows, device)
        return places, desirable.roll(1), weight

    place.patch.setattr(terms.Ratings, "ratings", ratings)


def mismatches_of_the_stored_order(place: Place) -> None:
    """Built before the rows are shuffled, from the next row whatever its prompt."""

    def mismatched(self: Preference, step: int) -> list[Encoded]:
        following = {id(row): self.rows[(i + 1) % len(self.rows)] for i, row in enumerate(self.rows)}
        return [dataclasses.replace(row, completions=following[id(row)].completions) for row in self._step(step)]

    place.patch.setattr(Preference, "_mismatched", mismatched)


def a_baseline_per_micro_batch(place: Place) -> None:
    real = Preference._part

    def part(self: Preference, model: Any, micro: Any, whole: Any, norms: Any, z: Any) -> Part:
        rows = [row for row in self._mismatched(0) if row.record_id in {one.record_id for one in micro}]
        found = torch.cat(reference.score_rows(model, self.scorer, rows, self.profile, World()))
        known = torch.tensor([self.totals[key] for row in rows for key in reference.keys(row)])
        return real(self, model, micro, whole, norms, (found - known).mean().clamp(min=0))

    place.patch.setattr(Preference, "_part", part)


# ------------------------------------------------------------------------------------------------ 11: another objective


def another_objective_is_refused(place: Place) -> None:
    given = job(place.tiny, preference_settings(4), place.root, "model")
    with pytest.raises(Stopped):
        preference.run(given, stop_at(3, []))
    other = {
        **given,
        "settings": preference_settings(4, loss={"name": "ipo"}).model_dump_json(),
        "objective": "another",
    }
    with pytest.raises(
        ValueError, match="was written for objective this one, not another: other settings, data or base"
    ):
        preference.run(other, ignore)
    assert not (place.root / "model").exists()
    preference.run(given, ignore)  # and the right one goes on
    assert (place.root / "model").exists()


def any_checkpoint_will_do(place: Place) -> None:
    """unsloth-zoo issue 1164."""
    real = checkpoint.latest
    place.patch.setattr(loop.checkpoint, "latest", lambda folder, name, *other: real(folder, "this one", *other))


# ------------------------------------------------------------------------------------------------ 12, 13, 14: what is told


def a_tie_counts_one_half(place: Place) -> None:
    for loss in ("dpo", "listwise", "kto"):
        (first,) = metrics(events_of(place, preference_settings(1, loss={"name": loss}), loss))
        assert first["rewards/margins"] == 0 and first["rewards/accuracies"] == 0.5


def a_tie_is_wrong(place: Place) -> None:
    told = partial(changed_metric, "rewards/accuracies", lambda found: (found["rewards/margins"] > 0).float())
    told(place)


def a_tie_is_right(place: Place) -> None:
    changed_metric("rewards/accuracies", lambda found: (found["rewards/margins"] >= 0).float(), place)


def changed_metric(name: str, value: Callable[[dict[str, Tensor]], Tensor], place: Place) -> None:
    real = preference.pair_metrics

    def made(*given: Any) -> dict[str, Tensor]:
        found = real(*given)
        return {**found, name: value(found)}

    place.patch.setattr(preference, "pair_metrics", made)


LOSSES = {
    "dpo": {"beta": 0.2}, "robust": {"beta": 0.2}, "hinge": {"beta": 0.2}, "ipo": {"tau": 0.2}, "dpop": {"beta": 0.2},
    "odpo": {"beta": 0.2}, "apo_zero": {"beta": 0.2}, "apo_down": {"beta": 0.2}, "kto": {"beta": 0.2},
    "listwise": {"beta": 0.2},
}  # fmt: skip


def margins_mean_the_same_for_every_loss(place: Place) -> None:
    objective = objective_of({"name": "kto", "beta": 0.2})
    expected: dict[str, float] = {}
    for name, constants in LOSSES.items():
        mine = copy.copy(objective)
        settings = preference_settings(1, loss={"name": name, **constants}, batch=len(ROWS), max_tokens=4096)
        mine.__init__(settings, ROWS, (), objective.order, objective.scorer, profile())  # type: ignore[misc]
        mine.totals = objective.totals
        _, sums = step_of(mine)
        found = {key: sums[key] for key in sums if key.startswith(("rewards/", "logps/"))}
        expected = expected or found
        assert found == pytest.approx(expected, rel=1e-5)
    assert len(expected) == 6


def margins_are_what_the_loss_uses(place: Place) -> None:
    """HALOs: each loss reports the quantity inside of its own logarithm."""
    real = Preference._metrics

    def made(self: Preference, micro: Any, flat: Any, norms: Any) -> dict[str, Tensor]:
        found = real(self, micro, flat, norms)
        if self.settings.loss.name == "ipo":
            found["rewards/margins"] = found["rewards/margins"] / flat.policy.length.mean()
        return found

    place.patch.setattr(Preference, "_metrics", made)


def what_is_called_kl_is_one(place: Place) -> None:
    objective = objective_of({"name": "kto", "beta": 0.2}, seed=0)
    _, sums = step_of(objective)
    ordered = [ROWS[i] for i in objective.order.indices(0)]
    other = naive.mismatched(ordered, None)
    now, before = both(objective, other)
    z = float((torch.cat(now) - torch.cat(before)).mean().clamp(min=0))
    assert z > 0.1  # not clamped
    assert [name for name in sums if "kl" in name.lower()] == ["kl_baseline"]
    assert sums["kl_baseline"] == pytest.approx(z, rel=1e-4)
    # the mean r of chosen and of rejected, each under its own name
    margins = sums["rewards/chosen"] - sums["rewards/rejected"]
    assert {"rewards/chosen", "rewards/rejected"} <= sums.keys() and sums["rewards/margins"] == pytest.approx(margins)


def kl_of_the_batch_itself(place: Place) -> None:
    real = Preference._metrics

    def made(self: Preference, micro: Any, flat: Any, norms: Any) -> dict[str, Tensor]:
        found = real(self, micro, flat, norms)
        return {**found, "kl": found["rewards/chosen"]}

    place.patch.setattr(Preference, "_metrics", made)


def baseline_of_the_rows_themselves(place: Place) -> None:
    def mismatched(self: Preference, step: int) -> list[Encoded]:
        return self._step(step)

    place.patch.setattr(Preference, "_mismatched", mismatched)


# ------------------------------------------------------------------------------------------------ the list


DEFECTS = (
    Defect(1, "IPO over sums, over the packed row's tokens, over no token", ipo_is_per_token,
           (over_sums, by_the_packed_row, by_tokens_that_moved)),
    Defect(2, "a space before EOS, EOS on what was cut", ends_are_where_the_text_ends,
           (a_space_before_the_end, an_end_on_what_was_cut)),
    Defect(3, "the end of the prompt is cut", the_question_is_kept,
           (the_end_of_the_prompt_goes, pairs_that_became_the_same_stay)),
    Defect(4, "the boundary from a joint tokenisation", the_boundary_is_known,
           (a_slice_of_the_joint_tokens, every_bos_that_is_written)),
    Defect(5, "the reference is the model without adapters", the_reference_is_the_warm_start, (adapters_off,)),
    Defect(6, "a cache keyed by path", weights_and_not_the_path_are_the_key, (keyed_by_path,)),
    Defect(7, "reference and policy scored differently", log_ratios_begin_at_zero,
           (in_float32, behind_padding, with_dropout)),
    Defect(8, "a mean of means", a_step_is_one_mean,
           (means_are_averaged, rows_are_counted_and_not_weighed, idle_repeats_count)),
    Defect(9, "log1p(-exp(x)) near zero", odds_near_one_are_finite_and_right, (log1p_of_minus_exp, odds_as_they_stand)),
    Defect(10, "KTO's labels and mismatches out of order", labels_and_mismatches_follow_the_order,
           (labels_are_shuffled_later, mismatches_of_the_stored_order, a_baseline_per_micro_batch)),
    Defect(11, "a resume under another objective", another_objective_is_refused, (any_checkpoint_will_do,)),
    Defect(12, "a tie counted as wrong", a_tie_counts_one_half, (a_tie_is_wrong, a_tie_is_right)),
    Defect(13, "margins that differ from loss to loss", margins_mean_the_same_for_every_loss,
           (margins_are_what_the_loss_uses,)),
    Defect(14, "a KL that is none", what_is_called_kl_is_one, (kl_of_the_batch_itself, baseline_of_the_rows_themselves)),
)  # fmt: skip


@pytest.fixture
def place(tiny: Tiny, root: Path, monkeypatch: Patch) -> Place:
    return Place(tiny, root, monkeypatch)


def test_all_fourteen_are_here() -> None:
    assert [defect.number for defect in DEFECTS] == list(range(1, 15)) and all(defect.plants for defect in DEFECTS)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: f"{defect.number}, {defect.says}")
def test_the_engine_is_without(defect: Defect, place: Place) -> None:
    defect.check(place)


PLANTED = [(defect, plant) for defect in DEFECTS for plant in defect.plants]


@pytest.mark.parametrize("defect, plant", PLANTED, ids=[f"{d.number}, {plant.__name__}" for d, plant in PLANTED])
def test_it_is_seen_where_it_is_put_in(defect: Defect, plant: Callable[[Place], None], place: Place) -> None:
    """By the check, or by the run itself, which refuses a loss that is no number and a reference that is not the policy."""
    plant(place)
    with pytest.raises((AssertionError, RuntimeError, pytest.fail.Exception)) as seen:
        defect.check(place)
    if isinstance(seen.value, RuntimeError):
        assert "the reference is not the initial policy" in str(seen.value) or "loss nan" in str(seen.value)
