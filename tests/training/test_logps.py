"""Completion log-probabilities against a loop that a person can read: one row at a time, unpadded, in float64."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.training.tiny import Tiny
from training.logps import completion_logps, pad
from training.models import load_model

Row = tuple[list[int], list[int]]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """(prompt, completion) of lengths 1 to 40, from a generator of our own."""
    draw = torch.Generator().manual_seed(1)
    shapes = [(1, 1), (1, 9), (7, 1), (30, 10), (3, 25), (12, 12), (2, 2)]
    return [
        (torch.randint(3, 290, (p,), generator=draw).tolist(), torch.randint(3, 290, (c,), generator=draw).tolist())
        for p, c in shapes
    ]


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> Any:
    """The tiny model with its weights drawn larger, so that its distribution is far from uniform."""
    model = load_model(tiny.base).eval()
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * (0.5 if parameter.ndim > 1 else 1.0))
    return model


def naive(model: Any, prompt: list[int], completion: list[int]) -> float:
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) + t - 1, token]) for t, token in enumerate(completion))


@torch.no_grad()
def test_totals_are_those_of_a_loop_in_float64_however_rows_are_batched(model: Any, rows: list[Row]) -> None:
    import copy

    exact = copy.deepcopy(model).double()
    expected = torch.tensor([naive(exact, *row) for row in rows])
    assert float((expected / torch.tensor([len(completion) for _, completion in rows])).std()) > 0.5  # not uniform
    for groups in ([[0, 1, 2, 3, 4, 5, 6]], [[i] for i in range(7)], [[6, 3], [0, 5, 1], [2, 4]]):
        for group in groups:
            found = completion_logps(model, pad([rows[i] for i in group], "cpu"))
            assert found.total.dtype == torch.float32
            assert found.total.tolist() == pytest.approx(expected[group].tolist(), abs=2e-4)
            assert found.length.tolist() == [len(rows[i][1]) for i in group]


@torch.no_grad()
def test_prompt_tokens_and_padding_are_not_counted() -> None:
    # A model that gives every token of a vocabulary of 8 the same probability: k completion tokens are -k ln 8.
    def uniform(input_ids: torch.Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 8))

    logps = completion_logps(uniform, pad([([1] * 9, [2]), ([1], [2, 3, 4]), ([1, 1], [7, 7])], "cpu"))
    ln_8 = 2.0794415
    assert logps.total.tolist() == pytest.approx([-ln_8, -3 * ln_8, -2 * ln_8])
    assert logps.mean.tolist() == pytest.approx([-ln_8] * 3)


@torch.no_grad()
def test_each_token_is_scored_at_the_position_before_it() -> None:
    # Logits that say "the next token is this one plus 1": p = e^2 / (e^2 + 9) for the successor, 1 / (e^2 + 9) else.
    def successor(input_ids: torch.Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=2.0 * torch.nn.functional.one_hot(input_ids + 1, 10).float())

    logps = completion_logps(successor, pad([([1, 2], [3, 4]), ([5], [5, 6, 7])], "cpu"))
    # ln(e^2 + 9) = ln 16.389056 = 2.796614: hit 2 - 2.796614 = -0.796614, miss -2.796614
    assert logps.total.tolist() == pytest.approx([2 * -0.796614, -2.796614 + 2 * -0.796614], abs=1e-5)


def test_the_last_token_is_predicted_and_never_fed() -> None:
    batch = pad([([11, 12], [13, 14]), ([21], [22])], "cpu", pad_id=0)
    assert batch.ids.tolist() == [[11, 12, 13], [21, 0, 0]] and batch.tokens == 6
    assert list(zip(batch.row.tolist(), batch.position.tolist(), batch.target.tolist(), strict=True)) == [
        (0, 1, 13),
        (0, 2, 14),
        (1, 0, 22),
    ]


@torch.no_grad()
def test_logits_of_another_dtype_are_summed_in_float32(model: Any, rows: list[Row]) -> None:
    import copy

    found = completion_logps(copy.deepcopy(model).bfloat16(), pad(rows, "cpu"))
    assert found.total.dtype == torch.float32 == found.length.dtype
