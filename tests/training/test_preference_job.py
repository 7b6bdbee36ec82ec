"""The preference job from end to end: where it starts, what it refuses, replay, and what is scored on held-out pairs."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import naive
from tests.training.objectives import LAYOUTS, LOSSES, objective_of
from tests.training.tiny import LORA, Tiny, job, preference_settings, profile, ratings_only, stored
from tests.training.workers import ignore
from training import holdout, preference, sft
from training.data.batches import plan
from training.data.encode import Encoded, Encoder, encode_examples, encode_records
from training.data.split import Selected, read_selection, write_selection
from training.loop import train
from training.models import load_model, load_tokenizer, with_lora
from training.preference import Preference, encode_preferences, load_split
from training.processes import World
from training.reference import Cache, check_start, reference_totals, score_rows
from training.scorer import Scorer, make_scorer
from training.settings import Profile
from training.strict import Refused

LN_2 = math.log(2)


# ------------------------------------------------------------------------------------------------ the job


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate's precision is a singleton of the process; a job has a process of its own."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def pairs(tiny: Tiny) -> tuple[Encoded, ...]:
    records = load_split(tiny.pairs, "train")
    return encode_preferences(preference_settings(), records, load_tokenizer(tiny.base), ignore).rows


def metrics(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [event["metrics"] for event in events if event["type"] == "metrics"]


def facts(events: list[dict[str, Any]], name: str) -> Any:
    (found,) = [event["facts"][name] for event in events if name in event.get("facts", {})]
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lora", [None, LORA, LORA.model_copy(update={"dora": True})], ids=["full", "lora", "dora"])
def test_the_log_ratios_of_the_first_step_are_zero(tiny: Tiny, root: Path, lora: Any, layout: Any) -> None:
    # Dropout is no exception: the adapters' second factor is zero at the start, so what it drops is nothing.
    lora = lora and lora.model_copy(update={"dropout": 0.0 if lora.dora else lora.dropout})
    events: list[dict[str, Any]] = []
    chosen = profile().model_copy(update={"layout": layout})
    preference.run(
        job(tiny, preference_settings(2, lora), root, "model", profile=chosen.model_dump_json()), events.append
    )
    first, second = metrics(events)
    assert first["loss"] == pytest.approx(LN_2, abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert second["loss"] != pytest.approx(LN_2, abs=1e-5)
    assert 0 <= facts(events, "log_ratio_at_start") < 1e-3
    assert facts(events, "layout") == layout


@pytest.mark.parametrize("dtype", ["bfloat16", "pure-bfloat16"])
def test_the_log_ratios_of_the_first_step_are_zero_in_lower_precision(tiny: Tiny, root: Path, dtype: Any) -> None:
    events: list[dict[str, Any]] = []
    chosen = profile().model_copy(update={"dtype": dtype})
    preference.run(job(tiny, preference_settings(2), root, "model", profile=chosen.model_dump_json()), events.append)
    first, _ = metrics(events)
    assert first["loss"] == pytest.approx(LN_2, abs=1e-5) and abs(first["rewards/chosen"]) < 1e-5
    stored = {value.dtype for value in load_model(root / "model", chosen).state_dict().values()}
    assert stored == {torch.bfloat16 if dtype == "pure-bfloat16" else torch.float32}


AT_START = {
    "dpo": LN_2, "robust": LN_2, "hinge": 1.0, "ipo": 25.0, "dpop": LN_2, "apo_zero": 1.0, "apo_down": 1.0, "kto": 0.5,
    "listwise": LN_2,
}  # fmt: skip


@pytest.mark.parametrize("name, expected", AT_START.items())
def test_the_first_loss_of_a_loss_with_a_reference_is_known(tiny: Tiny, root: Path, name: str, expected: float) -> None:
    # All log-ratios and z are 0: sigmoid(0) = 1/2, hinge 1 - 0, ipo (0 - 1 / (2 * 0.1))^2 = 25, K = 2 for listwise.
    events: list[dict[str, Any]] = []
    preference.run(job(tiny, preference_settings(1, loss={"name": name}), root, "model"), events.append)
    (first,) = metrics(events)
    assert first["loss"] == pytest.approx(expected, abs=1e-4)
    assert first["rewards/accuracies"] == 0.5


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "odpo"])
def test_every_loss_trains_a_policy(tiny: Tiny, root: Path, name: str) -> None:
    """Without clipping, a few steps on the same rows lower the loss that they are steps of."""
    events: list[dict[str, Any]] = []
    settings = preference_settings(
        6, loss={"name": name}, batch=12, learning_rate=3e-3, schedule="constant", warmup=0.0
    )
    preference.run(job(tiny, settings, root, "model"), events.append)
    found = [one["loss"] for one in metrics(events)]
    assert found[-1] < found[0] and all(math.isfinite(value) for one in metrics(events) for value in one.values())
    assert load_model(root / "model") is not None


def test_graded_data_train_what_needs_scores_and_refuse_what_they_lack(tiny: Tiny, root: Path) -> None:
    lines = []
    for i in range(6):
        graded = {"fine": 3, "bad": 1, "no": i % 3, "so so": 2}
        answers = [{"text": f"{text} {i}", "score": score} for text, score in graded.items()]
        lines.append({"prompt": f"What of {i}?", "completions": answers})
    given = job(tiny, preference_settings(2, loss={"name": "odpo"}), root, "model")
    given["inputs"]["pairs"] = stored(root, "scores", lines)
    events: list[dict[str, Any]] = []
    preference.run(given, events.append)
    assert facts(events, "completions") == 24 and facts(events, "pairs") > 24
    refused = job(tiny, preference_settings(2, loss={"name": "odpo"}), root, "refused")
    with pytest.raises(
        Refused,
        match=r"preference\.loss odpo: it needs a score for each completion, and record \w+ has a rank; use dpo",
    ):
        preference.run(refused, ignore)
    refused["inputs"]["pairs"] = ratings_only(root)
    for loss in ("dpo", "listwise"):
        refused["settings"] = preference_settings(2, loss={"name": loss}).model_dump_json()
        with pytest.raises(
            Refused,
            match=rf"preference\.loss {loss}: no row can be seen as .* with different grades; found 8 row\(s\) with label",
        ):
            preference.run(refused, ignore)
    mixed = preference_settings(2, loss={"name": "kto"}, mix=({"coefficient": 1.0, "loss": {"name": "rrhf"}},))
    refused["settings"] = mixed.model_dump_json()
    with pytest.raises(Refused, match=r"preference\.loss rrhf: no row can be seen as rankings"):
        preference.run(refused, ignore)
    tied = [{"prompt": "q", "completions": [{"text": "a", "score": 1}, {"text": "b", "score": 1}]}]
    refused["inputs"]["pairs"] = stored(root, "tied", tied)
    refused["settings"] = preference_settings(2, loss={"name": "kto"}).model_dump_json()
    with pytest.raises(
        Refused, match=r"loss kto: no row can be seen as ratings: it takes a label, or .* 'desirable_from'"
    ):
        preference.run(refused, ignore)


def test_no_row_left_after_the_cut_is_refused(tiny: Tiny, root: Path) -> None:
    # 8 tokens: completions that share their first 6 are the same, however much the prompt gives way.
    row = {"prompt": "Which?", "chosen": "zzzz zzzz zzzz yes", "rejected": "zzzz zzzz zzzz no"}
    given = job(tiny, preference_settings(max_tokens=8), root, "model")
    given["inputs"]["pairs"] = stored(root, "same", [row])
    events: list[dict[str, Any]] = []
    with pytest.raises(Refused, match=r"after cutting to max_tokens 8: 1 cut, 1 dropped"):
        preference.run(given, events.append)
    assert events[0]["facts"] == {
        "preference_rows": 0,
        "preference_truncated": 1,
        "preference_dropped_after_truncation": 1,
    }


def test_reference_and_policy_are_scored_in_the_same_precision(
    tiny: Tiny, root: Path, pairs: tuple[Encoded, ...], fresh_accelerate: None
) -> None:
    """A reference scored in float32 for a policy that trains in bfloat16 starts with log-ratios of its rounding."""
    chosen = Profile(threads=1, dtype="bfloat16")
    scorer = make_scorer(load_model(tiny.base), pairs, chosen, ignore)
    caches = [Cache(root / "cache", ignore)]
    totals = reference_totals(scorer, scorer, pairs, chosen, World(), caches, ignore)
    exact = reference_totals(scorer, scorer, pairs, profile(), World(), [], ignore)
    assert max(abs(totals[key] - exact[key]) for key in totals) > 1e-4
    events: list[dict[str, Any]] = []
    settings = preference_settings(1, batch=12)
    objective = Preference(settings, pairs, (), plan(1, 12, 12, steps=1, epochs=None), scorer, chosen, caches)
    train(scorer, objective, settings, chosen, 1, "x", root / "checkpoints", events.append)
    (first,) = metrics(events)
    assert abs(first["rewards/chosen"]) < 1e-5 and abs(first["rewards/rejected"]) < 1e-5


def test_a_reference_that_is_not_the_initial_policy_is_detected(tiny: Tiny, pairs: tuple[Encoded, ...]) -> None:
    scorer = make_scorer(load_model(tiny.base), pairs, profile(), ignore)
    totals = reference_totals(scorer, scorer, pairs, profile(), World(), [], ignore)
    assert check_start(scorer, scorer, pairs, totals, profile(), World()) <= 1e-3
    with torch.no_grad():
        scorer.model.model.norm.weight.mul_(1.01)
    with pytest.raises(RuntimeError, match="the reference is not the initial policy"):
        check_start(scorer, scorer, pairs, totals, profile(), World())
    with torch.no_grad():
        scorer.model.model.norm.weight.div_(1.01)
    for wrong in (math.nan, math.inf):
        with pytest.raises(RuntimeError, match="the reference is not the initial policy"):
            check_start(scorer, scorer, pairs, dict.fromkeys(totals, wrong), profile(), World())


def test_the_start_is_checked_in_evaluation_mode(tiny: Tiny, pairs: tuple[Encoded, ...]) -> None:
    model = load_model(tiny.base)
    scorer = make_scorer(model, pairs, profile(), ignore)
    totals = reference_totals(scorer, scorer, pairs, profile(), World(), [], ignore)
    adapted = with_lora(scorer.release(), LORA, 1).train()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                parameter.mul_(100)  # B is zero, so this says nothing yet
    scorer = make_scorer(adapted, pairs, profile(), ignore).train()
    assert check_start(scorer, scorer, pairs, totals, profile(), World()) <= 1e-3
    assert adapted.training and scorer.training


def test_two_micro_batches_more_or_less_change_no_reference(tiny: Tiny, pairs: tuple[Encoded, ...]) -> None:
    scorer = make_scorer(load_model(tiny.base), pairs, profile(), ignore)
    whole = torch.cat(score_rows(scorer, scorer, pairs, profile(), World(), 4096))
    for budget in (64, 150):
        assert torch.allclose(
            torch.cat(score_rows(scorer, scorer, pairs, profile(), World(), budget)), whole, atol=1e-4
        )
    for size in (2, 5, 40):
        for found in naive.together(size, lambda world: score_rows(scorer, scorer, pairs, profile(), world, 100)):
            assert torch.allclose(torch.cat(found), whole, atol=1e-4)


def test_a_row_that_is_given_twice_is_scored_twice(tiny: Tiny, pairs: tuple[Encoded, ...]) -> None:
    scorer = make_scorer(load_model(tiny.base), pairs, profile(), ignore)
    one, again, other = score_rows(scorer, scorer, [pairs[0], pairs[0], pairs[1]], profile(), World())
    assert torch.equal(one, again) and float(one.abs().min()) > 1 and not torch.equal(one, other)
    assert score_rows(scorer, scorer, [], profile(), World()) == []


# ------------------------------------------------------------------------------------------------ replay


def test_replayed_rows_are_named_among_the_records_of_a_step(tiny: Tiny, pairs: tuple[Encoded, ...]) -> None:
    replay = encode_examples(Encoder(load_tokenizer(tiny.base), 64), sft.load_examples(tiny.examples)).rows
    scorer = make_scorer(load_model(tiny.base), pairs, profile(), ignore)
    settings = preference_settings(2, batch=4, replay=3)
    objective = objective_of(settings, scorer, {}, pairs, replay=replay)
    names = objective.records(0)
    assert names[:4] == [pairs[i].record_id for i in objective.order.indices(0)]
    assert len(names) == 7 and set(names[4:]) <= {row.record_id for row in replay}


def test_replay_has_an_order_of_its_own(tiny: Tiny, pairs: tuple[Encoded, ...]) -> None:
    """The warm start saw the same rows in the order of the same seed."""
    replay = encode_examples(Encoder(load_tokenizer(tiny.base), 64), sft.load_examples(tiny.examples)).rows
    scorer = make_scorer(load_model(tiny.base), pairs, profile(), ignore)
    objective = objective_of(preference_settings(3, batch=4, replay=4), scorer, {}, pairs, replay=replay)
    before = plan(1, len(replay), 4, steps=3, epochs=None)
    seen = [[row.record_id for row in objective._replayed(step)] for step in range(3)]
    assert seen != [[replay[i].record_id for i in before.indices(step)] for step in range(3)]
    assert len({name for names in seen for name in names}) == 12  # each once before any comes again


def test_replayed_rows_choose_the_layout_too(tiny: Tiny, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be longer than any preference, and show a window that those do not reach."""
    given: list[Sequence[Encoded]] = []

    def seen(model: Any, rows: Sequence[Encoded], *other: Any) -> Scorer:
        given.append(rows)
        return make_scorer(model, rows, *other)

    monkeypatch.setattr(preference, "make_scorer", seen)
    preference.run(job(tiny, preference_settings(1, replay=2), root, "model"), ignore)
    assert len(given[0]) == 24


