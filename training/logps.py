"""Log-probabilities of completion tokens, in float32 whatever the model's dtype.

Rows are padded on the right. A causal decoder never looks to the right, so no attention mask is needed: a real token
sees real tokens only, and what stands at padded positions is not read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.data.encode import Encoded
from training.losses.base import Logps

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PaddedBatch:
    """``ids`` (rows, tokens) right-padded; ``row``/``position`` of the hidden states that predict a completion
    token, and ``target``, that token: three tensors of shape (completion tokens,), in row order."""

    ids: "Tensor"
    row: "Tensor"
    position: "Tensor"
    target: "Tensor"
    rows: int

    @property
    def tokens(self) -> int:
        """Padded tokens that the forward pass computes."""
        return self.ids.numel()


def pad(rows: Sequence[tuple[Sequence[int], Sequence[int]]], device: Any, pad_id: int = 0) -> PaddedBatch:
    """``rows`` of (prompt ids, completion ids). A completion's last token is predicted but never fed."""
    import torch

    width = max(len(prompt) + len(completion) for prompt, completion in rows) - 1
    ids = torch.full((len(rows), max(width, 1)), pad_id, dtype=torch.long)
    row: list[int] = []
    position: list[int] = []
    target: list[int] = []
    for i, (prompt, completion) in enumerate(rows):
        fed = [*prompt, *completion[:-1]]
        ids[i, : len(fed)] = torch.tensor(fed, dtype=torch.long)
        row += [i] * len(completion)
        position += range(len(prompt) - 1, len(prompt) - 1 + len(completion))
        target += completion
    at, where, what = (torch.tensor(values, dtype=torch.long, device=device) for values in (row, position, target))
    return PaddedBatch(ids.to(device), at, where, what, len(rows))


def branches(rows: Sequence[Encoded], k: int) -> list[tuple[Sequence[int], Sequence[int]]]:
    """(prompt, k-th completion) of every row."""
    return [(row.prompt, row.completions[k]) for row in rows]


def completion_logps(model: Any, batch: PaddedBatch) -> Logps:
    """Summed log-probabilities and lengths of each row's completion, shape (rows,), EOS included."""
    import torch

    logits = model(input_ids=batch.ids, use_cache=False).logits
    scored = logits[batch.row, batch.position].float()
    token = torch.gather(scored, 1, batch.target[:, None])[:, 0] - torch.logsumexp(scored, dim=1)
    zeros = torch.zeros(batch.rows, dtype=torch.float32, device=token.device)
    total = zeros.index_add(0, batch.row, token)
    length = zeros.index_add(0, batch.row, torch.ones_like(token))
    return Logps(total, length)
