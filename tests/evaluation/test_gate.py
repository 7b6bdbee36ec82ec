"""The gate's rules, each with results small enough to judge by hand."""

import json
import math

import pytest
from pydantic import ValidationError

from evaluation.gate import CHOSEN_LOGPS, Decision, check_rules, decide
from evaluation.scores import ItemScore, Results, Score, mean_score
from evaluation.settings import Floor, GateSettings, Guard, Improve, Refused

HEALTHY = {"samples/empty": 0.0, "samples/repetitive": 0.0, "samples/unfinished": 0.0, "samples/identical": 0.1}


def results(
    better: bool = True, logps: float | None = None, shares: dict[str, float] | None = None, **items
) -> Results:
    """Results with per-item values for ``bench/<name>`` and the collapse metrics."""
    scores, tables = [], {}
    for name, values in items.items():
        rows = [ItemScore(f"{i:04}", float(v)) for i, v in enumerate(values)]
        scores.append(mean_score("bench", name, rows, better))
        tables[f"bench/{name}"] = rows
    for name, value in (HEALTHY | (shares or {})).items():
        scores.append(Score("samples", name.partition("/")[2], value, None, 64, False))
    if logps is not None:
        scores.append(Score("holdout", "chosen_logps", logps, None, 300))
    return Results.of(scores, tables)


IMPROVE = GateSettings(improve=(Improve(metric="bench/acc"),))
GUARD = GateSettings(guards=(Guard(metric="bench/acc", margin=0.05),))


def test_a_clear_improvement_is_accepted() -> None:
    # 10 items gained, none lost: p = 2^-10.
    decision = decide(IMPROVE, results(acc=[1] * 20), results(acc=[0] * 10 + [1] * 10), None)
    assert decision.accepted
    row = decision.rows[0]
    assert (row.p_value, row.difference, row.n, row.method) == (2**-10, 0.5, 20, "McNemar")


def test_an_improvement_that_chance_explains_is_refused_and_says_how_many_items_it_takes() -> None:
    decision = decide(IMPROVE, results(acc=[1] * 20), results(acc=[0] * 2 + [1] * 18), None)
    assert not decision.accepted
    assert decision.rows[0].p_value == 0.25
    assert "items would show it" in decision.reasons[0]


@pytest.mark.parametrize("margin", [0.001, 0.05, 0.5])
@pytest.mark.parametrize("values", [[1, 0, 1, 1, 0] * 4, [0.3, 0.7, 0.25]])
def test_a_champion_against_itself_passes_guards_and_fails_improvements(values: list[float], margin: float) -> None:
    same = results(acc=values)
    assert decide(GateSettings(guards=(Guard(metric="bench/acc", margin=margin),)), same, same, None).accepted
    assert not decide(IMPROVE, same, same, None).accepted


def test_a_guard_lets_a_small_loss_pass_and_stops_a_large_one() -> None:
    champion = results(acc=[1] * 400)
    assert decide(GUARD, results(acc=[0] * 4 + [1] * 396), champion, None).accepted  # 1 % lost, margin 5 %
    assert not decide(GUARD, results(acc=[0] * 20 + [1] * 380), champion, None).accepted  # at the margin
    assert not decide(GUARD, results(acc=[0] * 40 + [1] * 360), champion, None).accepted


def test_a_guard_on_few_items_does_not_pass_for_want_of_evidence() -> None:
    decision = decide(GUARD, results(acc=[0] + [1] * 19), results(acc=[1] * 20), None)
    assert not decision.accepted


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_where_less_is_better_the_fall_is_the_improvement(kind: str) -> None:
    low, high = ([0.0] * 20, [1.0] * 10 + [0.0] * 10) if kind == "binary" else ([1.0, 2, 3, 4], [2.0, 3.1, 4, 5.2])
    fewer, more = results(better=False, acc=low), results(better=False, acc=high)
    row = decide(IMPROVE, fewer, more, None).rows[0]
    assert row.passed
    assert row.difference is not None and row.bound is not None and row.difference < row.bound < 0
    assert not decide(IMPROVE, more, fewer, None).accepted
    assert not decide(GUARD, more, fewer, None).accepted


