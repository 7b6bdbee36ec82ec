"""Log-probabilities of completion tokens, in float32 whatever the model's dtype.

Only rows that predict a completion token go through the language-model head, in chunks; the log-sum-exp is float32. Where
there are several chunks logits are computed again in the backward pass, so that no more than one is ever held.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Logits of one chunk, in numbers (rows x vocabulary): 64 MiB of float32.
CHUNK = 1 << 24


def sum_by_completion(token: "Tensor", branch: "Tensor", completions: int) -> tuple["Tensor", "Tensor"]:
    """Token log-probabilities (tokens,) → (totals in nats, lengths in tokens), each of shape (completions,)."""
    import torch

    # Summed in float64: a sum of hundreds of nats has few digits left in float32.
    zeros = torch.zeros(completions, dtype=torch.float64, device=token.device)
    total = zeros.index_add(0, branch, token.double()).to(token.dtype)
    length = zeros.index_add(0, branch, torch.ones_like(token, dtype=torch.float64)).to(token.dtype)
    return total, length


def from_logits(logits: "Tensor", target: "Tensor") -> "Tensor":
    """Log-probability of each target, float32, shape (tokens,), from logits (tokens, vocabulary)."""
    import torch

    scored = logits.float()
    return torch.gather(scored, 1, target[:, None])[:, 0] - torch.logsumexp(scored, dim=1)


def through_head(hidden: "Tensor", head: Any, target: "Tensor") -> "Tensor":
    """Log-probability of each target, float32, shape (tokens,), from hidden states (tokens, width) and a linear head."""
    import torch

    # Inside of an autograd function gradients are always off: whether there will be a backward pass is said here.
    return _function().apply(hidden, head.weight, head.bias, target, torch.is_grad_enabled())


def _function() -> Any:
    """The autograd function, made once: torch is imported where it is needed only."""
    global _FUNCTION
    if _FUNCTION is None:
        _FUNCTION = _make()
    return _FUNCTION


_FUNCTION: Any = None


def _make() -> Any:
    import torch

    class ChunkedHead(torch.autograd.Function):
        """log softmax(hidden W^T + b)[target]. Where the head is frozen, the backward pass needs no second product."""

        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, target: Any, learn: bool) -> Any:
            ctx.low = _autocast_dtype(hidden)
            ctx.frozen = not (weight.requires_grad or (bias is not None and bias.requires_grad))
            rows = max(1, CHUNK // weight.shape[0])
            low_hidden, low_weight, low_bias = (_cast(tensor, ctx.low) for tensor in (hidden, weight, bias))
            found = torch.empty(len(target), dtype=_wide(hidden.dtype), device=hidden.device)
            norm = torch.empty_like(found)
            slope = torch.empty_like(low_hidden) if ctx.frozen and hidden.requires_grad else None
            residual = None
            with torch.autocast(hidden.device.type, enabled=False):
                for start in range(0, len(target), rows):
                    part = slice(start, start + rows)
                    logits = _logits(low_hidden[part], low_weight, low_bias)
                    norm[part] = torch.logsumexp(logits, dim=1)
                    found[part] = logits.gather(1, target[part, None])[:, 0] - norm[part]
                    if slope is not None:
                        slope[part] = _residual(logits, norm[part], target[part]).to(low_weight.dtype) @ low_weight
                    elif learn and len(target) <= rows:  # a single chunk is what is held anyway: keep it
                        residual = _residual(logits, norm, target).to(low_weight.dtype)
            if ctx.frozen:
                ctx.save_for_backward(slope)
            else:
                ctx.save_for_backward(hidden, weight, bias, target, norm, residual)
            return found

        @staticmethod
        def backward(ctx: Any, *upstreams: Any) -> Any:
            upstream = upstreams[0]
            if ctx.frozen:
                (slope,) = ctx.saved_tensors
                return slope * upstream[:, None].to(slope.dtype), None, None, None, None
            hidden, weight, bias, target, norm, kept = ctx.saved_tensors
            rows = max(1, CHUNK // weight.shape[0])
            low_hidden, low_weight, low_bias = (_cast(tensor, ctx.low) for tensor in (hidden, weight, bias))
            to_hidden = torch.empty_like(low_hidden)
            # In float32 at least: many chunks that were added up in bfloat16 would round each other away.
            wide = _wide(weight.dtype)
            to_weight = torch.zeros_like(weight, dtype=wide) if weight.requires_grad else None
            to_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and bias.requires_grad else None
            with torch.autocast(hidden.device.type, enabled=False):
                for start in range(0, len(target), rows):
                    part = slice(start, start + rows)
                    if kept is None:
                        logits = _logits(low_hidden[part], low_weight, low_bias)
                        residual = _residual(logits, norm[part], target[part]).to(low_weight.dtype)
                    else:
                        residual = kept
                    # The upstream gradient multiplies the narrow side: on the wide one it would cost another pass, and
                    # where a pair is learnt it turns thousands of probabilities into denormals, which are slow.
                    factor = upstream[part, None]
                    torch.mm(residual, low_weight, out=to_hidden[part])
                    to_hidden[part] *= factor
                    if to_bias is not None:
                        to_bias += (residual.t() @ factor.to(residual.dtype))[:, 0]
                    if to_weight is not None:
                        scaled = (low_hidden[part] * factor).to(residual.dtype)
                        if residual.dtype == to_weight.dtype:
                            to_weight.addmm_(residual.t(), scaled)
                        else:
                            to_weight += residual.t() @ scaled
            return to_hidden.to(hidden.dtype), _cast(to_weight, weight.dtype), _cast(to_bias, weight.dtype), None, None

    return ChunkedHead


def _autocast_dtype(tensor: Any) -> Any:
    """The dtype that matrices are multiplied in here: autocast does not reach into an autograd function's backward."""
    import torch

    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _cast(tensor: Any, dtype: Any) -> Any:
    return tensor if tensor is None or dtype is None else tensor.to(dtype)


def _wide(dtype: Any) -> Any:
    import torch

    return torch.float64 if dtype == torch.float64 else torch.float32


def _logits(hidden: Any, weight: Any, bias: Any) -> Any:
    import torch

    logits = torch.nn.functional.linear(hidden, weight, bias)
    return logits.to(_wide(logits.dtype))


def _residual(logits: Any, norm: Any, target: Any) -> Any:
    """d log p(target) / d logits = onehot(target) - softmax(logits), in place of the logits."""
    import torch

    residual = logits.sub_(norm[:, None]).exp_().neg_()
    residual[torch.arange(len(target), device=target.device), target] += 1
    return residual
