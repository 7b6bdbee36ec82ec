"""What holds for every loss of the union, whichever comes to it."""

import re
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from tests.training.losses.worked import assert_finite_far_away, draw_pairs, evaluated, examples, mapped
from training.losses import Loss
from training.losses.base import LossSettings, PairLogps

MEMBERS: tuple[type[LossSettings], ...] = typing.get_args(typing.get_args(Loss)[0])
LOSSES: list[Any] = [member() for member in MEMBERS]
ADAPTER: TypeAdapter[Any] = TypeAdapter(Loss)
SOURCES = {
    "dpo": "2305.18290",
    "robust": "2403.00409",
    "hinge": "2309.06657",
    "ipo": "2310.12036",
    "dpop": "2402.13228",
    "odpo": "2402.10571",
    "apo_zero": "2408.06266",
    "apo_down": "2408.06266",
    "cpo": "2401.08417",
    "simpo": "2405.14734",
    "orpo": "2403.07691",
    "kto": "2402.01306",
    "rrhf": "2304.05302",
    "listwise": "2305.18290",
}
REFERENCE_FREE = {"cpo", "simpo", "orpo", "rrhf"}
VIEWS = {"kto": "ratings", "rrhf": "rankings", "listwise": "rankings"}

every = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)


def test_the_union_holds_every_loss_of_the_table_and_of_the_folder() -> None:
    assert [loss.name for loss in LOSSES] == list(SOURCES)
    files = {path.stem for path in Path(sys.modules["training.losses"].__file__ or "").parent.glob("*.py")}
    assert files - {"__init__", "base", "stable"} == set(SOURCES)


@every
def test_it_says_where_it_comes_from_and_has_its_own_tests(loss: Any) -> None:
    module = sys.modules[type(loss).__module__]
    assert module.__name__ == f"training.losses.{loss.name}"
    for text in (module.__doc__, type(loss).__doc__):
        assert SOURCES[loss.name] in re.findall(r"arXiv (\d{4}\.\d{5})", text or "")
    assert "loss = " in (module.__doc__ or "")
    assert (Path(__file__).parent / f"test_{loss.name}.py").is_file()


@every
def test_it_says_what_it_needs(loss: Any) -> None:
    assert loss.view == VIEWS.get(loss.name, "pairs")
    assert loss.needs_reference == (loss.name not in REFERENCE_FREE)
    assert loss.needs_reference or "eference-free" in (type(loss).__doc__ or "")
    assert loss.needs_scores == (loss.name == "odpo")
    assert loss.needs_baseline == (loss.name == "kto")
    scale = loss.tau if loss.name == "ipo" else loss.beta if loss.needs_reference else 1.0
    assert loss.reward_scale == scale and isinstance(loss.reward_scale, float)


@every
def test_it_is_frozen_and_round_trips_through_json(loss: Any) -> None:
    for field in type(loss).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(loss, field, getattr(loss, field))
    constants = {
        field: round(value / 2 + 0.0625, 6) for field, value in loss.model_dump().items() if isinstance(value, float)
    }
    for one in (loss, type(loss)(**constants)):
        again = ADAPTER.validate_json(ADAPTER.dump_json(one))
        assert type(again) is type(one) and again == one
    assert ADAPTER.validate_python({"name": loss.name}) == loss


@every
def test_what_is_no_constant_of_it_is_refused(loss: Any) -> None:
    for field, value in loss.model_dump().items():
        wrong: list[Any] = ["0.1", None, float("nan"), float("inf")]
        for other in wrong if isinstance(value, float) else [None, 3, "x"]:
            with pytest.raises(ValidationError):
                type(loss)(**{field: other})
    with pytest.raises(ValidationError):
        ADAPTER.validate_python({"name": loss.name, "unheard_of": 1.0})


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_gives_one_value_per_example_in_the_type_that_came_in(loss: Any, dtype: torch.dtype) -> None:
    policy, reference = (
        mapped(side, lambda t: t.to(dtype) if t.is_floating_point() else t) for side in examples(loss, 7)
    )
    if policy.__class__.__name__ == "RatedLogps":
        policy = type(policy)(policy.completions, policy.desirable, policy.baseline.to(dtype))
    losses = loss(policy, reference)
    assert losses.shape == (7,) and losses.dtype == dtype and losses.requires_grad is False


