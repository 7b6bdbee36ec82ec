"""Who sees whom in a packed row: both ways to compute it, against a mask that is written down token by token."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from training import attention
from training.attention import CannotShare, by_groups, by_segments, register, segments, varlen_attention
from training.data.encode import Encoded
from training.packing import Packed, pack

HEADS, SIZE = 4, 8
# prompt and fed tokens of each branch: none, one, several; one-token prompts; and K = 7
LAYOUTS: dict[str, list[tuple[int, list[int]]]] = {
    "one prompt alone": [(5, [0])],
    "one branch": [(4, [6])],
    "two branches": [(7, [3, 5])],
    "a prompt of one token": [(1, [4, 1])],
    "seven branches, two empty": [(3, [2, 0, 5, 1, 0, 4, 1])],
    "several groups": [(6, [2, 9]), (1, [0]), (2, [1, 1, 1]), (11, [7])],
}
WINDOWS = (None, 1, 3, 6, 1000)


def packed_row(layout: Sequence[tuple[int, list[int]]]) -> Packed:
    return pack([Encoded("r", (1,) * prompt, tuple((1,) * (n + 1) for n in fed)) for prompt, fed in layout], "cpu")


def seen(layout: Sequence[tuple[int, list[int]]], window: int | None) -> Tensor:
    """(tokens, tokens) bool: may the row's token see the column's token?"""
    tokens = []  # (group, branch or None, position)
    for g, (prompt, fed) in enumerate(layout):
        tokens += [(g, None, position) for position in range(prompt)]
        for b, length in enumerate(fed):
            tokens += [(g, b, prompt + t) for t in range(length)]
    found = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for i, (group, branch, position) in enumerate(tokens):
        for j, (other, of, at) in enumerate(tokens):
            related = group == other and (of is None or of == branch)
            found[i, j] = related and at <= position and (window is None or position - at < window)
    return found


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Plain attention in float64, from the definition."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = q @ k.transpose(2, 3) * (scaling or q.shape[-1] ** -0.5)
    return (scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v).transpose(1, 2)


def drawn(tokens: int, key_heads: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(tokens)
    return tuple(  # type: ignore[return-value]
        torch.randn(1, heads, tokens, SIZE, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
        for heads in (HEADS, key_heads, key_heads)
    )


def gradients(found: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(found.shape, generator=draw, dtype=torch.float64).to(found.dtype)
    return torch.autograd.grad((found * weight).sum(), list(inputs))


def loop(
    q: Tensor, k: Tensor, v: Tensor, qs: Tensor, ks: Tensor, longest_q: int, longest_k: int, scale: Any, window: Any
) -> Tensor:
    """Variable-length attention as its documentation says it: causal, aligned at the last query and the last key."""
    assert qs.dtype == ks.dtype == torch.int32 and qs[0] == ks[0] == 0
    assert longest_q == int(qs.diff().max()) and longest_k == int(ks.diff().max())
    assert q.shape[1] == k.shape[1] == v.shape[1]  # heads are repeated for it
    found = []
    for i in range(len(qs) - 1):
        own, keys, values = q[qs[i] : qs[i + 1]], k[ks[i] : ks[i + 1]], v[ks[i] : ks[i + 1]]
        at = torch.arange(len(own))[:, None] + len(keys) - len(own)
        distance = at - torch.arange(len(keys))[None]
        mask = (distance >= 0) & (distance < (window or len(keys) + 1))
        found.append(dense(own[None].transpose(1, 2), keys[None].transpose(1, 2), values[None].transpose(1, 2),
                           mask, scale)[0])  # fmt: skip
    return torch.cat(found)


WAYS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "a mask over the whole group": (by_groups, 10**6),
    "segment by segment": (by_groups, 0),
    "one variable-length call": (by_segments, 768),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_branch_sees_its_prompt_and_itself_and_no_farther_than_the_window(
    monkeypatch: pytest.MonkeyPatch, way: str, layout: list[tuple[int, list[int]]]
) -> None:
    attend, from_ = WAYS[way]
    monkeypatch.setattr(attention, "SEGMENT_FROM", from_)
    monkeypatch.setattr(attention, "varlen_attention", lambda: loop)
    for window in WINDOWS:
        for key_heads, scaling in ((4, None), (2, 0.7), (1, 0.2)):
            packed = packed_row(layout)
            inputs = drawn(packed.tokens, key_heads)
            found = attend(*inputs, packed, scaling, window, 0.0)
            expected = dense(*inputs, seen(layout, window), scaling)
            assert found.shape == (1, packed.tokens, HEADS, SIZE)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
            for one, other in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_group_is_cut_where_it_says_and_both_sides_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SEGMENT_FROM", 12)
    for tokens in (11, 12, 13):
        layout = [(4, [3, tokens - 7])]
        packed, calls = packed_row(layout), []
        inputs = drawn(tokens)
        real = torch.nn.functional.scaled_dot_product_attention

        def counted(*given: Any, _real: Any = real, _calls: list[int] = calls, **options: Any) -> Tensor:
            _calls.append(given[0].shape[2])
            return _real(*given, **options)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
        found = by_groups(*inputs, packed, None, None, 0.0)
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", real)
        assert calls == ([tokens] if tokens <= 12 else [4, 3, tokens - 7])
        torch.testing.assert_close(found, dense(*inputs, seen(layout, None), None))


def test_no_mask_is_made_where_plain_causality_says_it() -> None:
    packed = packed_row([(4, [6]), (5, [0])])
    by_groups(*drawn(packed.tokens), packed, None, None, 0.0)
    by_groups(*drawn(packed.tokens), packed, None, 1000, 0.0)
    assert packed.mask_cache == {}


def test_masks_of_other_windows_and_dtypes_are_told_apart() -> None:
    """Layers of one model may differ in both; the cache is the row's."""
    layout = [(4, [3, 2]), (4, [3, 2])]
    packed = packed_row(layout)
    for dtype in (torch.float32, torch.float64):
        for window in (2, 3, None, 2):
            inputs = drawn(packed.tokens, dtype=dtype)
            found = by_groups(*inputs, packed, None, window, 0.0)
            expected = dense(*inputs, seen(layout, window), None)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(packed.mask_cache) == 6  # one for both groups, by window and dtype


