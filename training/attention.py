"""Attention over a packed, prefix-shared row, as a function of transformers' attention interface.

A branch sees its own prompt and itself, causally, and nothing else. The layout travels as the keyword ``packed``
through an unmodified model; no mask is registered for our name, so transformers builds none. Windows are measured in
positions, not in places of the packed row. What changes the scores themselves (sinks, soft-capping) is refused: such
models take the padded path.
"""

import inspect
from typing import TYPE_CHECKING, Any

from training.packing import Group, Packed

if TYPE_CHECKING:
    from torch import Tensor

# Of one group: below, one call with a mask over the whole group wastes less than the calls and copies that cutting it
# into segments costs (measured on two cores at a head size of 64).
SEGMENT_FROM = 768


class CannotShare(RuntimeError):
    """The model's attention does something that a packed row has no place for."""


def register(name: str, attend: Any) -> str:
    """Make ``attend(query, key, value, packed, scaling, window, dropout)`` known to transformers as ``name``."""
    from transformers import AttentionInterface

    def attention(
        module: Any,
        query: "Tensor",
        key: "Tensor",
        value: "Tensor",
        attention_mask: Any = None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        packed: Packed | None = None,
        **other: Any,
    ) -> tuple["Tensor", None]:
        changed = sorted(key for key in ("softcap", "s_aux", "alibi") if other.get(key) is not None)
        if packed is None or changed or not getattr(module, "is_causal", True):
            why = f"uses {', '.join(changed)}" if changed else "hides the layout from its attention or is not causal"
            raise CannotShare(f"its {type(module).__name__} {why}")
        return attend(query, key, value, packed, scaling, sliding_window, dropout), None

    AttentionInterface.register(name, attention)
    return name


# ------------------------------------------------------------------------------------------------ by groups