def test_lora_targets_that_the_model_lacks_are_refused(tiny: Tiny) -> None:
    with pytest.raises(Refused, match=r"lora\.targets \('nothing_here',\) do not fit this model"):
        with_lora(load_model(tiny.base), LORA.model_copy(update={"targets": ("nothing_here",)}), 1)


# ------------------------------------------------------------------------------------------------ held-out pairs


def held_out(root: Path, tiny: Tiny, data: dict[str, Any], count: int) -> tuple[dict[str, Any], list[Selected]]:
    kept = read_selection(Path(data["selection"]))
    held = [Selected(item.part, item.row, item.id, "holdout") for item in kept[:count]]
    write_selection([*held, *kept[count:]], root / "selection.parquet")
    given: dict[str, Any] = {
        "profile": profile().model_dump_json(),
        "max_tokens": 64,
        "inputs": {"models": {"base": str(tiny.base)}, "pairs": {**data, "selection": str(root / "selection.parquet")}},
        "outputs": {"base": str(root / "scored")},
    }
    return given, held


def test_held_out_pairs_are_scored_under_every_model_in_stored_order(tiny: Tiny, root: Path) -> None:
    given, held = held_out(root, tiny, tiny.pairs, 5)
    holdout.run(given, ignore)
    lines = [json.loads(line) for line in (root / "scored" / "logps.jsonl").read_text().splitlines()]
    assert [line["record"] for line in lines] == [item.id for item in held]
    records = load_split(given["inputs"]["pairs"], "holdout")
    rows = encode_preferences(preference_settings(), records, load_tokenizer(tiny.base), ignore).rows
    scored = naive.scored(load_model(tiny.base), rows)
    assert [line["chosen"] for line in lines] == pytest.approx([float(t[0]) for t in scored], abs=2e-4)
    assert [line["rejected"] for line in lines] == pytest.approx([float(t[1]) for t in scored], abs=2e-4)
    assert [line["rejected_length"] for line in lines] == [len(row.completions[1]) for row in rows]


