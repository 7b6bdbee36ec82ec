"""The optimiser loop: normalisation, schedule, the stop on NaN, and a resume that cannot be told from a quiet run."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny import (
    LORA,
    Stopped,
    Tiny,
    job,
    preference_settings,
    profile,
    sft_settings,
    stop_at,
    weights,
)
from tests.training.workers import ignore
from training import preference, sft
from training.data.batches import Plan, plan
from training.data.encode import Encoded, Encoder, encode_examples
from training.loop import Diverged, Objective, train
from training.losses.base import Logps, PairLogps
from training.metrics import pair_metrics
from training.models import load_model, load_tokenizer
from training.preference import Preference, encode_preferences, load_split
from training.processes import World
from training.reference import keys
from training.scorer import Scorer, make_scorer
from training.settings import PreferenceSettings, SFTSettings

Case = tuple[Callable[..., None], SFTSettings | PreferenceSettings]


def sft_rows(tiny: Tiny) -> tuple[Encoded, ...]:
    return tuple(encode_examples(Encoder(load_tokenizer(tiny.base), 64), sft.load_examples(tiny.examples)).rows)


def pair_rows(tiny: Tiny) -> tuple[Encoded, ...]:
    records = load_split(tiny.pairs, "train")
    return tuple(encode_preferences(preference_settings(), records, load_tokenizer(tiny.base), ignore).rows)


def scorer_of(tiny: Tiny) -> Scorer:
    return make_scorer(load_model(tiny.base), sft_rows(tiny), profile(), ignore)


# ------------------------------------------------------------------------------------------------ normalisation


def objective_of(kind: str, tiny: Tiny, scorer: Scorer) -> Objective:
    examples = sft_rows(tiny)
    if kind == "sft":
        return sft.SFT(examples, plan(1, len(examples), 7, steps=3, epochs=None), scorer, profile())
    pairs = pair_rows(tiny)
    settings = preference_settings(batch=7, replay=5, replay_weight=0.3, sft_weight=0.7)
    objective = Preference(settings, pairs, examples, plan(1, 12, 7, steps=3, epochs=None), scorer, profile())
    objective.totals = {key: -20.0 - 0.5 * i for i, row in enumerate(pairs) for key in keys(row)}
    return objective


@pytest.mark.parametrize("kind", ["sft", "preference"])
def test_loss_and_gradient_of_a_step_do_not_depend_on_how_it_is_cut(tiny: Tiny, kind: str) -> None:
    found = []
    for budget in (64, 150, 100_000):
        scorer = scorer_of(tiny)
        parts = objective_of(kind, tiny, scorer).parts(scorer, 1, budget, World())
        loss = 0.0
        sums: dict[str, float] = {}
        for compute in parts:
            part = compute()
            part.loss.backward()
            loss += float(part.loss.detach())
            for key, value in part.sums.items():
                sums[key] = sums.get(key, 0.0) + value
        gradient = torch.cat([parameter.grad.flatten() for parameter in scorer.parameters()])
        found.append((len(parts), loss, gradient, sums))
    (many, *_), _, (few, loss, gradient, sums) = found
    assert many >= 4 and few == (1 if kind == "sft" else 2)  # pairs and replayed rows are batches of their own
    for _, other_loss, other_gradient, other_sums in found[:2]:
        assert other_loss == pytest.approx(loss, abs=1e-5)
        assert float((other_gradient - gradient).abs().max()) < 1e-5
        assert other_sums == pytest.approx(sums, abs=1e-4)


def loss_of(objective: Objective, scorer: Scorer, step: int = 0) -> float:
    return sum(float(compute().loss) for compute in objective.parts(scorer, step, 64, World()))


def test_the_sft_loss_is_the_weighted_mean_over_the_completion_tokens_of_the_step(tiny: Tiny) -> None:
    rows = sft_rows(tiny)
    order = plan(1, len(rows), 5, steps=1, epochs=None)
    scorer = scorer_of(tiny).eval()
    with torch.no_grad():
        found = loss_of(sft.SFT(rows, order, scorer, profile()), scorer)
        model = load_model(tiny.base).eval()
        above = below = 0.0
        for i in order.indices(0):
            prompt, (completion,) = rows[i].prompt, rows[i].completions
            logp = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
            nll = -sum(float(logp[len(prompt) + t - 1, token]) for t, token in enumerate(completion))
            above, below = above + rows[i].weight * nll, below + rows[i].weight * len(completion)
    assert found == pytest.approx(above / below, abs=1e-5)


def test_a_row_that_stands_twice_in_a_step_counts_twice(tiny: Tiny) -> None:
    """Thirteen visits of twelve rows: an epoch ends within the step and one pair is seen again."""
    pairs = pair_rows(tiny)
    order = plan(1, 12, 13, steps=1, epochs=None)
    alone = plan(1, 1, 1, steps=1, epochs=None)
    scorer = scorer_of(tiny).eval()

    def loss(rows: Sequence[Encoded], order: Plan) -> float:
        objective = Preference(preference_settings(batch=13), rows, (), order, scorer, profile())
        objective.totals = {key: 0.0 for row in rows for key in keys(row)}
        return loss_of(objective, scorer)

    with torch.no_grad():
        found = loss(pairs, order)
        single = [loss((row,), alone) for row in pairs]
    visited = order.indices(0)
    weight = [pairs[i].weight for i in visited]
    assert len(visited) == 13 and len(set(visited)) == 12
    expected = sum(w * single[i] for w, i in zip(weight, visited, strict=True)) / sum(weight)
    assert found == pytest.approx(expected, abs=1e-4)


# ------------------------------------------------------------------------------------------------ divergence


def test_a_loss_that_is_no_number_stops_and_names_step_and_records(tiny: Tiny, root: Path) -> None:
    rows = list(sft_rows(tiny))
    order = plan(1, len(rows), 4, steps=3, epochs=None)
    poisoned = order.indices(2)[1]  # first seen in step 3, since 3 * 4 visits are one epoch of 12 rows
    rows[poisoned] = dataclasses.replace(rows[poisoned], weight=math.nan)
    scorer = scorer_of(tiny)
    before = {}

    def log(event: dict[str, Any]) -> None:
        before.update({key: value.clone() for key, value in scorer.state_dict().items()})

    with pytest.raises(Diverged) as raised:
        objective = sft.SFT(rows, order, scorer, profile(100_000))
        train(scorer, objective, sft_settings(3), profile(100_000), 1, "x", root / "checkpoints", log)
    message = str(raised.value)
    assert message.startswith("step 3: loss nan") and "last good checkpoint" in message and "step-00000002" in message
    assert all(rows[i].record_id in message for i in order.indices(2))
    assert rows[order.indices(0)[0]].record_id not in message
    assert all(torch.equal(value, before[key]) for key, value in scorer.state_dict().items())  # nothing was updated


# ------------------------------------------------------------------------------------------------ bits

CASES: dict[str, Case] = {
    "sft": (sft.run, sft_settings()),
    "sft with LoRA and dropout": (sft.run, sft_settings(lora=LORA)),
    "preference": (preference.run, preference_settings(replay=2, sft_weight=0.5)),
    "preference with LoRA and dropout": (preference.run, preference_settings(lora=LORA)),
}


@pytest.fixture(scope="module", params=CASES)
def undisturbed(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: Any) -> tuple[Case, bytes]:
    run, settings = CASES[request.param]
    root = tmp_path_factory.mktemp("undisturbed")
    run(job(tiny, settings, root, "model"), ignore)
    return (run, settings), weights(root / "model")


def test_two_runs_of_one_seed_are_the_same_bytes_and_another_seed_is_not(
    undisturbed: tuple[Case, bytes], tiny: Tiny, root: Path
) -> None:
    (run, settings), expected = undisturbed
    run(job(tiny, settings, root, "again"), ignore)
    assert weights(root / "again") == expected != weights(tiny.base)
    run(job(tiny, settings, root, "other", seed=4), ignore)
    assert weights(root / "other") != expected


def test_a_resumed_run_is_the_same_bytes_as_an_undisturbed_one(
    undisturbed: tuple[Case, bytes], tiny: Tiny, root: Path
) -> None:
    (run, settings), expected = undisturbed
    given = job(tiny, settings, root, "model")
    first: list[dict[str, Any]] = []
    with pytest.raises(Stopped):
        run(given, stop_at(4, first))  # the checkpoint of step 3 is the newest
    assert not (root / "model").exists()
    second: list[dict[str, Any]] = []
    run(given, second.append)
    assert {"type": "milestone", "message": "goes on from the checkpoint at step 3"} in second
    steps = [event for event in second if event["type"] == "metrics"]
    assert [event["step"] for event in steps] == [4, 5]
    assert steps[0]["metrics"] == next(e["metrics"] for e in first if e["type"] == "metrics" and e["step"] == 4)
    assert weights(root / "model") == expected


@pytest.mark.parametrize("file", ["rank-00000.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over_with_a_message(tiny: Tiny, root: Path, file: str) -> None:
    sft.run(job(tiny, sft_settings(), root, "undisturbed"), ignore)
    given = job(tiny, sft_settings(), root, "model")
    with pytest.raises(Stopped):
        sft.run(given, stop_at(5, []))
    folder = root / "checkpoints-model"
    assert [path.name for path in sorted(folder.glob("step-*"))] == ["step-00000003", "step-00000004"]  # two are kept
    data = bytearray((folder / "step-00000004" / file).read_bytes())
    data[-1] ^= 1
    (folder / "step-00000004" / file).write_bytes(data)
    events: list[dict[str, Any]] = []
    sft.run(given, events.append)
    messages = [event["message"] for event in events if event["type"] == "milestone"]
    assert messages[0].startswith("checkpoint step-00000004 is damaged (") and "passed over" in messages[0]
    assert messages[1] == "goes on from the checkpoint at step 3"
    assert weights(root / "model") == weights(root / "undisturbed")


def test_a_half_written_checkpoint_is_never_picked_up(tiny: Tiny, root: Path) -> None:
    folder = root / "checkpoints-model"
    (folder / ".partial-step-00000002").mkdir(parents=True)
    (folder / ".partial-step-00000002" / "rank-00000.safetensors").write_bytes(b"half")
    events: list[dict[str, Any]] = []
    sft.run(job(tiny, sft_settings(1), root, "model"), events.append)
    assert [event["step"] for event in events if event["type"] == "metrics"] == [1]
    assert not (folder / ".partial-step-00000002").exists()


def test_a_checkpoint_of_another_objective_is_refused(tiny: Tiny, root: Path) -> None:
    with pytest.raises(Stopped):
        sft.run(job(tiny, sft_settings(), root, "model"), stop_at(3, []))
    with pytest.raises(ValueError, match="was written for objective this one, not another: other settings"):
        sft.run(job(tiny, sft_settings(), root, "model", objective="another"), ignore)
    assert not (root / "model").exists()


# ------------------------------------------------------------------------------------------------ metrics


def test_metrics_are_computed_from_the_log_ratios_and_a_tie_counts_one_half() -> None:
    def logps(*totals: float) -> Logps:
        return Logps(torch.tensor(totals), torch.ones(len(totals)))

    # r_w = 1, 0, -2; r_l = -3, 0, 1; beta 0.5: margins 0.5 * (4, 0, -3): won, tied, lost
    policy = PairLogps(logps(-9.0, -5.0, -7.0), logps(-8.0, -6.0, -4.0))
    reference = PairLogps(logps(-10.0, -5.0, -5.0), logps(-5.0, -6.0, -5.0))
    found = {key: value.tolist() for key, value in pair_metrics(policy, reference, 0.5).items()}
    assert found == {
        "rewards/chosen": [0.5, 0.0, -1.0],
        "rewards/rejected": [-1.5, 0.0, 0.5],
        "rewards/margins": [2.0, 0.0, -1.5],
        "rewards/accuracies": [1.0, 0.5, 0.0],
        "logps/chosen": [-9.0, -5.0, -7.0],
        "logps/rejected": [-8.0, -6.0, -4.0],
    }
