"""Log-probabilities under the reference model: computed before the policy moves, kept for every later run that needs them.

The cache is keyed by content: a folder per (weights, dtype, attention implementation) and, in it, a number per digest of
(prompt ids, completion ids). Other losses, orders, subsets and runs find their rows there; other weights find nothing.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from training.budget import free_memory, out_of_memory
from training.data.batches import micro_batches, share_out
from training.data.encode import Encoded
from training.digest import digest_bytes, digest_file, digest_json
from training.processes import World
from training.scorer import Scorer, judging, tolerance
from training.settings import Profile

if TYPE_CHECKING:
    from torch import Tensor

# Rows that are scored and kept together. Which rows stand together depends on all rows of the run and not on what was
# already there, so that a run that was killed here goes on with the same numbers.
CHUNK = 1024

Key = bytes
Log = Callable[[dict[str, Any]], None]


def row_key(prompt: Sequence[int], completion: Sequence[int]) -> Key:
    """SHA-256 (32 bytes) of the token ids; it depends on where the prompt ends."""
    numbers = array("q", [len(prompt), *prompt, *completion])
    return hashlib.sha256(numbers.tobytes()).digest()


def keys(row: Encoded) -> list[Key]:
    """A key per completion."""
    return [row_key(row.prompt, completion) for completion in row.completions]


def model_digest(folder: Path, profile: Profile, attention: str, bits: int | None = None) -> str:
    """What the numbers depend on besides the token ids: weights and architecture, dtype, attention. Not the path."""
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    weights = {path.name: str(digest_file(path)) for path in files}
    return digest_json(
        {"files": weights, "dtype": profile.dtype, "device": profile.device, "attention": attention, "bits": bits}
    ).value


class Cache:
    """Numbers by key, in files that are named after their own digest: whole or absent, and never changed."""

    def __init__(self, folder: Path, log: Log) -> None:
        self.folder, self.log = folder, log

    def find(self, wanted: Iterable[Key]) -> dict[Key, float]:
        """What is there of ``wanted``. A damaged file is reported and passed over."""
        from safetensors.torch import load

        missing, found = set(wanted), {}
        for path in sorted(self.folder.glob("*.safetensors")) if missing else []:
            data = path.read_bytes()
            if digest_bytes(data).value != path.stem:
                self.log({"type": "milestone", "message": f"reference cache: {path} is damaged and is passed over"})
                continue
            tensors = load(data)
            stored = tensors["keys"].numpy().tobytes()
            for i, total in enumerate(tensors["totals"].tolist()):
                key = stored[32 * i : 32 * i + 32]
                if key in missing:
                    missing.discard(key)
                    found[key] = total
        return found

    def add(self, totals: Mapping[Key, float]) -> None:
        """Keep more numbers (float32, in nats)."""
        import torch
        from safetensors.torch import save

        data = save(
            {
                "keys": torch.frombuffer(bytearray(b"".join(totals)), dtype=torch.uint8).clone(),
                "totals": torch.tensor(list(totals.values()), dtype=torch.float32),
            }
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{digest_bytes(data).value}.safetensors"
        partial = self.folder / f".partial-{name}-{uuid4().hex}"  # process numbers repeat from container to container
        partial.write_bytes(data)
        partial.rename(self.folder / name)


def score_rows(
    model: Any, scorer: Scorer, rows: Sequence[Encoded], profile: Profile, world: World, budget: int | None = None
) -> list["Tensor"]:
    """Summed log-probabilities in nats of every row's completions, a float32 CPU tensor (K,) per row, in row order.

    ``model`` is the scorer, maybe wrapped for several processes; each of them scores its share and all know all.
    """
    import torch

    if not rows:
        return []
    rows = [replace(row) for row in rows]  # one that is given twice is two rows
    cut = micro_batches(rows, budget or profile.token_budget, scorer.path.tokens)
    place = {id(row): i for i, row in enumerate(rows)}
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + len(row.completions))
    flat = torch.zeros(starts[-1])
    with judging(model, profile):
        for micro in share_out(cut, world.size)[world.rank]:
            totals = _totals(model, scorer, micro, world)
            first = 0
            for row in micro:
                if id(row) in place:  # a repeat that only keeps the processes in step is a row of its own
                    at = starts[place[id(row)]]
                    flat[at : at + len(row.completions)] = totals[first : first + len(row.completions)]
                first += len(row.completions)
    return list(torch.split(world.sum(flat), [len(row.completions) for row in rows]))


def _totals(model: Any, scorer: Scorer, micro: Sequence[Encoded], world: World) -> "Tensor":
    """Totals of a micro-batch, a float32 CPU tensor; one that memory is too small for is cut in two.

    Several processes go on in step only, so there it fails, as a training step does.
    """
    import torch

    try:
        totals: Tensor = model(scorer.batch(micro))[0].float().cpu()
        return totals
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if world.size > 1 or len(micro) < 2 or not out_of_memory(error):
            raise
    free_memory()  # here and not in the handler: the exception holds what the failed pass had made
    middle = len(micro) // 2
    return torch.cat([_totals(model, scorer, part, world) for part in (micro[:middle], micro[middle:])])


def reference_totals(
    model: Any,
    scorer: Scorer,
    rows: Sequence[Encoded],
    profile: Profile,
    world: World,
    caches: Sequence[Cache],
    log: Log,
) -> dict[Key, float]:
    """Total in nats by key, for all completions of ``rows``: from the first of ``caches`` that knows, else computed.

    What is computed is added to all of them.
    """
    wanted = [keys(row) for row in rows]
    totals: dict[Key, float] = {}
    if world.main:  # one process looks, so that all agree on what is missing
        for cache in caches:
            totals |= cache.find(key for row in wanted for key in row if key not in totals)
    totals = world.from_main(totals)
    computed = 0
    for start in range(0, len(rows), CHUNK):
        part = range(start, min(start + CHUNK, len(rows)))
        missing = [rows[i] for i in part if any(key not in totals for key in wanted[i])]
        if not missing:
            continue
        scored = score_rows(model, scorer, missing, profile, world)
        fresh = {
            key: total
            for row, values in zip(missing, scored, strict=True)
            for key, total in zip(keys(row), values.tolist(), strict=True)
            if key not in totals
        }
        computed += len(fresh)
        totals |= fresh
        if world.main:
            for cache in caches:
                cache.add(fresh)
        log({"type": "progress", "done": part[-1] + 1, "total": len(rows), "message": "reference"})
    log({"type": "facts", "facts": {"reference_computed": computed, "reference_cached": len(totals) - computed}})
    return totals


def check_start(
    model: Any, scorer: Scorer, rows: Sequence[Encoded], totals: Mapping[Key, float], profile: Profile, world: World
) -> float:
    """Largest |log-ratio| in nats of a few rows before the first step: it must be zero up to rounding.

    Raises RuntimeError where reference and policy differ (other kernels, other weights, adapters in the reference).
    """
    import torch

    few = [rows[i] for i in sorted({i * len(rows) // 8 for i in range(8)})]
    found = torch.cat(score_rows(model, scorer, few, profile, world))
    expected = torch.tensor([totals[key] for row in few for key in keys(row)])
    lengths = torch.tensor([float(len(completion)) for row in few for completion in row.completions])
    difference = (found - expected).abs()
    excess = difference - tolerance(profile.dtype, expected, lengths)
    worst = int(excess.argmax())
    if not bool((excess <= 0).all()):
        raise RuntimeError(
            f"before the first step the policy gives a completion {float(found[worst]):.6g} nats and the reference "
            f"{float(expected[worst]):.6g}: the reference is not the initial policy (other weights, kernels or dtype). "
            "Delete cache/reference in the workspace and run again; if it comes again, train with layout: padded"
        )
    return float(difference.max())