def by_groups(
    query: "Tensor", key: "Tensor", value: "Tensor", packed: Packed, scaling: Any, window: int | None, dropout: float
) -> "Tensor":
    """Scaled dot products group by group: any device, any dtype.

    ``query`` (1, heads, tokens, size), ``key`` and ``value`` (1, key heads, tokens, size) → (1, tokens, heads, size).
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    def attend(q: "Tensor", k: "Tensor", v: "Tensor", mask: "Tensor | None", causal: bool = False) -> "Tensor":
        few = k.shape[1] != q.shape[1]
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scaling, enable_gqa=few
        )

    found: list[Tensor] = []
    # ``split`` and not slices: the backward of a slice fills a zero tensor of the whole size each time.
    lengths = [length for group in packed.groups for length in _pieces(group)]
    split: Any = torch.split
    parts = iter(zip(*(split(tensor, lengths, dim=2) for tensor in (query, key, value)), strict=True))
    for group in packed.groups:
        q, k, v = next(parts)
        if len(_pieces(group)) == 1:
            found.append(attend(q, k, v, *_whole(packed, group, window, query)))
            continue
        narrow = window is not None and window < group.prompt
        found.append(attend(q, k, v, _band(packed, 0, group.prompt, window, query) if narrow else None, not narrow))
        for length in group.branches:
            own, own_key, own_value = next(parts)
            mask = _band(packed, group.prompt, length, window, query)
            found.append(attend(own, torch.cat([k, own_key], dim=2), torch.cat([v, own_value], dim=2), mask))
    whole: Tensor = torch.cat(found, dim=2).transpose(1, 2)
    return whole


def _pieces(group: Group) -> list[int]:
    """A short group is attended to in one piece, a long one prompt by prompt and branch by branch."""
    return [group.tokens] if group.tokens <= SEGMENT_FROM else [group.prompt, *group.branches]


def _whole(packed: Packed, group: Group, window: int | None, like: "Tensor") -> tuple["Tensor | None", bool]:
    """(mask, causal) of a whole group."""
    import torch

    if len(group.branches) <= 1 and (window is None or window >= group.tokens):
        return None, True
    narrow = window if window is not None and window < group.tokens else None

    def make() -> "Tensor":
        sizes = torch.tensor([group.prompt, *group.branches], device=like.device)
        branch = torch.repeat_interleave(torch.arange(len(sizes), device=like.device), sizes)
        place = torch.arange(group.tokens, device=like.device)
        first = torch.cumsum(sizes, 0) - sizes
        position = place - first[branch] + group.prompt * (branch > 0)
        seen = (branch[None] == 0) | (branch[None] == branch[:, None])
        seen &= place[None] <= place[:, None]
        if narrow is not None:
            seen &= position[:, None] - position[None] < narrow
        return _additive(seen, like)

    return _cached(packed, (group, narrow, like.dtype), make), False


def _band(packed: Packed, before: int, length: int, window: int | None, like: "Tensor") -> "Tensor":
    """The mask of the last ``length`` tokens over ``before + length``: causal, no farther back than the window."""
    import torch

    def make() -> "Tensor":
        position = torch.arange(before + length, device=like.device)
        distance = position[before:, None] - position[None]
        return _additive((distance >= 0) & (distance < (window or before + length + 1)), like)

    mask: Tensor = _cached(packed, (before, length, window, like.dtype), make)
    return mask


def _additive(seen: "Tensor", like: "Tensor") -> "Tensor":
    import torch

    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill(~seen, float("-inf"))[None, None]


def _cached(packed: Packed, name: Any, make: Any) -> Any:
    if name not in packed.mask_cache:
        packed.mask_cache[name] = make()
    return packed.mask_cache[name]


# ------------------------------------------------------------------------------------------------ by segments


def segments(packed: Packed) -> tuple[list[int], list[int], list[int]]:
    """(gathered key places, query lengths, key lengths): every prompt and every branch is a sequence of its own.

    A prompt's keys are its own; a branch's are its prompt's and its own. With causality aligned at the last query and the
    last key (bottom right), plain variable-length attention over these sequences is exactly the shared layout.
    """
    places: list[int] = []
    queries: list[int] = []
    keys: list[int] = []
    start = 0
    for group in packed.groups:
        prompt = range(start, start + group.prompt)
        places += prompt
        queries.append(group.prompt)
        keys.append(group.prompt)
        start += group.prompt
        for length in group.branches:
            places += [*prompt, *range(start, start + length)]
            queries.append(length)
            keys.append(group.prompt + length)
            start += length
    return places, queries, keys


def by_segments(
    query: "Tensor", key: "Tensor", value: "Tensor", packed: Packed, scaling: Any, window: int | None, dropout: float
) -> "Tensor":
    """One variable-length call (flash attention) for the whole row; half precision on CUDA. Shapes as ``by_groups``.

    Raises CannotShare where this torch or the model's dropout does not allow it.
    """
    import torch

    varlen = varlen_attention()
    if varlen is None or dropout:
        raise CannotShare("variable-length attention is not at hand" if varlen is None else "it drops attention out")

    def make() -> tuple["Tensor", "Tensor", "Tensor", int, int]:
        places, queries, keys = segments(packed)
        ends = [
            torch.tensor([0, *lengths], dtype=torch.int32, device=query.device).cumsum(0, dtype=torch.int32)
            for lengths in (queries, keys)
        ]
        return torch.tensor(places, device=query.device), ends[0], ends[1], max(queries), max(keys)

    places, query_ends, key_ends, longest_query, longest_key = _cached(packed, "segments", make)
    # Autocast does not know this call, and rotary positions leave queries and keys in float32 beside halved values.
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        query, key, value = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (query, key, value))
    repeat = query.shape[1] // key.shape[1]
    # (tokens, heads, size); a branch finds its prompt's keys gathered in front of its own
    q = query[0].transpose(0, 1)
    k, v = (tensor[0].transpose(0, 1).index_select(0, places) for tensor in (key, value))
    if repeat > 1:
        k, v = (tensor.repeat_interleave(repeat, dim=1) for tensor in (k, v))
    found: Tensor = varlen(q, k, v, query_ends, key_ends, longest_query, longest_key, scaling, window)
    return found[None]


def varlen_attention() -> Any:
    """torch's variable-length attention behind one signature, causal at the bottom right; None where there is none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    named = inspect.signature(varlen_attn).parameters
    if "window_size" not in named and "is_causal" not in named:
        return None

    def attend(
        q: Any, k: Any, v: Any, qs: Any, ks: Any, longest_q: int, longest_k: int, scale: Any, window: Any
    ) -> Any:
        if "window_size" in named:
            back = -1 if window is None else window - 1
            return varlen_attn(q, k, v, qs, ks, longest_q, longest_k, scale=scale, window_size=(back, 0))
        if window is not None and window < longest_k:
            raise CannotShare("this torch has no window in variable-length attention")
        scaled = q if scale is None else q * (scale * q.shape[-1] ** 0.5)
        older: Any = varlen_attn
        return older(scaled, k, v, qs, ks, longest_q, longest_k, is_causal=True)

    return attend
