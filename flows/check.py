"""``alignmill check``: settings and data without training. Says what would run, what would be put aside, what it costs.

Nothing is written into the workspace, which need not exist; neither Prefect, MLflow nor torch is imported.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evaluation.catalogue import find_benchmark
from flows.experiment import Experiment, load_experiment, load_profile
from tasks import estimate
from tasks.benchmarks import Scores, include_folder, questions
from tasks.data import Data, Snapshots, parts_of, snapshot_step, validation_step
from tasks.lineage import merkle
from tasks.lineage.step import Step, StepResult, find
from tasks.lineage.store import Artifact, Damaged, Store
from tasks.models import base_step, preference_step, warm_start_step
from tasks.preflight import preflight
from tasks.promotion import Rival, gate_step
from tasks.run import Context
from tasks.workspace import Workspace
from training.data.records import pairs, sft
from training.digest import Digest
from training.models import local_folder
from training.settings import Optimiser, Refused

CACHED, RUNS, CHANGED = "cached", "will run", "will run (an input changes)"
SETUP = 8.0  # seconds: Prefect's server and MLflow's database
_MEASURED = 400  # rows a part whose tokens are counted
_HASHED = 4 * 2**30  # bytes of a base model that are hashed to look a step up; a larger one is not


class _ReadOnly(Store):
    """A store that is only looked at: nothing is remembered, nothing is moved aside."""

    def _remember(self, artifact: Artifact, manifest: Any) -> None:
        pass

    def discard(self, artifact: Artifact) -> Path:
        raise Damaged(f"{artifact.kind} {artifact.digest} at {artifact.path} has changed")


@dataclass
class Looking(Context):
    """A context whose ``find`` leaves the workspace as it is; what it would warn about is kept."""

    warnings: list[str] = field(default_factory=list)

    def find(self, step: Step) -> StepResult | None:
        try:
            return find(_ReadOnly(self.workspace.store.root), step, self.warn)
        except Damaged as damage:
            self.warn(f"{damage}; step {step.name} will run again")
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.warn(f"the record of step {step.name} cannot be read ({error}); a run will stop there: move it away")
        return None

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def manifests(self, name: str) -> list[Path]:
        """The recorded executions of a step, the newest first."""
        folder = self.workspace.store.root / "steps" / name
        return sorted(folder.glob("*.json"), key=lambda path: -path.stat().st_mtime)


def check(experiment: str, profile: str | None = None) -> dict[str, Any]:
    """What ``run`` would meet, as JSON: data, plan, estimates, warnings.

    Raises Refused with everything that ``run`` would refuse, all at once.
    """
    loaded, machine = load_experiment(experiment), load_profile(profile)
    e = loaded.experiment
    look = Looking(e.name, e.digest, e.seed, loaded.root, machine, Workspace.at())
    problems = []
    try:
        preflight(loaded.root, e.model, e.data, e.benchmarks, e.gate)
    except Refused as refusal:
        problems.append(str(refusal))
    with TemporaryDirectory(prefix="alignmill-check-") as temporary:
        seen = None
        if all((loaded.root / s.path).is_file() for sources in parts_of(e.data).values() for s in sources):
            seen = look_at_data(look, e, Path(temporary), problems)
        if problems or seen is None:
            raise Refused("\n".join(problems))
        plan = plan_steps(look, e, seen)
        costs = estimates(look, e, seen, plan)
    return {
        "experiment": e.name,
        "digest": str(e.digest),
        "file": str(loaded.path),
        "workspace": str(look.workspace.home),
        "data": {name: seen.report["parts"][name] for name in parts_of(e.data)},
        "plan": plan,
        "estimates": costs,
        "warnings": [*seen.report["warnings"], *look.warnings],
    }


# ------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Seen:
    """The data as they are now. ``validation``: its recorded step, where there is one."""

    snapshots: Snapshots
    recorded: Mapping[str, StepResult | None]
    validation: StepResult | None
    report: Mapping[str, Any]

    def sample(self, part: str) -> list[Any]:
        """Some hundred readable records of a part, from its first rows."""
        from training.data.snapshot import read_snapshot

        rows = islice(read_snapshot(self.snapshots.parts[part].path, ("id", "payload", "reason")), 2000)
        records = [row.record for row in rows if row.reason is None]
        return records[:: max(1, len(records) // _MEASURED)][:_MEASURED]


def look_at_data(look: Looking, e: Experiment, temporary: Path, problems: list[str]) -> Seen | None:
    """Snapshots from the store, or made in ``temporary``; the validation's report. ``problems`` collects refusals."""
    from training.data.snapshot import write_snapshot

    parts: dict[str, Artifact] = {}
    recorded: dict[str, StepResult | None] = {}
    for name, sources in parts_of(e.data).items():
        try:
            recorded[name] = done = look.find(snapshot_step(look, name, sources))
            if done is not None:
                digest, path = Digest.parse(done.facts["root"]), done["snapshot"].path
            else:
                path = temporary / name
                digest = merkle.root(write_snapshot(sources, look.root, path).leaves())
            parts[name] = Artifact("snapshot", path, digest)
        except Refused as refusal:
            problems.append(f"data.{name}: {refusal}")
    if len(parts) < len(parts_of(e.data)):
        return None
    roots = {name: part.digest for name, part in parts.items()}
    validation = look.find(validation_step(look, e.validation, e.data, roots))
    if validation is not None:
        report = dict(validation.facts)
    else:
        from training.data import expectations

        paths = {name: part.path for name, part in parts.items()}
        report = expectations.check(paths, e.validation, e.data.holdout).as_json()
        problems += [f"data: {refusal}" for refusal in report["refusals"]]
    return Seen(Snapshots(parts, roots, ()), recorded, validation, report)


