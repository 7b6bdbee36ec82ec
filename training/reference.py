"""Log-probabilities under the reference model, computed once, before the policy moves, and kept beside the checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.batches import micro_batches
from training.data.encode import Encoded
from training.logps import branches, completion_logps, pad
from training.settings import Profile

if TYPE_CHECKING:
    from torch import Tensor

# Largest difference, in nats, between reference and untouched policy at step 0: kernels may sum in another order
# when rows are padded differently, in proportion to the size of the sum.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def score_pairs(model: Any, rows: Sequence[Encoded], profile: Profile) -> dict[str, tuple[Any, Any]]:
    """``chosen`` and ``rejected`` → (totals, lengths), each a float32 CPU tensor of shape (rows,), in row order."""
    import torch

    device = profile.device
    place = {id(row): i for i, row in enumerate(rows)}
    found = {name: (torch.zeros(len(rows)), torch.zeros(len(rows))) for name in ("chosen", "rejected")}
    model.eval()
    with torch.no_grad(), _precision(profile):
        for micro in micro_batches(rows, profile.token_budget):
            index = torch.tensor([place[id(row)] for row in micro])
            logps = completion_logps(model, pad(branches(micro, 0) + branches(micro, 1), device))
            for k, (total, length) in enumerate(found.values()):
                half = slice(k * len(micro), (k + 1) * len(micro))
                total[index] = logps.total[half].cpu()
                length[index] = logps.length[half].cpu()
    return found


def reference_totals(model: Any, rows: Sequence[Encoded], profile: Profile, cache: Path) -> "Tensor":
    """Summed log-probabilities (rows, 2), chosen first, from ``cache`` where a whole one is there.

    The cache belongs to one objective (its folder is named after it), so weights, data and settings are the same.
    """
    import torch
    from safetensors.torch import load_file, save_file

    if cache.is_file():
        return load_file(cache)["totals"]
    scored = score_pairs(model, rows, profile)
    totals = torch.stack([scored["chosen"][0], scored["rejected"][0]], dim=1)
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_name(f".partial-{cache.name}")
    save_file({"totals": totals}, partial)
    partial.rename(cache)
    return totals


def check_start(model: Any, rows: Sequence[Encoded], totals: "Tensor", profile: Profile) -> float:
    """Largest |log-ratio| in nats of a few pairs before the first step: it must be zero up to rounding.

    Raises RuntimeError where reference and policy differ (other kernels, other weights, adapters in the reference).
    """
    import torch

    few = list(rows[:4])
    model.eval()
    with torch.no_grad(), _precision(profile):
        logps = completion_logps(model, pad(branches(few, 0) + branches(few, 1), profile.device))
    expected = torch.cat([totals[: len(few), 0], totals[: len(few), 1]])
    found = logps.total.cpu()
    worst = float((found - expected).abs().max())
    allowed = TOLERANCE[profile.dtype] * max(1.0, float(expected.abs().max()))
    if not worst <= allowed:
        raise RuntimeError(
            f"before the first step the policy's log-probabilities differ from the reference's by {worst:.3g} nats (allowed "
            f"{allowed:.3g}): the reference is not the initial policy"
        )
    return worst


def _precision(profile: Profile) -> Any:
    """The autocast under which the policy trains: a reference scored without it would differ from the start."""
    import torch

    return torch.autocast(profile.device, torch.bfloat16, enabled=profile.dtype == "bfloat16")
