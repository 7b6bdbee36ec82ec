"""What a run would cost: tokens, memory, disk and seconds, from plain arithmetic and from what earlier runs took."""

import json
import os
from collections.abc import Mapping, Set
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from evaluation.catalogue import find_benchmark
from flows.experiment import Experiment
from tasks import estimate, shapes
from tasks.benchmarks import include_folder
from tasks.models import reference_cache
from training.data.records import graded, pairs, sft, teaches
from training.digest import Digest
from training.models import local_folder
from training.settings import Optimiser, PreferenceSettings

if TYPE_CHECKING:
    from flows.check import Seen
    from flows.looking import Looking

SETUP = 8.0  # seconds: Prefect's server and MLflow's database


def estimates(
    look: "Looking", e: Experiment, seen: "Seen", due: Set[str], warm_start: Digest | None = None
) -> dict[str, Any]:
    """Parameters (exact); tokens, memory, disk and seconds (estimates). What they warn of goes to ``look``.

    ``due`` names the steps that will run; the others cost nothing. ``warm_start``: its weights, where they are known.
    """
    folder = None if e.model.new else local_folder(e.model, look.root)
    if e.model.new is None and folder is None:
        look.warn("model.base is a hub id: its size, memory and time are not known before it is fetched")
        return {}
    part, profile = "sft" if "sft" in seen.snapshots.parts else "preferences", look.profile
    preferences, examples = seen.sample("preferences"), seen.sample(part)
    best = [(record.prompt, [sft(record).completion]) for record in examples if teaches(record)]
    all_graded = [
        (r.prompt, [c.text for c, _ in graded(r)[1]]) for r in preferences if pairs(r) or graded(r)[0] == "label"
    ]
    texts = [text for prompt, completions in best for text in (*(m.content for m in prompt), *completions)]
    count = estimate.token_counter(texts, e.model.new.vocabulary if e.model.new else 0, folder)
    each = 2 if e.model.new else 5
    shape = shapes.new_shape(e.model.new) if e.model.new else shapes.folder_shape(folder or look.root)
    speed = None
    if profile.device == "cpu":
        speed = estimate.calibrate() * min(profile.threads * profile.processes, os.cpu_count() or 1)
    counts = seen.report["parts"]
    kept = counts[part]["kept" if part == "sft" else "kept_train"], counts["preferences"]["kept_train"]
    rows = [[estimate.row_of(count, p, c, each) for p, c in found] for found in (best, all_graded)]
    passes = estimate.Passes(), _passes(look, e.preference, warm_start)
    costs: dict[str, Any] = {}
    for name, settings, number, sample, extra in zip(
        ("sft", "preference"), (e.sft, e.preference), kept, rows, passes, strict=True
    ):
        if settings is None or not sample:
            continue
        cost = estimate.training_cost(settings, number, sample, shape, profile, speed, extra, rows[0])
        done = _recorded(look, name, cost["visits"] * shape.parameters, _work)
        cost |= {"seconds": done, "from": "an earlier run"} if done else {"from": "this machine's speed"}
        costs[name] = cost
        _warn_of_training(look, name, settings, cost, shape)
    held = sum(count["pairs_holdout"] + count["rated_holdout"] for count in counts.values())
    if held < 20:
        look.warn(f"only {held} preferences are held out; the gate can show little with fewer than 20")
    seconds = {name: cost["seconds"] for name, cost in costs.items()}
    seconds |= {"validate": 2.0 + 0.0005 * seen.report["rows"]} | ({"base": estimate.START} if e.model.new else {})
    seconds["benchmarks"] = _benchmark_seconds(look, e, shape, costs, held, speed)
    for name, value in seconds.items():
        seconds[name] = value if name in due else 0.0
    known = [value for value in seconds.values() if value is not None]
    seconds["total"] = SETUP + sum(known) if len(known) == len(seconds) else None
    made = [name for name in ("base", "sft", "preference") if name in due]
    trained = [costs[name]["trained_parameters"] for name in made if name in costs]
    disk = estimate.run_disk(shape, trained, len(made) - ("base" in made and folder is not None)) if made else 0
    free = look.workspace.free_bytes()
    if disk > free:
        look.warn(
            f"estimate: {gib(disk)} of disk are needed and {gib(free)} are free at {look.workspace.home}; free some"
        )
    return {
        "parameters": shape.parameters,
        "training": costs,
        "disk": {"bytes": disk, "free": free},
        "seconds": seconds,
    }