# ------------------------------------------------------------------------------------------------ plan


def plan_steps(look: Looking, e: Experiment, seen: Seen) -> list[dict[str, str]]:
    """Each step and whether its result is there. Behind the first one that has to run the inputs are not known."""
    plan: list[dict[str, str]] = []

    def state(name: str, done: object, known: bool = True, note: str = "") -> None:
        """``known``: whether the inputs are, so that the step was looked up; else an earlier one is stale."""
        earlier = look.manifests("gate" if name in ("register", "promote") else name)
        found = CACHED if done else RUNS if known or not earlier else CHANGED
        plan.append({"step": name, "state": found} | ({"note": note} if note else {}))

    for name, done in seen.recorded.items():
        state(f"snapshot-{name}", done)
    state("validate", seen.validation)
    data = Data(seen.snapshots, seen.validation) if seen.validation else None
    base = warm = policy = None
    note = _unhashed(look, e)
    if data and not note:
        base = look.find(base_step(look, e.model, data.example_inputs()))
    state("base", base, data is not None, note)
    if data and base:
        warm = base
        if e.sft:
            warm = look.find(warm_start_step(look, e.sft, base["model"].digest, data.example_inputs()))
    if e.sft:
        state("sft", warm, base is not None)
    if data and warm:
        inputs = data.pair_inputs(), data.example_inputs()
        policy = look.find(preference_step(look, e.preference, warm["model"].digest, *inputs))
    state("preference", policy, warm is not None)

    models = {"base": base, "warm_start": warm, "policy": policy}
    digests = {label: made["model"].digest for label, made in models.items() if made}
    asked = questions(look, e.benchmarks, digests, data, e.preference.max_tokens) if data else ()
    answers = {question.key: done["result"] for question in asked if (done := look.find(question.step))}
    whole = len(models) * (len(e.benchmarks.names) + 2)
    state(
        "benchmarks",
        len(answers) == whole,
        policy is not None,
        f"{len(answers)} of {whole} answers are there; a champion adds its own",
    )
    judged = len(answers) == whole and _decided(look, e, answers)
    for name in ("gate", "register", "promote"):
        note = "while the champion stays the same" if judged else ""
        state(name, judged, len(answers) == whole and name == "gate", note)
    return plan


