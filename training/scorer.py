"""A causal language model as a function from rows to log-probabilities, on the fastest path that is right for it.

Paths, best first: ``shared`` (packed, each prompt once), ``packed`` (each completion with its prompt), ``padded`` (plain
rows through the model's own forward). Sharing is wrong, not only slow, for a model that mixes tokens outside of
attention; so a path is compared with the plain forward of the model before it is used, and given up with a message.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from training.attention import CannotShare, by_groups, by_segments, register
from training.data.encode import Encoded
from training.logps import from_logits, sum_by_completion, through_head
from training.packing import Packed, Padded, pack, pad
from training.settings import Profile

if TYPE_CHECKING:
    from torch import Tensor

# Of a sum of n token log-probabilities in nats, by dtype: (n x first) + (sqrt(n) x second) is rounding, more is another sum.
TOLERANCE = {"float32": (2e-6, 2e-5), "bfloat16": (0.0, 0.05), "pure-bfloat16": (0.0, 0.1)}


class PackedPath:
    """An unmodified model over one packed row; ``attend`` is how its attention is computed.

    With ``own_head`` the logits are the model's own, for models that do more there than multiply (Granite, Cohere).
    """

    def __init__(self, name: str, share: bool, attend: Callable[..., "Tensor"], own_head: bool = False) -> None:
        self.name, self.share, self.own_head = name, share, own_head
        self.attention = register(f"alignmill_{attend.__name__}", attend)

    @property
    def title(self) -> str:
        return f"layout {self.name}, {'own' if self.own_head else 'chunked'} head"

    def batch(self, rows: Sequence[Encoded], device: Any) -> Packed:
        return pack(rows, device, self.share)

    def tokens(self, row: Encoded, longest: Encoded) -> int:
        """What a row costs of a micro-batch's token budget, beside the micro-batch's longest row."""
        return row.unique if self.share else row.repeated

    def token_logps(self, model: Any, batch: Packed) -> "Tensor":
        if self.own_head:
            found = model(
                input_ids=batch.ids, position_ids=batch.positions, use_cache=False, packed=batch,
                logits_to_keep=batch.source,
            )  # fmt: skip
            return from_logits(found.logits[0], batch.target)
        plain = plain_model(model)
        body = getattr(plain, plain.base_model_prefix)
        hidden = body(
            input_ids=batch.ids, position_ids=batch.positions, use_cache=False, packed=batch
        ).last_hidden_state[0]
        rows, head = hidden.index_select(0, batch.source), plain.get_output_embeddings()
        if isinstance(head, torch.nn.Linear):
            return through_head(rows, head, batch.target)
        return from_logits(head(rows), batch.target)  # with adapters of its own: its weight is not all that it does


class PaddedPath:
    """The model's own forward over padded rows: what every decoder understands."""

    name = "padded"

    def __init__(self, attention: str) -> None:
        self.attention = attention

    def batch(self, rows: Sequence[Encoded], device: Any) -> Padded:
        return pad(rows, device)

    def tokens(self, row: Encoded, longest: Encoded) -> int:
        return len(row.completions) * longest.longest

    def token_logps(self, model: Any, batch: Padded) -> "Tensor":
        logits = model(input_ids=batch.ids, use_cache=False).logits
        return from_logits(logits.flatten(0, 1).index_select(0, batch.source), batch.target)


def plain_model(model: Any) -> Any:
    """The transformers model inside of a peft model (its adapters stay in place), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class Scorer(torch.nn.Module):
    """``scorer(scorer.batch(rows))`` → (totals in nats, lengths in tokens), float32, each of shape (completions,), in the
    order of the rows and of each row's completions. ``model`` may be a peft model."""

    def __init__(self, model: Any, path: PackedPath | PaddedPath) -> None:
        super().__init__()
        self.model = model
        self.path = path
        self.own_attention = own_attention(model)
        use_attention(model, path.attention)

    def batch(self, rows: Sequence[Encoded]) -> Packed | Padded:
        return self.path.batch(rows, next(self.model.parameters()).device)

    def forward(self, batch: Any) -> tuple["Tensor", "Tensor"]:
        return sum_by_completion(self.path.token_logps(self.model, batch), batch.branch, batch.completions)

    def release(self) -> Any:
        """The model with the attention that it came with: ours knows no masks, so it cannot generate."""
        use_attention(self.model, self.own_attention)
        return self.model


def own_attention(model: Any) -> str:
    """The attention implementation that a model has now."""
    return str(plain_model(model).config._attn_implementation)