def _passes(look: "Looking", settings: PreferenceSettings, warm_start: Digest | None) -> estimate.Passes:
    """What is computed without a gradient. The reference is known where an earlier step of this workspace needed it."""
    losses = [term.loss for term in settings.terms]
    needed = any(loss.needs_reference for loss in losses)
    return estimate.Passes(
        needed and not _reference_known(look, settings, warm_start), any(loss.needs_baseline for loss in losses)
    )


def _reference_known(look: "Looking", settings: PreferenceSettings, warm_start: Digest | None) -> bool:
    if warm_start is None or not reference_cache(look).is_dir():
        return False
    for path in look.manifests("preference"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            manifest = json.loads(path.read_bytes())
            record, told = manifest["record"], manifest["timing"]["extra"]
            same = record["inputs"]["model"] == str(warm_start) and all(
                record["environment"][key] == look.compute[key] for key in ("device", "dtype", "layout")
            )
            same = same and record["settings"]["max_tokens"] == settings.max_tokens
            if same and told.get("reference_computed", 0) + told.get("reference_cached", 0):
                return True
    return False


def _warn_of_training(look: "Looking", name: str, settings: Optimiser, cost: dict[str, Any], shape: Any) -> None:
    if cost["cut"] > 0.05:
        look.warn(
            f"{name}: {cost['cut']:.0%} of the rows are longer than max_tokens ({settings.max_tokens}) and are cut"
        )
    if shape.context and settings.max_tokens > shape.context:
        look.warn(f"{name}.max_tokens ({settings.max_tokens}) is beyond the model's context of {shape.context} tokens")
    profile = look.profile
    limit = 60 * getattr(profile.minutes, name)
    if cost["seconds"] is not None and cost["seconds"] > limit:
        look.warn(f"{name}: estimate {duration(cost['seconds'])}; the profile stops it after {duration(limit)}")
    with suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        needed = cost["memory"] * profile.processes
        if profile.device == "cpu" and needed > memory:
            look.warn(
                f"{name}: estimate {gib(needed)} of memory, this machine has {gib(memory)}; lower the profile's "
                "token_budget, or train LoRA adapters"
            )


def _work(record: Mapping[str, Any], name: str) -> float:
    """Row visits times parameters of a recorded training step."""
    facts, settings = record["facts"], record["settings"]
    rows = facts["sft_rows" if name == "sft" else "preference_rows"]
    visits = settings["steps"] * settings["batch"] if settings["steps"] else rows * settings["epochs"]
    return float(visits * facts["parameters"])


def _recorded(look: "Looking", name: str, work: float, measure: Any) -> float | None:
    """Seconds of the newest recorded step of this kind and about this size (a quarter to four times), in proportion."""
    for path in look.manifests(name):
        with suppress(OSError, ValueError, KeyError, TypeError):
            manifest = json.loads(path.read_bytes())
            record = manifest["record"]
            same = all(record["environment"].get(key, value) == value for key, value in look.compute.items())
            ratio = work / measure(record, name)
            if same and 0.25 <= ratio <= 4:
                return float(estimate.START + max(0.0, manifest["timing"]["seconds"] - estimate.START) * ratio)
    return None


def _benchmark_seconds(
    look: "Looking", e: Experiment, shape: Any, costs: Mapping[str, Any], held: int, speed: float | None
) -> float | None:
    names = e.benchmarks.names
    done = _recorded(look, "benchmarks", 3 * (len(names) + 2), lambda record, _: record["facts"]["evaluated"])
    if done or speed is None:
        return done
    items, include = 0, include_folder(e.benchmarks, look.root)
    for name in names:
        found = find_benchmark(name, include)
        if found.remote:
            look.warn(f"benchmark {name!r} reads the data set {found.remote!r} from the hub: a run needs the network")
        lines = sum(path.read_bytes().count(b"\n") for path in found.data) or 1000
        items += min(lines, e.benchmarks.limit or lines)
    samples = e.benchmarks.samples
    tokens = -(-samples.prompts // e.benchmarks.batch_size) * samples.max_new_tokens
    width = max((cost["width"] for cost in costs.values()), default=64)
    return estimate.benchmark_seconds(shape, 3, items, len(names), tokens, held, width, speed)


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
