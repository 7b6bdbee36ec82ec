"""Token log-probabilities: float32 whatever the logits are, in chunks that change nothing, with plain autograd's gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training import logps
from training.logps import from_logits, sum_by_completion, through_head

WIDTH, VOCABULARY, TOKENS = 6, 11, 9


def parts(
    bias: bool = True, dtype: torch.dtype = torch.float32, factor: float = 2.0
) -> tuple[Tensor, nn.Linear, Tensor]:
    """(hidden, head, target); the logits have a standard deviation of about ``factor`` squared times 2.5."""
    draw = torch.Generator().manual_seed(5)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * factor)
    hidden = torch.randn(TOKENS, WIDTH, generator=draw) * factor
    target = torch.randint(0, VOCABULARY, (TOKENS,), generator=draw)
    return hidden.to(dtype).requires_grad_(), head.to(dtype), target


def plain(hidden: Tensor, head: nn.Linear, target: Tensor) -> Tensor:
    return head(hidden).log_softmax(-1).gather(1, target[:, None])[:, 0]


def slopes(found: Tensor, *inputs: Any) -> list[Tensor]:
    draw = torch.Generator().manual_seed(6)
    weight = torch.randn(len(found), generator=draw).to(found.dtype)
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    return [grad.double() for grad in torch.autograd.grad((found * weight).sum(), wanted)]


# ------------------------------------------------------------------------------------------------ sums


def test_tokens_are_summed_by_completion_and_counted() -> None:
    token = torch.tensor([-1.0, -2.0, -4.0, -8.0], requires_grad=True)
    total, length = sum_by_completion(token, torch.tensor([0, 0, 2, 0]), 4)
    assert total.tolist() == [-11.0, 0.0, -4.0, 0.0] and length.tolist() == [3.0, 0.0, 1.0, 0.0]
    (total * torch.tensor([1.0, 5.0, 2.0, 5.0])).sum().backward()
    assert token.grad is not None and token.grad.tolist() == [1.0, 1.0, 2.0, 1.0]


def test_a_long_sum_keeps_its_digits() -> None:
    # 2^14 tokens of -0.1: in float32 each addition near 1,638 loses up to 6e-5, which adds up to tenths of a nat.
    token = torch.full((2**14,), -0.1)
    total, length = sum_by_completion(token, torch.zeros(2**14, dtype=torch.long), 1)
    assert total.dtype == length.dtype == torch.float32
    assert float(total) == pytest.approx(float(token[0].double()) * 2**14, abs=1e-4)
    assert float(length) == 2**14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_logits_of_another_dtype_are_normalised_in_float32(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1)
    logits = (torch.randn(50, 1000, generator=draw) * 4).to(dtype)
    target = torch.randint(0, 1000, (50,), generator=draw)
    found = from_logits(logits, target)
    expected = logits.double().log_softmax(-1).gather(1, target[:, None])[:, 0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_uniform_and_certain_tokens_are_worked_by_hand() -> None:
    # Eight equal logits: -ln 8. One logit 200 above the rest: 0 and -200, where e^200 overflows float32.
    ln_8 = 2.0794415
    assert from_logits(torch.full((2, 8), 7.0), torch.tensor([0, 5])).tolist() == pytest.approx([-ln_8] * 2)
    sure = torch.zeros(2, 8)
    sure[:, 3] = 200
    assert from_logits(sure, torch.tensor([3, 1])).tolist() == [0.0, -200.0]


# ------------------------------------------------------------------------------------------------ the chunked head


@pytest.mark.parametrize("rows", [1, 2, 4, 9, 100])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_chunks_of_any_size_are_plain_autograd(
    monkeypatch: pytest.MonkeyPatch, rows: int, bias: bool, frozen: bool
) -> None:
    monkeypatch.setattr(logps, "CHUNK", rows * VOCABULARY)
    hidden, head, target = parts(bias, torch.float64)
    head.requires_grad_(not frozen)
    inputs = (hidden, head.weight, head.bias)
    found, expected = through_head(hidden, head, target), plain(hidden, head, target)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(slopes(found, *inputs), slopes(expected, *inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_a_chunk_holds_one_row_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logps, "CHUNK", 3)  # less than the vocabulary
    hidden, head, target = parts()
    torch.testing.assert_close(through_head(hidden, head, target), plain(hidden, head, target))


@pytest.mark.parametrize("trained", ["all", "head", "bias", "hidden", "weight"])
def test_finite_differences_agree(monkeypatch: pytest.MonkeyPatch, trained: str) -> None:
    monkeypatch.setattr(logps, "CHUNK", 4 * VOCABULARY)
    hidden, head, target = parts(dtype=torch.float64, factor=0.8)
    hidden.requires_grad_(trained in ("all", "hidden"))
    head.weight.requires_grad_(trained in ("all", "head", "weight"))
    head.bias.requires_grad_(trained in ("all", "head", "bias"))

    def score(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        from types import SimpleNamespace

        return through_head(hidden, SimpleNamespace(weight=weight, bias=bias), target)

    assert torch.autograd.gradcheck(score, (hidden, head.weight, head.bias))


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_the_gradient_of_the_same_token_everywhere_adds_up(monkeypatch: pytest.MonkeyPatch, frozen: bool) -> None:
    """All targets the same, and every hidden state too: nothing may be written where it should be added."""
    monkeypatch.setattr(logps, "CHUNK", 2 * VOCABULARY)
    hidden, head, _ = parts(dtype=torch.float64)
    head.requires_grad_(not frozen)
    same = hidden[:1].detach().requires_grad_()
    target = torch.full((TOKENS,), 3)
    many = same.expand(TOKENS, WIDTH)
    inputs = (same, head.weight, head.bias)
    for one, other in zip(
        slopes(through_head(many, head, target), *inputs), slopes(plain(many, head, target), *inputs), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_nothing_is_kept_for_a_gradient_that_nobody_asks_for() -> None:
    hidden, head, target = parts()
    with torch.no_grad():
        assert not through_head(hidden, head, target).requires_grad
    head.requires_grad_(False)
    assert not through_head(hidden.detach(), head, target).requires_grad


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_under_autocast_matrices_are_bfloat16_and_sums_float32(frozen: bool) -> None:
    hidden, head, target = parts()
    head.requires_grad_(not frozen)
    inputs = (hidden, head.weight, head.bias)
    with torch.autocast("cpu", torch.bfloat16):
        found = through_head(hidden, head, target)
        logits = head(hidden)
    assert found.dtype == torch.float32 and logits.dtype == torch.bfloat16
    # The logits are the rounded ones, and what is done with them is not rounded again.
    torch.testing.assert_close(found, from_logits(logits, target), rtol=1e-5, atol=1e-5)
    expected = slopes(from_logits(logits, target), *inputs)
    for one, other in zip(slopes(found, *inputs), expected, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.01
    grads = torch.autograd.grad(through_head(hidden, head, target).sum(), [t for t in inputs if t.requires_grad])
    assert all(grad.dtype == torch.float32 for grad in grads)


@pytest.mark.parametrize("rows", [1, 100])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_a_model_in_bfloat16_is_scored_in_float32(monkeypatch: pytest.MonkeyPatch, frozen: bool, rows: int) -> None:
    monkeypatch.setattr(logps, "CHUNK", rows * VOCABULARY)
    hidden, head, target = parts(dtype=torch.bfloat16)
    head.requires_grad_(not frozen)
    inputs = (hidden, head.weight, head.bias)
    found = through_head(hidden, head, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, from_logits(head(hidden), target), rtol=1e-5, atol=1e-5)
    exact_hidden, exact_head = hidden.detach().double().requires_grad_(), nn.Linear(WIDTH, VOCABULARY).double()
    exact_head.load_state_dict({name: value.double() for name, value in head.state_dict().items()})
    exact_head.requires_grad_(not frozen)
    expected = slopes(plain(exact_hidden, exact_head, target), exact_hidden, exact_head.weight, exact_head.bias)
    for one, other in zip(slopes(found, *inputs), expected, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.02


def test_many_chunks_of_a_bfloat16_head_do_not_wear_its_gradient_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Added up in bfloat16, the 512th chunk would be rounded away: 1 + 1/512 is 1 there."""
    draw = torch.Generator().manual_seed(1)
    head = nn.Linear(4, 7).bfloat16()
    hidden = (torch.randn(1, 4, generator=draw) + 2).bfloat16().expand(2048, 4)
    target = torch.zeros(2048, dtype=torch.long)

    def found(rows: int) -> Tensor:
        monkeypatch.setattr(logps, "CHUNK", rows * 7)
        return torch.autograd.grad(through_head(hidden, head, target).sum(), head.weight)[0].double()

    whole, one_by_one = found(2048), found(1)
    assert float((whole - one_by_one).norm() / whole.norm()) < 0.01


def test_probabilities_next_to_one_have_a_finite_gradient() -> None:
    hidden, head, target = parts(factor=60.0)
    found = through_head(hidden, head, target)
    assert bool(found.isfinite().all()) and bool((found <= 0).all())
    assert all(bool(grad.isfinite().all()) for grad in slopes(found, hidden, head.weight, head.bias))
