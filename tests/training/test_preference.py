"""A step of preference optimization: every loss against a second implementation on naive float64 passes; what a step's
loss may depend on and what not; KTO's baseline; mixtures; metrics; the held-out margin."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training import naive
from tests.training.objectives import LAYOUTS, LOSSES, REPLAY, ROWS, objective_of
from tests.training.tiny import LORA, Tiny, job, preference_settings, profile, ratings_only
from tests.training.workers import ignore
from training import preference
from training.data.batches import plan
from training.data.encode import Encoded
from training.loop import Part
from training.models import with_lora
from training.preference import Preference
from training.processes import World
from training.reference import keys, score_rows
from training.scorer import Scorer, make_scorer
from training.settings import PreferenceSettings, Profile
from training.strict import Refused

LN_2 = math.log(2)
ORDER = plan(1, len(ROWS), len(ROWS), steps=1, epochs=None).indices(0)


def settings_of(loss: Any, **other: Any) -> PreferenceSettings:
    given = {"name": loss} if isinstance(loss, str) else loss
    return preference_settings(1, loss=given, **{"batch": len(ROWS), "max_tokens": 4096, **other})


@dataclass
class Step:
    """All parts of one step, computed and added."""

    loss: float
    gradient: dict[str, Tensor]
    sums: dict[str, float]
    parts: list[Part]


def computed(objective: Preference, budget: int = 4096, step: int = 0, world: World | None = None) -> Step:
    scorer = objective.scorer
    scorer.zero_grad()
    parts = []
    sums: dict[str, float] = {}
    for compute in objective.parts(scorer, step, budget, world or World()):
        part = compute()
        part.loss.backward()
        parts.append(dataclasses.replace(part, loss=part.loss.detach()))
        for key, value in part.sums.items():
            sums[key] = sums.get(key, 0.0) + value
    return Step(sum(float(part.loss) for part in parts), naive.gradient(scorer.model), sums, parts)


@dataclass
class Naive:
    """The policy after some steps and its reference, in float64; ``policy`` and ``z`` are by row, with a graph."""

    model: Any
    policy: list[Tensor]
    reference: list[Tensor]
    twin: Any

    def baseline(self, desirable_from: float | None = None) -> Tensor:
        """z of the step that all rows are in, in the order of the step."""
        other = naive.mismatched([ROWS[i] for i in ORDER], desirable_from)
        ratios = [a - b for a, b in zip(naive.totals(self.model, other), naive.totals(self.twin, other), strict=True)]
        return torch.cat(ratios).mean().clamp(min=0).detach()

    def gradient(self, loss: Tensor) -> dict[str, Tensor]:
        return naive.gradient(self.model, loss)


@pytest.fixture(scope="module")
def exact() -> Naive:
    initial = naive.exact(naive.model("llama"))
    model = naive.exact(naive.moved(naive.model("llama")))
    reference = [total.detach() for total in naive.totals(initial, ROWS)]
    return Naive(model, naive.totals(model, ROWS), reference, initial)


@pytest.fixture(scope="module", params=LAYOUTS)
def ready(request: pytest.FixtureRequest) -> tuple[Scorer, dict[bytes, float]]:
    """A scorer that has its reference (of the rows, and of KTO's mismatched ones), and has moved on since."""
    return begun(request.param)


@pytest.fixture(scope="module")
def shared() -> tuple[Scorer, dict[bytes, float]]:
    return begun("shared")


def begun(layout: Any) -> tuple[Scorer, dict[bytes, float]]:
    scorer = make_scorer(naive.model("llama"), ROWS, Profile(threads=1, layout=layout), ignore)
    assert scorer.path.name == layout
    totals: dict[bytes, float] = {}
    for border in (None, 1.0):
        objective = objective_of(settings_of("kto", desirable_from=border), scorer, {})
        objective.begin(scorer, World())
        totals |= objective.totals
    naive.moved(scorer.model)
    return scorer, totals


# ------------------------------------------------------------------------------------------------ every loss


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_are_those_of_a_second_implementation(
    ready: tuple[Scorer, dict[bytes, float]], exact: Naive, loss: str
) -> None:
    """K of 1 to 7 with ties, weights, one-token prompts and completions; in one micro-batch and in many."""
    scorer, totals = ready
    for border in (None, 1.0) if loss == "kto" else (None,):
        settings = settings_of(loss, desirable_from=border)
        z = exact.baseline(border) if loss == "kto" else 0.0
        expected = naive.loss_of(settings.loss, ROWS, exact.policy, exact.reference, border, z)
        gradient = exact.gradient(expected)
        for budget in (4096, 90):
            step = computed(objective_of(settings, scorer, totals), budget)
            assert len(step.parts) == 1 if budget == 4096 else len(step.parts) >= 3
            assert step.loss == pytest.approx(float(expected.detach()), rel=1e-5, abs=2e-5)
            assert naive.distance(step.gradient, gradient) < 1e-5


def test_there_are_fourteen_losses() -> None:
    assert len(LOSSES) == 14


def test_a_mixture_is_the_sum_of_its_terms(shared: tuple[Scorer, dict[bytes, float]], exact: Naive) -> None:
    """dpo + 0.5 kto + 0.25 listwise + 0.7 NLL of the chosen of each pair + 0.4 NLL of the replayed rows."""
    scorer, totals = shared
    mix = (
        {"coefficient": 0.5, "loss": {"name": "kto", "beta": 0.2}},
        {"coefficient": 0.25, "loss": {"name": "listwise"}},
    )
    settings = settings_of("dpo", mix=mix, sft_weight=0.7, replay=3, replay_weight=0.4)
    z = exact.baseline()
    terms = [
        term.coefficient * naive.loss_of(term.loss, ROWS, exact.policy, exact.reference, None, z)
        for term in settings.terms
    ]
    above = below = replayed = torch.zeros((), dtype=torch.float64)
    for row, total in zip(ROWS, exact.policy, strict=True):
        pairs = [(i, j) for i, a in enumerate(row.grades) for j, b in enumerate(row.grades) if a > b]
        for i, _ in pairs:
            above = above - row.weight / len(pairs) * total[i] / len(row.completions[i])
        below = below + (row.weight if pairs else 0)
    nlls = [
        -total[0] / len(row.completions[0])
        for row, total in zip(REPLAY, naive.totals(exact.model, REPLAY), strict=True)
    ]
    replayed = sum(row.weight * nll for row, nll in zip(REPLAY, nlls, strict=True)) / sum(row.weight for row in REPLAY)  # type: ignore[assignment]
    expected = sum(terms) + 0.7 * above / below + 0.4 * replayed
    for budget in (4096, 64):
        step = computed(objective_of(settings, scorer, totals), budget)
        assert step.loss == pytest.approx(float(expected.detach()), rel=1e-5)
        assert naive.distance(step.gradient, exact.gradient(expected)) < 1e-5
        assert step.sums["nll/chosen"] == pytest.approx(float((above / below).detach()), rel=1e-5)
        assert step.sums["replay_nll"] == pytest.approx(float(replayed.detach()), rel=1e-5)
        assert step.sums["kl_baseline"] == pytest.approx(float(z), rel=1e-4, abs=1e-5)


def test_a_term_without_examples_in_a_step_adds_nothing(
    shared: tuple[Scorer, dict[bytes, float]], exact: Naive
) -> None:
    """The single rows can be rated and make no pair."""
    scorer, totals = shared
    singles = [ROWS[2], ROWS[7]]
    mix = ({"coefficient": 0.5, "loss": {"name": "dpo"}}, {"coefficient": 2.0, "loss": {"name": "rrhf"}})
    settings = settings_of("kto", desirable_from=0.5, mix=mix, batch=2)
    objective = objective_of(settings, scorer, totals, singles)
    totals = totals | {key: -30.0 for row in objective._mismatched(0) for key in keys(row) if key not in totals}
    objective.totals = totals
    step = computed(objective)
    z = float(objective._baseline(scorer, 0, 4096, World()))  # type: ignore[arg-type]
    policy, reference = ([found[2], found[7]] for found in (exact.policy, exact.reference))
    expected = naive.loss_of(settings.loss, singles, policy, reference, 0.5, z)
    assert step.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert not any(math.isnan(value) for value in step.sums.values())


# ------------------------------------------------------------------------------------------------ cuts and processes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_neither_the_cut_nor_the_number_of_processes_changes_loss_gradient_or_metrics(layout: str) -> None:
    """Processes are threads that meet in every exchange; with seven some have nothing but a repeat."""
    scorer, totals = begun(layout)
    mix = ({"coefficient": 0.5, "loss": {"name": "kto"}}, {"coefficient": 0.25, "loss": {"name": "listwise"}})
    settings = settings_of("dpo", mix=mix, sft_weight=0.7, replay=2)
    whole = computed(objective_of(settings, scorer, totals))
    for size, budget in ((1, 64), (2, 4096), (3, 90), (7, 4096), (16, 64)):

        def one(world: World, budget: int = budget) -> Step:
            return computed(objective_of(settings, copy.deepcopy(scorer), totals), budget, world=world)

        steps = naive.together(size, one)
        assert len({len(step.parts) for step in steps}) == 1
        assert sum(step.loss for step in steps) == pytest.approx(whole.loss, rel=1e-5)
        gradient = {name: torch.stack([step.gradient[name] for step in steps]).sum(0) for name in whole.gradient}
        assert naive.distance(gradient, whole.gradient) < 1e-5
        sums = {key: sum(step.sums[key] for step in steps) for key in whole.sums}
        assert sums == pytest.approx(whole.sums, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("loss", ["dpo", "kto", "rrhf"])
def test_all_micro_batches_of_a_step_report_the_same_names(
    shared: tuple[Scorer, dict[bytes, float]], loss: str
) -> None:
    """Whatever stands in them: rows without a pair, all tied, none desirable, repeats without weight."""
    scorer, totals = shared
    settings = settings_of(loss, sft_weight=0.5)
    for size in (1, 3):
        steps = naive.together(
            size, lambda world: computed(objective_of(settings, copy.deepcopy(scorer), totals), 64, world=world)
        )
        names = {tuple(part.sums) for step in steps for part in step.parts}
        assert len(names) == 1 and len(steps[0].parts) > 1


def test_every_step_sees_the_same_number_of_rows_whatever_the_budget(shared: tuple[Scorer, dict[bytes, float]]) -> None:
    scorer, totals = shared
    settings = preference_settings(5, loss={"name": "dpo"}, batch=3, replay=2)
    objective = objective_of(settings, scorer, totals)
    for step in range(5):
        names = objective.records(step)
        assert len(names) == 5
        for budget in (64, 200, 4096):
            tokens = sum(part.tokens for part in computed(objective, budget, step).parts)
            wanted = [*objective._step(step), *objective._replayed(step)]
            assert tokens == sum(row.unique for row in wanted)
            assert [row.record_id for row in wanted] == names


# ------------------------------------------------------------------------------------------------ KTO's baseline


def prompts_of(rows: Sequence[Encoded]) -> dict[str, tuple[int, ...]]:
    return {row.record_id: row.prompt for row in rows}


def test_a_mismatched_completion_belongs_to_the_next_different_prompt() -> None:
    """Worked by hand; A and B have the same prompt, C has nothing that can be rated."""
    a = Encoded("A", (1,), ((11,), (12,)), grades=(1.0, 0.0), kind="label")
    b = Encoded("B", (1,), ((13,), (14,), (15,)), grades=(0.0, 1.0, 0.5), kind="score")
    c = Encoded("C", (2,), ((16,), (17,)), grades=(1.0, 1.0), kind="score")
    d = Encoded("D", (3, 4), ((18, 19, 20, 21, 2),), grades=(1.0,), kind="label")
    scorer = make_scorer(naive.model("llama"), [d], profile(), ignore)
    objective = objective_of(settings_of("kto", batch=4, max_tokens=8), scorer, {}, [a, b, c, d])
    objective._step = lambda step: [a, b, c, d]  # type: ignore[method-assign]
    found = {row.record_id: (row.prompt, row.completions) for row in objective._mismatched(0)}
    assert found == {
        # A's two ratings meet D, whose one completion serves for both
        "A": ((1,), ((18, 19, 20, 21, 2),) * 2),
        # B has two ratings: 0.5 is the middle of 0 and 1
        "B": ((1,), ((18, 19, 20, 21, 2),) * 2),
        # D goes around to A; one rating, one completion
        "D": ((3, 4), ((11,),)),
    }


def test_a_mismatched_completion_is_cut_to_what_fits() -> None:
    rows = naive.rows([(20, [3], [1.0]), (2, [19], [1.0])])
    rows = [dataclasses.replace(row, kind="label") for row in rows]
    scorer = make_scorer(naive.model("llama"), rows, profile(), ignore)
    objective = objective_of(settings_of("kto", batch=2, max_tokens=24), scorer, {}, rows)
    found = {row.record_id: row for row in objective._mismatched(0)}
    assert found["row-0"].completions == (rows[1].completions[0][:4],)  # 20 + 4 = 24
    assert found["row-1"].completions == rows[0].completions


@pytest.mark.parametrize("border", [None, 1.0])
def test_prompts_of_mismatched_rows_always_differ(
    shared: tuple[Scorer, dict[bytes, float]], border: float | None
) -> None:
    scorer, _ = shared
    twice = [*ROWS, *(dataclasses.replace(row, record_id=f"again-{row.record_id}") for row in ROWS)]
    settings = preference_settings(6, loss={"name": "kto"}, batch=5, desirable_from=border)
    objective = objective_of(settings, scorer, {}, twice)
    own = prompts_of(twice)
    for step in range(6):
        rows = {row.record_id: row for row in objective._step(step)}
        for found in objective._mismatched(step):
            assert found.prompt == own[found.record_id]
            lenders = [
                row
                for row in rows.values()
                if set(found.completions) & {c[: len(found.completions[0])] for c in row.completions}
            ]
            assert any(lender.prompt != found.prompt for lender in lenders)
            assert len(found.completions) == len(naive.rated(rows[found.record_id], border))


def test_the_baseline_is_that_of_the_whole_step_whatever_the_cut(
    ready: tuple[Scorer, dict[bytes, float]], exact: Naive
) -> None:
    scorer, totals = ready
    objective = objective_of(settings_of("kto"), scorer, totals)
    expected = float(exact.baseline())
    assert expected > 0.1  # not clamped
    for budget in (64, 90, 4096):
        found = objective._baseline(scorer, 0, budget, World())
        assert found is not None and not found.requires_grad and found.shape == ()
        assert float(found) == pytest.approx(expected, rel=1e-4)
        assert computed(objective, budget).sums["kl_baseline"] == pytest.approx(expected, rel=1e-4)

    def one(world: World) -> float:
        mine = objective_of(settings_of("kto"), copy.deepcopy(scorer), totals)
        found = mine._baseline(mine.scorer, 0, 90, world)
        assert found is not None
        return float(found)

    for size in (2, 5):
        assert naive.together(size, one) == pytest.approx([expected] * size, rel=1e-4)


def test_the_baseline_is_clamped_after_the_mean(shared: tuple[Scorer, dict[bytes, float]]) -> None:
    """Half of the mismatched ratios at +4 nats, half at -2: 1, and not the 2 of a clamp before it. And never below 0."""
    scorer, _ = shared
    given = naive.rows([(3, [4, 5], [1.0, 0.0]), (5, [6, 3], [1.0, 0.0]), (2, [5, 7], [0.0, 1.0])], seed=6)
    objective = objective_of(settings_of("kto", batch=3), scorer, {}, given)
    rows = objective._mismatched(0)
    scored = torch.cat(score_rows(scorer, scorer, rows, profile(), World()))
    known = [key for row in rows for key in keys(row)]
    assert len(set(known)) == len(known) and len(known) % 2 == 0
    for ratios, expected in (((4.0, -2.0), 1.0), ((-4.0, 2.0), 0.0)):
        objective.totals = {
            key: float(total) - ratios[i % 2] for i, (key, total) in enumerate(zip(known, scored, strict=True))
        }
        found = objective._baseline(scorer, 0, 4096, World())
        assert found is not None and float(found) == pytest.approx(expected, abs=1e-4)


def test_the_baseline_is_computed_without_dropout_and_before_any_gradient() -> None:
    model = with_lora(naive.model("llama"), LORA.model_copy(update={"dropout": 0.5}), 1)
    scorer = make_scorer(model, ROWS, profile(), ignore)
    objective = objective_of(settings_of("kto"), scorer, {})
    objective.begin(scorer, World())
    naive.moved(model, size=0.3)
    scorer.train()
    first, second = (objective._baseline(scorer, 0, 90, World()) for _ in range(2))
    assert first is not None and torch.equal(first, second) and scorer.training
    assert all(parameter.grad is None for parameter in scorer.parameters())


def test_one_prompt_in_the_whole_step_has_no_mismatch(shared: tuple[Scorer, dict[bytes, float]]) -> None:
    scorer, totals = shared
    same = [ROWS[1], dataclasses.replace(ROWS[1], record_id="again")]
    objective = objective_of(settings_of("kto", batch=2), scorer, totals, same)
    assert objective._mismatched(0) == []
    found = objective._baseline(scorer, 0, 4096, World())
    assert found is not None and float(found) == 0.0
    step = computed(objective)
    assert step.sums["kl_baseline"] == 0.0 and math.isfinite(step.loss)


# ------------------------------------------------------------------------------------------------ metrics


def test_metrics_of_pairs_are_weighted_means_over_all_pairs_of_the_step(
    shared: tuple[Scorer, dict[bytes, float]], exact: Naive
) -> None:
    scorer, totals = shared
    found = {"rewards/chosen": 0.0, "rewards/rejected": 0.0, "rewards/accuracies": 0.0, "logps/chosen": 0.0}
    whole = 0.0
    for row, p, q in zip(ROWS, exact.policy, exact.reference, strict=True):
        pairs = [(i, j) for i, a in enumerate(row.grades) for j, b in enumerate(row.grades) if a > b]
        for i, j in pairs:
            weight = row.weight / len(pairs)
            r = (p - q).detach()
            found["rewards/chosen"] += weight * 0.3 * float(r[i])
            found["rewards/rejected"] += weight * 0.3 * float(r[j])
            # Two of these completions are EOS alone, with different grades: a tie, whatever the policy.
            same = row.completions[i] == row.completions[j]
            found["rewards/accuracies"] += weight * (0.5 if same else float(r[i] > r[j]))
            found["logps/chosen"] += weight * float(p[i].detach())
            whole += weight
    expected = {key: value / whole for key, value in found.items()}
    expected["rewards/margins"] = expected["rewards/chosen"] - expected["rewards/rejected"]
    for loss in (
        {"name": "dpo", "beta": 0.3},
        {"name": "ipo", "tau": 0.3},
        {"name": "kto", "beta": 0.3},
        {"name": "listwise", "beta": 0.3},
    ):
        for budget in (64, 4096):
            sums = computed(objective_of(settings_of(loss), scorer, totals), budget).sums
            assert {key: sums[key] for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_metrics_without_a_reference_are_log_probabilities(shared: tuple[Scorer, dict[bytes, float]]) -> None:
    scorer, _ = shared
    sums = computed(objective_of(settings_of("simpo"), scorer, {})).sums
    assert sums["rewards/chosen"] == pytest.approx(sums["logps/chosen"])
    assert sums["rewards/margins"] == pytest.approx(sums["logps/chosen"] - sums["logps/rejected"], rel=1e-5)


def test_metrics_of_single_ratings_are_means_of_each_side(shared: tuple[Scorer, dict[bytes, float]]) -> None:
    scorer, _ = shared
    rows = [
        dataclasses.replace(row, grades=(grade,), kind="label", weight=weight)
        for row, grade, weight in zip(
            naive.rows([(3, [4], []), (5, [6], []), (2, [2], [])]), (1, 0, 1), (1, 2, 3), strict=True
        )
    ]
    objective = objective_of(settings_of({"name": "kto", "beta": 0.5}, batch=3), scorer, {}, rows)
    objective.totals = {key: -10.0 for row in [*rows, *objective._mismatched(0)] for key in keys(row)}
    totals = [float(t) for t in torch.cat(score_rows(scorer, scorer, rows, profile(), World()))]
    sums = computed(objective).sums
    assert sums["logps/chosen"] == pytest.approx((totals[0] + 3 * totals[2]) / 4, rel=1e-5)
    assert sums["rewards/rejected"] == pytest.approx(0.5 * (totals[1] + 10), rel=1e-5)
    assert "rewards/margins" not in sums
    # A step in which nothing is undesirable has no mean of that side.
    objective = objective_of(settings_of("kto", batch=1), scorer, objective.totals, rows[:1])
    assert "rewards/rejected" not in computed(objective).sums


# ------------------------------------------------------------------------------------------------ early stop


def test_the_held_out_margin_is_the_weighted_mean_over_pairs(
    ready: tuple[Scorer, dict[bytes, float]], exact: Naive
) -> None:
    scorer, totals = ready
    above = below = bare = 0.0
    for row, p, q in zip(ROWS, exact.policy, exact.reference, strict=True):
        pairs = [(i, j) for i, a in enumerate(row.grades) for j, b in enumerate(row.grades) if a > b]
        for i, j in pairs:
            r = (p - q).detach()
            above += row.weight / len(pairs) * float(r[i] - r[j])
            bare += row.weight / len(pairs) * float((p[i] - p[j]).detach())
        below += row.weight if pairs else 0.0
    for loss, expected in (("dpo", above / below), ("kto", above / below), ("orpo", bare / below)):
        objective = objective_of(settings_of(loss), scorer, totals, judged=ROWS)
        for budget in (64, 4096):
            assert objective.judge(scorer, budget, World()) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    many = naive.together(
        3,
        lambda world: objective_of(settings_of("orpo"), copy.deepcopy(scorer), totals, judged=ROWS).judge(
            scorer, 90, world
        ),
    )
    assert many == pytest.approx([bare / below] * 3, rel=1e-4)


def test_the_reference_of_judged_rows_is_known_from_the_beginning() -> None:
    scorer = make_scorer(naive.model("llama"), ROWS, profile(), ignore)
    objective = objective_of(settings_of("dpo", batch=4), scorer, {}, ROWS[:4], judged=ROWS[4:])
    objective.begin(scorer, World())
    assert {key for row in ROWS for key in keys(row)} == set(objective.totals)
    assert objective.judge(scorer, 64, World()) == pytest.approx(0.0, abs=1e-4)


def test_an_early_stop_without_a_pair_to_judge_by_is_refused(tiny: Tiny, root: Path) -> None:
    data = ratings_only(root)
    given = job(
        tiny, preference_settings(2, loss={"name": "kto"}, early_stop={"every": 1, "share": 0.5}), root, "model"
    )
    given["inputs"]["pairs"] = data
    with pytest.raises(Refused, match=r"early_stop: the margin is taken over pairs, and none of the \d+ row"):
        preference.run(given, ignore)
    given["settings"] = preference_settings(2, loss={"name": "kto"}).model_dump_json()
    preference.run(given, ignore)  # without one it trains
    assert (root / "model").is_dir()