def use_attention(model: Any, name: str) -> None:
    """Switch a model's attention."""
    if own_attention(model) != name:
        plain_model(model).set_attn_implementation(name)


# ------------------------------------------------------------------------------------------------ the choice


def make_scorer(model: Any, rows: Sequence[Encoded], profile: Profile, log: Callable[[dict[str, Any]], None]) -> Scorer:
    """A scorer on the first path of ``profile.layout`` and below that agrees with the plain forward on a few of ``rows``."""
    sample, own = _sample(rows), PaddedPath(own_attention(model))
    expected = None if profile.layout == own.name else _plain(model, own, sample, profile)
    told = None
    for path in paths(profile):
        try:
            scorer = Scorer(model, path)
            why = _difference(scorer, sample, expected, profile)
        except Exception as error:  # whatever a model that was never meant for this raises
            if isinstance(error, torch.OutOfMemoryError):
                raise
            why = str(error) if isinstance(error, CannotShare) else f"{type(error).__name__}: {str(error)[:200]}"
        if why is None:
            break
        use_attention(model, own.attention)
        if why != told:
            log({"type": "milestone", "message": f"the {path.title} cannot be used ({path.attention}): {why}"})
        told = why
    else:
        scorer = Scorer(model, own)
    log({"type": "facts", "facts": {"layout": scorer.path.name, "attention": scorer.path.attention}})
    return scorer


def paths(profile: Profile) -> Iterator[PackedPath]:
    """The ways to pack, from the profile's layout down; after them there is only the padded one, which always works."""
    ways = [by_groups]
    if profile.device == "cuda" and profile.dtype != "float32":
        ways.insert(0, by_segments)
    names = ("shared", "packed", "padded")
    for name in names[names.index(profile.layout) : -1]:
        yield from (PackedPath(name, name == "shared", way, own) for own in (False, True) for way in ways)


def _sample(rows: Sequence[Encoded]) -> list[Encoded]:
    """The two longest rows (a window shows only beyond its width), the longest and the largest of those that have
    branches to tell apart, and two of the shortest."""
    longest = sorted(rows, key=lambda row: (-row.longest, row.record_id))
    branched = [row for row in longest if sum(len(completion) > 1 for completion in row.completions) > 1]
    largest = sorted(branched, key=lambda row: -row.unique)
    chosen = [*longest[:2], *branched[:1], *largest[:1], *longest[-2:]]
    return list({id(row): row for row in chosen}.values())


def _plain(model: Any, path: PaddedPath, rows: Sequence[Encoded], profile: Profile) -> "Tensor":
    """Totals by the model's own forward, one unpadded completion at a time."""
    found = []
    with judging(model, profile):
        for row in rows:
            for completion in row.completions:
                batch = path.batch([Encoded(row.record_id, row.prompt, (completion,))], next(model.parameters()).device)
                found.append(sum_by_completion(path.token_logps(model, batch), batch.branch, 1)[0])
    return torch.cat(found)


def _difference(scorer: Scorer, rows: Sequence[Encoded], expected: Any, profile: Profile) -> str | None:
    """How a scorer disagrees with ``expected``, or None."""
    with judging(scorer.model, profile):
        totals, lengths = scorer(scorer.batch(rows))
    worst = (totals - expected).abs() - tolerance(profile.dtype, totals, lengths)
    at = int(worst.argmax())
    if bool((worst <= 0).all()):
        return None
    return (
        f"{float(totals[at]):.5g} nats where the plain forward finds {float(expected[at]):.5g}: the model mixes tokens in a "
        "way that this layout does not know"
    )


def tolerance(dtype: str, totals: "Tensor", lengths: "Tensor") -> "Tensor":
    """What rounding may change in sums of log-probabilities, in nats, of the same shape."""
    per_token, per_root = TOLERANCE[dtype]
    return per_token * (lengths + totals.abs()) + per_root * lengths.sqrt()


def without_adapters(model: Any) -> Any:
    """While this lasts a peft model is the model that its adapters were put on."""
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()


@contextmanager
def judging(model: Any, profile: Profile) -> Iterator[None]:
    """Evaluation mode, no gradient, and the precision in which the policy trains."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad(), precision(profile):
            yield
    finally:
        model.train(was)


def precision(profile: Profile) -> Any:
    """The autocast under which the policy trains: a reference scored without it would differ from the start."""
    return torch.autocast(profile.device, torch.bfloat16, enabled=profile.dtype == "bfloat16")
