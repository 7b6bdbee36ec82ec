"""Where every token of a micro-batch stands: rows of one prompt and K completions, packed one after the other.

A group is ``[prompt | branch 1 | … | branch K]``: the prompt stands once, a branch is a completion without its last
token (which is predicted and never fed), and its positions go on from the prompt's. The prompt's last token predicts the
first token of every branch. Nothing here depends on a device or a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from training.data.encode import Encoded

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Lengths in fed tokens: of the prompt, and of every branch that has any (a completion of one token has none)."""

    prompt: int
    branches: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.prompt + sum(self.branches)


@dataclass(frozen=True, eq=False)
class Packed:
    """One packed row.

    ``ids`` and ``positions`` (1, tokens); ``source`` (completion tokens,): the place of the hidden state that predicts
    the token ``target``, of the completion ``branch``; all three in the order of rows and completions.
    """

    groups: tuple[Group, ...]
    ids: "Tensor"
    positions: "Tensor"
    source: "Tensor"
    target: "Tensor"
    branch: "Tensor"
    completions: int

    @property
    def tokens(self) -> int:
        """Tokens that the forward pass computes."""
        return self.ids.numel()

    @cached_property
    def mask_cache(self) -> dict[Any, Any]:
        """Masks and gather indices, made once for all layers."""
        return {}


def pack(rows: Sequence[Encoded], device: Any, share: bool = True) -> Packed:
    """``rows`` packed into one; ``share=False`` repeats the prompt before each completion."""
    import torch

    ids: list[int] = []
    positions: list[int] = []
    source: list[int] = []
    target: list[int] = []
    lengths: list[int] = []
    groups: list[Group] = []
    for row in rows:
        for completions in [row.completions] if share else [(one,) for one in row.completions]:
            start, prompt = len(ids), len(row.prompt)
            ids += row.prompt
            positions += range(prompt)
            for completion in completions:
                first = len(ids)
                ids += completion[:-1]
                positions += range(prompt, prompt + len(completion) - 1)
                source.append(start + prompt - 1)
                source += range(first, first + len(completion) - 1)
                target += completion
                lengths.append(len(completion))
            groups.append(Group(prompt, tuple(len(one) - 1 for one in completions if len(one) > 1)))
    branch = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
    place = [torch.tensor(values, dtype=torch.long, device=device) for values in (ids, positions, source, target)]
    return Packed(tuple(groups), place[0][None], place[1][None], place[2], place[3], branch, len(lengths))


@dataclass(frozen=True, eq=False)
class Padded:
    """One row per completion, the prompt repeated, filled up on the right; the rest as in ``Packed``.

    A causal decoder never looks to the right, so no attention mask is needed: a real token sees real tokens only.
    ``source`` counts places row by row.
    """

    ids: "Tensor"
    source: "Tensor"
    target: "Tensor"
    branch: "Tensor"
    completions: int

    @property
    def tokens(self) -> int:
        return self.ids.numel()


def pad(rows: Sequence[Encoded], device: Any) -> Padded:
    """A padded batch: what every decoder understands, whatever it does with its tokens."""
    import torch

    flat = [(row.prompt, completion) for row in rows for completion in row.completions]
    width = max(len(prompt) + len(completion) for prompt, completion in flat) - 1
    ids = torch.zeros((len(flat), max(width, 1)), dtype=torch.long)
    source: list[int] = []
    target: list[int] = []
    for i, (prompt, completion) in enumerate(flat):
        fed = [*prompt, *completion[:-1]]
        ids[i, : len(fed)] = torch.tensor(fed, dtype=torch.long)
        first = i * ids.shape[1] + len(prompt) - 1
        source += range(first, first + len(completion))
        target += completion
    branch = torch.repeat_interleave(
        torch.arange(len(flat)), torch.tensor([len(completion) for _, completion in flat])
    ).to(device)
    place = [torch.tensor(values, dtype=torch.long, device=device) for values in (source, target)]
    return Padded(ids.to(device), place[0], place[1], branch, len(flat))
