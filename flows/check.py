"""``alignmill check``: settings and data without training. Says what would run, what would be put aside, what it costs.

Nothing is written into the workspace, which need not exist; neither Prefect, MLflow nor torch is imported.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flows.costs import estimates, gib
from flows.experiment import Experiment, load_experiment, load_profile
from flows.looking import Looking, look_at_texts
from tasks.benchmarks import Scores, questions
from tasks.data import Data, Snapshots, parts_of, segment_cache, snapshot_step
from tasks.lineage import merkle
from tasks.lineage.step import StepResult
from tasks.lineage.store import Artifact
from tasks.models import base_step, preference_step, warm_start_step
from tasks.preflight import data_problems, preflight
from tasks.promotion import Rival, gate_step
from tasks.refusals import refusal, training_records
from tasks.validation import prepare
from tasks.workspace import Workspace
from training.digest import Digest
from training.models import local_folder
from training.strict import Refused

CACHED, RUNS, CHANGED = "cached", "will run", "will run (an input changes)"
_MEASURED = 400  # rows a part whose tokens are counted
_HASHED = 4 * 2**30  # bytes of a base model that are hashed to look a step up; a larger one is not


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
        if not data_problems(loaded.root, e.data):
            seen = look_at_data(look, e, Path(temporary), problems)
        if seen is not None and not problems:
            losses_that_refuse(look, e, seen, problems)
        if problems or seen is None:
            raise Refused("\n".join(problems))
        found: dict[str, StepResult] = {}
        plan = plan_steps(look, e, seen, found)
        due = {entry["step"] for entry in plan if entry["state"] != CACHED}
        warm_start = found["warm_start"]["model"].digest if "warm_start" in found else None
        costs = estimates(look, e, seen, due, warm_start)
        compared = plan_comparison(look, e, seen, warm_start)
    return {
        "experiment": e.name,
        "digest": str(e.digest),
        "file": str(loaded.path),
        "workspace": str(look.workspace.home),
        "data": {name: seen.report["parts"][name] for name in parts_of(e.data)},
        "measures": seen.report["measures"],
        "benchmarks": seen.report["benchmarks"],
        "plan": plan,
        "compare": compared,
        "estimates": costs,
        "warnings": [*seen.report["warnings"], *look.warnings],
    }


# ------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Seen:
    """The data as they are now. ``validation``: its recorded step, where there is one."""

    snapshots: Snapshots
    recorded: Mapping[str, StepResult | None]
    texts: StepResult | None
    validation: StepResult | None
    report: Mapping[str, Any]

    def training_records(self) -> Iterable[Any]:
        """What training sees; before validation is recorded, all readable records of the preferences."""
        if self.validation is not None:
            return training_records(Data(self.snapshots, self.validation))
        from training.data.stored import read_snapshot

        rows = read_snapshot(self.snapshots.parts["preferences"].path, ("id", "payload", "reason"))
        return (row.record for row in rows if row.reason is None)

    def sample(self, part: str) -> list[Any]:
        """Some hundred readable records of a part, from its first rows."""
        from training.data.stored import read_snapshot

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
                made = write_snapshot(sources, look.root, path, segment_cache(look), look.profile.threads)
                digest = merkle.root(made.leaves())
            parts[name] = Artifact("snapshot", path, digest)
        except Refused as refusal:
            problems.append(f"data.{name}: {refusal}")
    if len(parts) < len(parts_of(e.data)):
        return None
    roots = {name: part.digest for name, part in parts.items()}
    paths = {name: part.path for name, part in parts.items()}
    texts, file = look_at_texts(look, e.benchmarks, temporary)
    prepared = prepare(look, e.validation, e.data, paths, roots, file, e.model, e.max_tokens)
    validation = look.find(prepared.step)
    if validation is not None:
        report = dict(validation.facts)
    else:
        from training.data import expectations

        context = replace(prepared.context, cache=temporary / "facts")
        report = expectations.check(paths, e.validation, e.data.holdout, context).as_json()
        problems += [f"data: {refusal}" for refusal in report["refusals"]]
    return Seen(Snapshots(parts, roots, ()), recorded, texts, validation, report)


def losses_that_refuse(look: Looking, e: Experiment, seen: Seen, problems: list[str]) -> None:
    """Ask every loss whether these data will do: a problem where a run would refuse, a warning for a candidate of
    ``compare``, and where it depends on one row whether the data have scores and validation may yet put it aside."""
    why = refusal(e.preference, seen.training_records())
    if why and (seen.validation or not any(term.loss.needs_scores for term in e.preference.terms)):
        problems.append(f"preference.loss {e.preference.loss.name}: {why}")
    elif why:
        look.warn(f"preference.loss {e.preference.loss.name} may be refused: {why}")
    for candidate in e.compare:
        why = refusal(candidate.settings, seen.training_records())
        if why:
            look.warn(f"compare: {candidate.name} would be left out: {why}")


# ------------------------------------------------------------------------------------------------ plan


def plan_steps(look: Looking, e: Experiment, seen: Seen, found: dict[str, StepResult]) -> list[dict[str, str]]:
    """Each step and whether its result is there. Behind the first one that has to run the inputs are not known.

    ``found`` collects the models that are there, by label.
    """
    plan: list[dict[str, str]] = []

    def state(name: str, done: object, known: bool = True, note: str = "") -> None:
        """``known``: whether the inputs are, so that the step was looked up; else an earlier one is stale."""
        earlier = look.manifests("gate" if name in ("register", "promote") else name)
        word = CACHED if done else RUNS if known or not earlier else CHANGED
        plan.append({"step": name, "state": word} | ({"note": note} if note else {}))

    for name, done in seen.recorded.items():
        state(f"snapshot-{name}", done)
    if e.benchmarks.names:
        state("texts", seen.texts)
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
    found |= {label: made for label, made in models.items() if made}
    digests = {label: made["model"].digest for label, made in found.items()}
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


def plan_comparison(look: Looking, e: Experiment, seen: Seen, warm_start: Digest | None) -> list[dict[str, str]]:
    """Each candidate of the ``compare`` list and whether ``alignmill compare`` would find it trained."""
    plan = []
    data = Data(seen.snapshots, seen.validation) if seen.validation else None
    for candidate in e.compare:
        done = None
        if data and warm_start:
            inputs = data.pair_inputs(), data.example_inputs()
            done = look.find(preference_step(look, candidate.settings, warm_start, *inputs))
        plan.append({"candidate": candidate.name, "state": CACHED if done else RUNS})
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