def test_a_held_out_prompt_with_several_completions_gives_a_line_per_pair(tiny: Tiny, root: Path) -> None:
    # Scores 2, 0, 2, 1: 0 > 3 > 1 and 2 > 3 > 1, that is 5 pairs, best first.
    answers = [{"text": text, "score": score} for text, score in (("red", 2), ("green", 0), ("blue", 2), ("gold", 1))]
    data = stored(root, "graded", [{"prompt": "Which?", "completions": answers}])
    given, _ = held_out(root, tiny, data, 1)
    holdout.run(given, ignore)
    lines = [json.loads(line) for line in (root / "scored" / "logps.jsonl").read_text().splitlines()]
    records = load_split(given["inputs"]["pairs"], "holdout")
    (row,) = encode_preferences(preference_settings(), records, load_tokenizer(tiny.base), ignore).rows
    (totals,) = naive.scored(load_model(tiny.base), [row])
    expected = [(0, 3), (0, 1), (2, 3), (2, 1), (3, 1)]
    assert [line["chosen"] for line in lines] == pytest.approx([float(totals[i]) for i, _ in expected], abs=2e-4)
    assert [line["rejected"] for line in lines] == pytest.approx([float(totals[j]) for _, j in expected], abs=2e-4)


def test_held_out_labels_without_a_pair_give_a_line_per_completion(tiny: Tiny, root: Path) -> None:
    given, held = held_out(root, tiny, ratings_only(root), 3)
    holdout.run(given, ignore)
    lines = [json.loads(line) for line in (root / "scored" / "logps.jsonl").read_text().splitlines()]
    records = list(load_split(given["inputs"]["pairs"], "holdout"))
    rows = encode_records(Encoder(load_tokenizer(tiny.base), 64), records, bool).rows
    scored = naive.scored(load_model(tiny.base), rows)
    assert [line["record"] for line in lines] == [item.id for item in held]
    assert [line["nats"] for line in lines] == pytest.approx([float(totals[0]) for totals in scored], abs=2e-4)
    assert [line["desirable"] for line in lines] == [record.completions[0].label for record in records]
    assert [line["length"] for line in lines] == [len(row.completions[0]) for row in rows]
