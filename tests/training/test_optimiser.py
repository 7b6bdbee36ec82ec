"""AdamW, its schedule and its seeds, and clipping, with numbers worked by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny import sft_settings
from tests.training.workers import Events, profile, told
from training.loop import Part, train
from training.optimiser import adamw, learning_rate, squared_norm, step_seed
from training.processes import World

# ------------------------------------------------------------------------------------------------ schedule and seeds


def test_the_schedule_is_worked_by_hand() -> None:
    # 10 steps, a fifth of them warm-up: 1/3, 2/3 of the rate; then (step - 2) / 8 of the way down.
    def rates(schedule: str) -> list[float]:
        settings = sft_settings(10, warmup=0.2, schedule=schedule, learning_rate=3.0)
        return [learning_rate(settings, step, 10) for step in range(10)]

    assert rates("constant") == pytest.approx([1, 2, 3, 3, 3, 3, 3, 3, 3, 3])
    assert rates("linear") == pytest.approx([1, 2, 3, 3 * 7 / 8, 3 * 6 / 8, 3 * 5 / 8, 1.5, 3 * 3 / 8, 0.75, 3 / 8])
    # cosine: half the rate half-way (step 6), (1 + cos 45°) / 2 = 0.853553 a quarter of the way (step 4)
    assert [rates("cosine")[i] for i in (0, 1, 2, 4, 6, 8)] == pytest.approx(
        [1, 2, 3, 3 * 0.853553, 1.5, 3 * 0.146447], abs=1e-5
    )


def test_each_step_has_its_own_seed() -> None:
    assert len({step_seed(seed, step) for seed in range(20) for step in range(200)}) == 4000
    assert len({step_seed(3, step, rank) for step in range(200) for rank in range(16)}) == 3200


# ------------------------------------------------------------------------------------------------ optimiser


def test_weight_decay_reaches_matrices_only() -> None:
    # No gradient pulls (it is zero), so a step only decays: by learning rate times decay, 0.1 x 0.5 of the weight.
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimiser = adamw({"matrix": matrix, "vector": vector}, sft_settings(learning_rate=0.1, weight_decay=0.5))
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimiser.step()
    assert matrix.detach().flatten().tolist() == pytest.approx([0.95] * 4)
    assert vector.tolist() == [1.0, 1.0]


def test_the_norm_is_that_of_all_gradients_and_clipping_scales_it_to_the_limit() -> None:
    class Once:
        """One step; the gradient of the loss is (3, 4), of norm 5."""

        steps = 1

        def begin(self, model: Any, world: World) -> None: ...

        def records(self, step: int) -> list[str]:
            return []

        def judge(self, model: Any, budget: int, world: World) -> float:
            raise NotImplementedError

        def parts(self, model: Any, step: int, budget: int, world: World) -> Any:
            return [lambda: Part((model.weight * torch.tensor([[3.0, 4.0]])).sum(), {}, 2)]

    events: Events = []
    model = torch.nn.Linear(2, 1, bias=False)
    settings = sft_settings(1, max_grad_norm=1.0, epsilon=1e3, learning_rate=1e6, warmup=0.0, schedule="constant")
    before = model.weight.detach().clone()
    train(model, Once(), settings, profile(), 1, "x", Path("/nonexistent"), events.append)
    (metrics,) = [event["metrics"] for event in told(events, "metrics")]
    assert metrics["grad_norm"] == 5.0
    # So large an epsilon makes AdamW's first step rate x gradient / epsilon: the clipped gradient is (0.6, 0.8).
    assert ((before - model.weight.detach()) / 1e3).flatten().tolist() == pytest.approx([0.6, 0.8], rel=1e-2)


def test_the_squared_norm_of_many_small_numbers_loses_nothing() -> None:
    value = torch.nn.Parameter(torch.zeros(5_000_000))
    value.grad = torch.full((5_000_000,), 1e-3)
    # Added one after the other in float32 they come to 5.04.
    assert float(squared_norm({"value": value})) == pytest.approx(5.0, rel=1e-5)
    assert float(squared_norm({"value": value}, 2)) == pytest.approx(5.0, rel=2e-7)