@every
def test_an_example_does_not_know_the_others_nor_their_order(loss: Any) -> None:
    policy, reference = examples(loss, 12)
    losses, gradient = evaluated(loss, policy, reference)
    order = torch.tensor([5, 11, 0, 3, 8, 1, 10, 2, 9, 4, 7, 6])
    moved, slopes = evaluated(loss, *(mapped(side, lambda t: t[order]) for side in (policy, reference)))
    torch.testing.assert_close(moved, losses[order], rtol=1e-13, atol=1e-13)
    by_example = gradient[:, order] if loss.view == "pairs" else gradient[order]
    torch.testing.assert_close(slopes, by_example, rtol=1e-13, atol=1e-13)
    for i in range(12):
        alone = loss(*(mapped(side, lambda t, i=i: t[i : i + 1]) for side in (policy, reference)))
        torch.testing.assert_close(alone, losses[i : i + 1], rtol=1e-13, atol=1e-13)


@every
def test_better_completions_are_raised_and_worse_ones_lowered(loss: Any) -> None:
    policy, reference = examples(loss, 40, seed=2)
    _, gradient = evaluated(loss, policy, reference)
    match loss.view:
        case "pairs":
            assert bool((gradient[1] >= 0).all()) and bool((gradient[1] > 0).any())
            if loss.name != "apo_down":  # which lowers both, the rejected one further
                assert bool((gradient[0] <= 0).all()) and bool((gradient[0] < 0).any())
        case "ratings":
            assert bool((gradient[policy.desirable] < 0).all())
            assert bool((gradient[~policy.desirable] > 0).all())
        case "rankings":
            best = policy.grade == policy.grade.amax(-1, keepdim=True)
            present = policy.grade > -float("inf")
            lowest = torch.where(present, policy.grade, float("inf")).amin(-1, keepdim=True)
            assert bool((gradient[best] <= 0).all()) and bool((gradient[best] < 0).any())
            worst = policy.grade == lowest
            assert bool((gradient[worst] >= 0).all()) and bool((gradient[worst] > 0).any())
            assert not gradient[~present].any()


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss.view == "rankings"], ids=lambda loss: loss.name)
def test_the_order_of_the_places_of_a_ranking_means_nothing(loss: Any) -> None:
    policy, reference = examples(loss, 40)
    losses, gradient = evaluated(loss, policy, reference)
    k = policy.grade.shape[1]
    for order in (list(reversed(range(k))), [*range(1, k), 0]):
        sides = [mapped(side, lambda t, o=order: t[:, o]) for side in (policy, reference)]
        moved, slopes = evaluated(loss, *sides)
        torch.testing.assert_close(moved, losses, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(slopes, gradient[:, order], rtol=1e-12, atol=1e-12)


@every
def test_it_stays_finite_far_away(loss: Any) -> None:
    assert_finite_far_away(loss)


@every
def test_the_lengths_count_where_the_paper_has_means_and_nowhere_else(loss: Any) -> None:
    policy, reference = examples(loss)
    longer = mapped(policy, lambda t: t)
    if isinstance(policy, PairLogps):
        longer = PairLogps(
            type(policy.chosen)(policy.chosen.total, policy.chosen.length + 3), policy.rejected, policy.gap
        )
    else:
        counts = type(policy.completions)(policy.completions.total, policy.completions.length + 3)
        longer = type(policy)(counts, *(getattr(policy, f) for f in list(policy.__dataclass_fields__)[1:]))
    same = torch.equal(loss(policy, reference), loss(longer, reference))
    assert same == (loss.name not in {"ipo", "simpo", "orpo", "rrhf"})


def test_an_unknown_name_and_a_missing_one_are_refused() -> None:
    with pytest.raises(ValidationError, match="'dpo', 'robust'"):
        ADAPTER.validate_python({"name": "dpoo"})
    with pytest.raises(ValidationError, match="name"):
        ADAPTER.validate_python({"beta": 0.1})


def test_the_examples_have_lengths_that_differ() -> None:
    assert len({(p.n_w, p.n_l) for p in draw_pairs(12, 1)}) > 8