def _unhashed(look: Looking, e: Experiment) -> str:
    """Why a base folder is not hashed here; empty where it is."""
    folder = None if e.model.new else local_folder(e.model, look.root)
    if folder is None:
        return ""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return f"{gib(size)} of weights are not hashed here; a run finds out" if size > _HASHED else ""


def _decided(look: Looking, e: Experiment, answers: Mapping[str, Artifact]) -> bool:
    """Whether a decision about these answers is on record, whoever was champion (only MLflow's registry knows)."""
    folders: dict[str, dict[str, Artifact]] = {}
    for key, artifact in answers.items():
        label, _, name = key.partition(" ")
        folders.setdefault(label, {})[name] = artifact
    nothing = StepResult("benchmarks", look.digest, {}, {}, True)
    step = gate_step(look, e.gate, Scores(folders, nothing), Rival(None)).as_json()
    for path in look.manifests("gate"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(path.read_bytes())["record"]
            ours = {**record, "settings": {**record["settings"], "unknown_champion": None}}
            ours["inputs"] = {k: v for k, v in record["inputs"].items() if not k.startswith("champion ")}
            if all(ours[key] == value for key, value in step.items()):
                return True
    return False


# ------------------------------------------------------------------------------------------------ estimates


def estimates(look: Looking, e: Experiment, seen: Seen, plan: list[dict[str, str]]) -> dict[str, Any]:
    """Parameters (exact); tokens, memory, disk and seconds (estimates). What they warn of goes to ``look``."""
    folder = None if e.model.new else local_folder(e.model, look.root)
    if e.model.new is None and folder is None:
        look.warn("model.base is a hub id: its size, memory and time are not known before it is fetched")
        return {}
    part, profile = "sft" if "sft" in seen.snapshots.parts else "preferences", look.profile
    preferences, examples = seen.sample("preferences"), seen.sample(part)
    best = [(record.prompt, [sft(record).completion]) for record in examples if record.completions]
    both = [(r.prompt, [c.text for c in r.completions]) for r in preferences if pairs(r)]
    texts = [text for prompt, completions in best for text in (*(m.content for m in prompt), *completions)]
    count = estimate.token_counter(texts, e.model.new.vocabulary if e.model.new else 0, folder)
    each = 2 if e.model.new else 5
    shape = estimate.new_shape(e.model.new) if e.model.new else estimate.folder_shape(folder or look.root)
    speed = None
    if profile.device == "cpu":
        speed = estimate.calibrate() * min(profile.threads, os.cpu_count() or 1)
    counts, states = seen.report["parts"], {entry["step"]: entry["state"] for entry in plan}
    rows = {
        "sft": counts[part]["kept" if part == "sft" else "kept_train"],
        "preference": counts["preferences"]["pairs_train"],
    }
    costs: dict[str, Any] = {}
    for name, settings, found in (("sft", e.sft, best), ("preference", e.preference, both)):
        if settings is None or not found:
            continue
        lengths = [estimate.row_tokens(count, prompt, completions, each) for prompt, completions in found]
        cost = estimate.training_cost(settings, rows[name], lengths, 1 + (name == "preference"), shape, profile, speed)
        done = _recorded(look, name, cost["visits"] * shape.parameters, _work)
        cost |= {"seconds": done, "from": "an earlier run"} if done else {"from": "this machine's speed"}
        costs[name] = cost
        _warn_of_training(look, name, settings, cost, shape)
    held = sum(count["pairs_holdout"] for count in counts.values())
    if held < 20:
        look.warn(f"only {held} pairs are held out; the gate can show little with fewer than 20")
    seconds = {name: cost["seconds"] for name, cost in costs.items()}
    seconds |= {"validate": 2.0 + 0.0005 * seen.report["rows"]} | ({"base": estimate.START} if e.model.new else {})
    seconds["benchmarks"] = _benchmark_seconds(look, e, shape, costs, held, speed)
    for name, value in seconds.items():
        seconds[name] = 0.0 if states[name] == CACHED else value
    known = [value for value in seconds.values() if value is not None]
    seconds["total"] = SETUP + sum(known) if len(known) == len(seconds) else None
    made = [name for name in ("base", "sft", "preference") if states.get(name, CACHED) != CACHED]
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


def _warn_of_training(look: Looking, name: str, settings: Optimiser, cost: dict[str, Any], shape: Any) -> None:
    if cost["cut"] > 0.05:
        look.warn(
            f"{name}: {cost['cut']:.0%} of the rows are longer than max_tokens ({settings.max_tokens}) and are cut"
        )
    if shape.context and settings.max_tokens > shape.context:
        look.warn(f"{name}.max_tokens ({settings.max_tokens}) is beyond the model's context of {shape.context} tokens")
    limit = 60 * getattr(look.profile.minutes, name)
    if cost["seconds"] is not None and cost["seconds"] > limit:
        look.warn(f"{name}: estimate {duration(cost['seconds'])}; the profile stops it after {duration(limit)}")
    with suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if look.profile.device == "cpu" and cost["memory"] > memory:
            look.warn(
                f"{name}: estimate {gib(cost['memory'])} of memory, this machine has {gib(memory)}; lower the "
                "profile's token_budget, or train LoRA adapters"
            )


def _work(record: Mapping[str, Any], name: str) -> float:
    """Row visits times parameters of a recorded training step."""
    facts, settings = record["facts"], record["settings"]
    rows = facts["sft_rows" if name == "sft" else "pairs_rows"]
    visits = settings["steps"] * settings["batch"] if settings["steps"] else rows * settings["epochs"]
    return float(visits * facts["parameters"])


def _recorded(look: Looking, name: str, work: float, measure: Any) -> float | None:
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
    look: Looking, e: Experiment, shape: Any, costs: Mapping[str, Any], held: int, speed: float | None
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


# ------------------------------------------------------------------------------------------------ for people


def show(value: dict[str, Any]) -> None:
    """Print what ``check`` found, on standard output."""
    from tasks.console import table

    print(f"experiment {value['experiment']} ({value['digest'][7:19]}), {value['file']}\n")
    counts = ("rows", "kept", "kept_train", "kept_holdout", "quarantined")
    parts = value["data"].items()
    table(
        ["data", "rows", "kept", "train", "holdout", "quarantined"],
        [[n, *(f"{p[c]:,}" for c in counts)] for n, p in parts],
    )
    for name, part in parts:
        broken = ", ".join(f"{rule} {n:,}" for rule, n in part["rules"].items() if n)
        print(*([f"  {name}: rows that break a rule: {broken}"] if broken else []), end="\n" if broken else "")
    print("\nplan (a step whose inputs come out the same after all is reused)")
    width = max(len(entry["step"]) for entry in value["plan"]) + 2
    for entry in value["plan"]:
        note = f"  ({entry['note']})" if "note" in entry else ""
        print(f"  {entry['step']:<{width}}{entry['state']}{note}")
    if value["estimates"]:
        _show_estimates(value["estimates"])
    for warning in value["warnings"]:
        print(f"warning: {warning}")


def _show_estimates(costs: dict[str, Any]) -> None:
    print(f"\nmodel: {costs['parameters']:,} parameters; all that follows are estimates")
    for name, cost in costs["training"].items():
        trained = (
            f", {cost['trained_parameters']:,} trained" if cost["trained_parameters"] != costs["parameters"] else ""
        )
        print(
            f"  {name}: {cost['steps']:,} steps of {cost['batch']} rows, about {cost['tokens_per_step']:,} padded "
            f"tokens each{trained}; {gib(cost['memory'])} of memory; {duration(cost['seconds'])} by {cost['from']}"
        )
    print(f"  disk: {gib(costs['disk']['bytes'])} more; {gib(costs['disk']['free'])} are free")
    spent = ", ".join(f"{name} {duration(value)}" for name, value in costs["seconds"].items() if name != "total")
    print(f"  time: {duration(costs['seconds']['total'])} ({spent}, start {duration(SETUP)})")


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
