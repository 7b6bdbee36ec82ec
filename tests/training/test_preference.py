"""The reference is the initial policy and nothing else; replayed rows enter with their weight."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.tiny import LORA, Tiny, job, preference_settings, profile, sft_settings
from training import holdout, preference, sft
from training.data.batches import plan
from training.data.encode import Encoded, Encoder, encode_examples, encode_pairs
from training.data.snapshot import read_snapshot, write_snapshot
from training.data.split import Selected, read_selection, write_selection
from training.loop import train
from training.models import load_model, load_tokenizer, with_lora
from training.preference import Preference, pairs_of
from training.reference import check_start, reference_totals, score_pairs
from training.settings import Profile, Refused, Source

LN_2 = math.log(2)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate's precision is a singleton of the process; a job has a process of its own."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def pairs(tiny: Tiny) -> tuple[Encoded, ...]:
    return encode_pairs(Encoder(load_tokenizer(tiny.base), 64), pairs_of(tiny.pairs, "train")).rows


def metrics(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [event["metrics"] for event in events if event["type"] == "metrics"]


# ------------------------------------------------------------------------------------------------ step 0


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_log_ratios_of_the_first_step_are_zero(tiny: Tiny, root: Path, lora: Any) -> None:
    # Dropout is no exception: the adapters' second factor is zero at the start, so what it drops is nothing.
    events: list[dict[str, Any]] = []
    preference.run(job(tiny, preference_settings(2, lora), root, "model"), events.append)
    first, second = metrics(events)
    assert first["loss"] == pytest.approx(LN_2, abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert second["loss"] != pytest.approx(LN_2, abs=1e-5)
    (start,) = [event["facts"] for event in events if "log_ratio_at_start" in event.get("facts", {})]
    assert 0 <= start["log_ratio_at_start"] < 1e-3


def test_reference_and_policy_are_scored_in_the_same_precision(
    tiny: Tiny, root: Path, pairs: tuple[Encoded, ...], fresh_accelerate: None
) -> None:
    """A reference scored in float32 for a policy that trains in bfloat16 starts with log-ratios of its rounding."""
    chosen = Profile(threads=1, dtype="bfloat16")
    model = load_model(tiny.base)
    totals = reference_totals(model, pairs, chosen, root / "reference.safetensors")
    exact = reference_totals(model, pairs, profile(), root / "exact.safetensors")
    assert float((totals - exact).abs().max()) > 1e-4
    events: list[dict[str, Any]] = []
    objective = Preference(
        preference_settings(1, batch=12), pairs, totals, (), plan(1, 12, 12, steps=1, epochs=None), chosen
    )
    train(model, objective, preference_settings(1, batch=12), chosen, 1, "x", root / "checkpoints", events.append)
    (first,) = metrics(events)
    assert abs(first["rewards/chosen"]) < 1e-5 and abs(first["rewards/rejected"]) < 1e-5


def test_a_reference_that_is_not_the_initial_policy_is_detected(
    tiny: Tiny, root: Path, pairs: tuple[Encoded, ...]
) -> None:
    model = load_model(tiny.base)
    totals = reference_totals(model, pairs, profile(), root / "reference.safetensors")
    assert check_start(model, pairs, totals, profile()) <= 1e-3
    with torch.no_grad():
        model.model.norm.weight.mul_(1.01)
    with pytest.raises(RuntimeError, match="the reference is not the initial policy"):
        check_start(model, pairs, totals, profile())
    with pytest.raises(RuntimeError, match="the reference is not the initial policy"):
        check_start(load_model(tiny.base), pairs, totals * math.nan, profile())


def test_the_start_is_checked_in_evaluation_mode(tiny: Tiny, root: Path, pairs: tuple[Encoded, ...]) -> None:
    model = load_model(tiny.base)
    totals = reference_totals(model, pairs, profile(), root / "reference.safetensors")
    adapted = with_lora(model, LORA, 1).train()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                parameter.mul_(100)  # B is zero, so this says nothing yet
    assert check_start(adapted, pairs, totals, profile()) <= 1e-3
    assert not adapted.training


def test_the_reference_after_an_sft_with_lora_is_the_merged_warm_start(
    tiny: Tiny, root: Path, pairs: tuple[Encoded, ...]
) -> None:
    sft.run(job(tiny, sft_settings(5, LORA), root, "warm"), lambda event: None)
    given = job(tiny, preference_settings(1, LORA), root, "policy")
    given["inputs"] = {**given["inputs"], "model": str(root / "warm")}
    events: list[dict[str, Any]] = []
    preference.run(given, events.append)
    used = load_file(root / "checkpoints-policy" / "reference.safetensors")["totals"]

    def totals(folder: Path) -> torch.Tensor:
        scored = score_pairs(load_model(folder), pairs, profile())
        return torch.stack([scored["chosen"][0], scored["rejected"][0]], dim=1)

    assert torch.equal(used, totals(root / "warm"))
    assert float((used - totals(tiny.base)).abs().min()) > 0.01  # the SFT has moved every pair
    assert metrics(events)[0]["loss"] == pytest.approx(LN_2, abs=1e-5)


def test_the_reference_is_scored_once_and_read_again(tiny: Tiny, root: Path, pairs: tuple[Encoded, ...]) -> None:
    model = load_model(tiny.base)
    first = reference_totals(model, pairs, profile(), root / "cache" / "reference.safetensors")
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    assert torch.equal(reference_totals(model, pairs, profile(), root / "cache" / "reference.safetensors"), first)
    assert [path.name for path in (root / "cache").iterdir()] == ["reference.safetensors"]


# ------------------------------------------------------------------------------------------------ replay and SFT term


@torch.no_grad()
def test_replayed_rows_and_the_sft_term_enter_the_loss_with_their_weights(
    tiny: Tiny, root: Path, pairs: tuple[Encoded, ...]
) -> None:
    replay = encode_examples(Encoder(load_tokenizer(tiny.base), 64), sft.load_examples(tiny.examples)).rows
    model = load_model(tiny.base).eval()
    totals = reference_totals(model, pairs, profile(), root / "reference.safetensors")
    order = plan(1, len(pairs), 4, steps=2, epochs=None)

    def loss(**weights: Any) -> tuple[float, dict[str, float]]:
        objective = Preference(preference_settings(batch=4, **weights), pairs, totals, replay, order, profile())
        parts = list(objective.parts(model, 1))
        sums: dict[str, float] = {}
        for part in parts:
            for key, value in part.sums.items():
                sums[key] = sums.get(key, 0.0) + value
        return sum(float(part.loss) for part in parts), sums

    plain, _ = loss()
    assert plain == pytest.approx(LN_2, abs=1e-5)
    with_replay, sums = loss(replay=3, replay_weight=0.4)
    assert with_replay == pytest.approx(LN_2 + 0.4 * sums["replay_nll"], abs=1e-4)
    # The model is nearly uniform over its vocabulary: about ln(vocabulary) nats a token, whatever the rows.
    assert sums["replay_nll"] == pytest.approx(math.log(model.config.vocab_size), abs=0.2)
    with_term, sums = loss(sft_weight=0.7)
    assert with_term == pytest.approx(LN_2 + 0.7 * sums["nll/chosen"], abs=1e-4)
    assert "replay_nll" not in sums


def test_replayed_rows_are_named_among_the_records_of_a_step(tiny: Tiny, pairs: tuple[Encoded, ...]) -> None:
    replay = encode_examples(Encoder(load_tokenizer(tiny.base), 64), sft.load_examples(tiny.examples)).rows
    order = plan(1, 12, 4, steps=2, epochs=None)
    objective = Preference(preference_settings(batch=4, replay=3), pairs, torch.zeros(12, 2), replay, order, profile())
    names = objective.records(0)
    assert names[:4] == [pairs[i].record_id for i in order.indices(0)]
    assert len(names) == 7 and set(names[4:]) <= {row.record_id for row in replay}


# ------------------------------------------------------------------------------------------------ what is refused


def test_no_pair_left_after_the_cut_is_refused(tiny: Tiny, root: Path) -> None:
    # 8 tokens: completions that share their first 8 are the same, however much the prompt gives way.
    row = {"prompt": "Which?", "chosen": "zzzz zzzz zzzz yes", "rejected": "zzzz zzzz zzzz no"}
    (root / "same.jsonl").write_text(json.dumps(row))
    write_snapshot([Source(path="same.jsonl")], root, root / "same")
    (stored,) = read_snapshot(root / "same")
    write_selection([Selected("same", 0, stored.id, "train")], root / "same.parquet")
    given = job(tiny, preference_settings(max_tokens=8), root, "model")
    given["inputs"]["pairs"] = {"parts": {"same": str(root / "same")}, "selection": str(root / "same.parquet")}
    events: list[dict[str, Any]] = []
    with pytest.raises(Refused, match="no pair is left after cutting to max_tokens 8; raise max_tokens"):
        preference.run(given, events.append)
    assert events[0]["facts"] == {"pairs_rows": 0, "pairs_truncated": 1, "pairs_dropped_after_truncation": 1}


def test_lora_targets_that_the_model_lacks_are_refused(tiny: Tiny) -> None:
    with pytest.raises(Refused, match=r"lora\.targets \('nothing_here',\) do not fit this model"):
        with_lora(load_model(tiny.base), LORA.model_copy(update={"targets": ("nothing_here",)}), 1)


# ------------------------------------------------------------------------------------------------ held-out pairs


def test_held_out_pairs_are_scored_under_every_model_in_stored_order(tiny: Tiny, root: Path) -> None:
    kept = read_selection(Path(tiny.pairs["selection"]))
    held = [Selected(item.part, item.row, item.id, "holdout") for item in kept[:5]]
    write_selection([*held, *kept[5:]], root / "selection.parquet")
    given: dict[str, Any] = {
        "profile": profile().model_dump_json(),
        "max_tokens": 64,
        "inputs": {
            "models": {"base": str(tiny.base)},
            "pairs": {**tiny.pairs, "selection": str(root / "selection.parquet")},
        },
        "outputs": {"base": str(root / "scored")},
    }
    holdout.run(given, lambda event: None)
    lines = [json.loads(line) for line in (root / "scored" / "logps.jsonl").read_text().splitlines()]
    assert [line["record"] for line in lines] == [item.id for item in held]
    rows = encode_pairs(Encoder(load_tokenizer(tiny.base), 64), pairs_of(given["inputs"]["pairs"], "holdout")).rows
    scored = score_pairs(load_model(tiny.base), rows, profile(100_000))
    assert [line["chosen"] for line in lines] == pytest.approx(scored["chosen"][0].tolist(), abs=1e-4)
    assert [line["rejected_length"] for line in lines] == [len(row.completions[1]) for row in rows]