def test_segments_are_prompts_and_branches_with_their_prompts_in_front() -> None:
    # tokens: prompt 0 1 2, branches 3 4 and 5; prompt 6 of a row without branches; prompt 7, branch 8
    packed = packed_row([(3, [2, 1, 0]), (1, [0]), (1, [1])])
    places, queries, keys = segments(packed)
    assert places == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 7, 8]
    assert queries == [3, 2, 1, 1, 1, 1] and keys == [3, 5, 4, 1, 1, 2]
    assert sum(queries) == packed.tokens and sum(keys) == len(places)


# ------------------------------------------------------------------------------------------------ what is refused


def asked(**given: Any) -> Any:
    """Ask the registered function, as a model would."""
    from transformers import AttentionInterface

    name = register("alignmill_asked", lambda *given: given[-3:])
    packed = packed_row([(2, [1])])
    options: dict[str, Any] = {"packed": packed, "scaling": 0.5, "sliding_window": 3, **given}
    module = SimpleNamespace(is_causal=options.pop("is_causal", True))
    return AttentionInterface()[name](module, *drawn(3), None, **options)


def test_scaling_window_and_dropout_reach_the_attention() -> None:
    assert asked(dropout=0.25) == ((0.5, 3, 0.25), None)
    assert asked(scaling=None, sliding_window=None) == ((None, None, 0.0), None)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"softcap": 30.0}, "its SimpleNamespace uses softcap"),
        ({"s_aux": 1.0, "alibi": 2.0}, "its SimpleNamespace uses alibi, s_aux"),
        ({"packed": None}, "hides the layout from its attention or is not causal"),
        ({"is_causal": False}, "is not causal"),
    ],
)
def test_what_changes_the_scores_is_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(CannotShare, match=why):
        asked(**given)
    assert asked(softcap=None, s_aux=None, position_bias=None) is not None