def test_items_that_do_not_match_fail_the_rule_and_are_counted() -> None:
    decision = decide(GUARD, results(acc=[1] * 10), results(acc=[1] * 13), None)
    assert not decision.accepted
    assert "0 only on the challenger, 3 only on the champion" in decision.reasons[0]


def test_without_a_champion_floors_and_the_collapse_guard_decide() -> None:
    settings = GateSettings(improve=IMPROVE.improve, floors=(Floor(metric="bench/acc", minimum=0.9),))
    accepted, refused = (
        decide(settings, results(acc=[1] * 10), None, None),
        decide(settings, results(acc=[0, 1]), None, None),
    )
    assert accepted.accepted and not refused.accepted
    assert any("no champion" in reason for reason in accepted.reasons)
    assert "0.5, at least 0.9" in refused.reasons[0]


def test_a_floor_is_a_ceiling_where_less_is_better() -> None:
    settings = GateSettings(floors=(Floor(metric="bench/ppl", minimum=20),))
    assert decide(settings, results(better=False, ppl=[18, 19]), None, None).accepted
    assert not decide(settings, results(better=False, ppl=[21, 22]), None, None).accepted


@pytest.mark.parametrize("metric", list(HEALTHY))
def test_a_collapsed_model_is_refused_whatever_it_scores(metric: str) -> None:
    decision = decide(IMPROVE, results(acc=[1] * 20, shares={metric: 0.9}), results(acc=[0] * 20), None)
    assert not decision.accepted
    assert metric in decision.reasons[0] and "90.0%" in decision.reasons[0]


def test_chosen_completions_may_not_become_much_less_likely() -> None:
    before = results(logps=-1.0)
    assert decide(GateSettings(), results(logps=-1.4), None, before).accepted
    refused = decide(GateSettings(), results(logps=-1.6), None, before)
    assert not refused.accepted
    assert "0.6 nats per token less likely" in refused.reasons[0]
    assert not decide(GateSettings(), results(), None, before).accepted  # not measured
    assert CHOSEN_LOGPS in decide(GateSettings(), results(), None, None).reasons[-1]


def test_a_value_that_is_no_number_fails_every_rule() -> None:
    broken, fine = results(acc=[1, math.nan, 1]), results(acc=[0, 0, 0])
    floor = GateSettings(floors=(Floor(metric="bench/acc", minimum=0.0),))
    for settings in (IMPROVE, GUARD, floor):
        assert not decide(settings, broken, fine, None).accepted
    assert not decide(GUARD, fine, broken, None).accepted
    assert not decide(GateSettings(), results(shares={"samples/empty": math.nan}), None, None).accepted


def test_a_metric_that_was_not_measured_fails_with_the_nearest_name() -> None:
    decision = decide(GUARD, results(accuracy=[1, 1]), results(acc=[1, 1]), None)
    assert "Did you mean bench/accuracy?" in decision.reasons[0]


def test_rules_are_checked_before_training_all_at_once() -> None:
    settings = GateSettings(improve=(Improve(metric="bench/ac"),), floors=(Floor(metric="other/acc", minimum=0),))
    with pytest.raises(Refused, match=r"(?s)improve\[0\].*Did you mean bench/acc.*floors\[0\]"):
        check_rules(settings, {"bench/acc", "samples/empty"})
    check_rules(settings, {"bench/ac"}, open_benchmarks={"other"})


def test_an_empty_gate_accepts_nothing() -> None:
    settings = GateSettings(collapse=None, collapse_off_reason="measured elsewhere")
    decision = decide(settings, results(), results(), None)
    assert not decision.accepted
    assert "nothing was judged" in decision.reasons[0]


def test_the_collapse_guard_is_turned_off_with_a_reason_only() -> None:
    with pytest.raises(ValidationError, match="collapse_off_reason"):
        GateSettings(collapse=None)


def test_a_decision_survives_json() -> None:
    settings = GateSettings(improve=IMPROVE.improve, guards=GUARD.guards)
    decision = decide(settings, results(acc=[1, math.nan]), results(acc=[0, 1]), results(logps=-1))
    assert Decision.from_json(json.loads(json.dumps(decision.as_json(), allow_nan=False))) == decision