def test_attention_that_drops_out_does_so() -> None:
    packed = packed_row([(20, [10, 10])])
    inputs = drawn(40)
    torch.manual_seed(1)
    assert not torch.equal(by_groups(*inputs, packed, None, None, 0.5), by_groups(*inputs, packed, None, None, 0.0))
    with pytest.raises(CannotShare, match="it drops attention out"):
        by_segments(*inputs, packed, None, None, 0.5)


def test_a_torch_without_variable_length_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(query: Any, key: Any, value: Any) -> None:
        """A signature that we do not know."""

    packed = packed_row([(2, [1])])
    for change in (
        lambda: monkeypatch.setattr(varlen, "varlen_attn", other),
        lambda: monkeypatch.delattr(varlen, "varlen_attn"),
    ):
        change()
        assert varlen_attention() is None
        with pytest.raises(CannotShare, match="not at hand"):
            by_segments(*drawn(3), packed, None, None, 0.0)


def test_under_autocast_all_three_are_of_its_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flash attention takes no mixture; a Llama's rotated queries and keys are float32 there, its values bfloat16."""
    told: list[Any] = []

    def halves(q: Tensor, k: Tensor, v: Tensor, *other: Any) -> Tensor:
        told.append((q.dtype, k.dtype, v.dtype))
        return loop(q, k, v, *other)

    monkeypatch.setattr(attention, "varlen_attention", lambda: halves)
    packed = packed_row([(5, [3, 4])])
    query, key, value = drawn(packed.tokens, dtype=torch.float32)
    exact = by_segments(query, key, value, packed, None, None, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = by_segments(query, key, value.bfloat16(), packed, None, None, 0.0)
    assert told == [(torch.float32,) * 3, (torch.bfloat16,) * 3]
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.02)
    assert [grad.dtype for grad in gradients(found, (query, key, value))] == [torch.float32] * 3


def test_torch_is_asked_for_a_window_that_counts_the_token_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    # A window of w sees w tokens, the last of which is the token itself: w - 1 back and none ahead. -1 is no limit.
    told: list[Any] = []

    def newer(q: Any, k: Any, v: Any, qs: Any, ks: Any, mq: int, mk: int, *, scale: Any, window_size: Any) -> Tensor:
        told.append((scale, window_size))
        return q

    monkeypatch.setattr(varlen, "varlen_attn", newer)
    packed = packed_row([(2, [1])])
    by_segments(*drawn(3), packed, 0.5, 4, 0.0)
    by_segments(*drawn(3), packed, None, None, 0.0)
    assert told == [(0.5, (3, 0)), (None, (-1, 0))]


def test_an_older_torch_gets_scaled_queries_and_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(q: Tensor, k: Tensor, v: Tensor, qs: Tensor, ks: Tensor, mq: int, mk: int, is_causal: bool) -> Tensor:
        assert is_causal
        return loop(q, k, v, qs, ks, mq, mk, None, None)

    monkeypatch.setattr(varlen, "varlen_attn", older)
    layout = [(5, [3, 4])]
    packed = packed_row(layout)
    inputs = drawn(packed.tokens)
    for scaling, window in ((0.3, None), (None, 9)):  # no key is 9 places away: the longest has 5 + 4
        found = by_segments(*inputs, packed, scaling, window, 0.0)
        torch.testing.assert_close(found, dense(*inputs, seen(layout, window), scaling))
    with pytest.raises(CannotShare, match="no window in variable-length attention"):
        by_segments(*inputs, packed, None, 8, 0.0)
