"""Gate, registration, promotion: what the evidence says, on record, and what the registry does about it."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evaluation.gate import Decision, decide
from evaluation.scores import Results
from evaluation.settings import GateSettings
from tasks.benchmarks import Scores
from tasks.lineage.step import Made, StepResult, Work
from tasks.lineage.store import Artifact, Damaged, write_json
from tasks.registry import CHALLENGER, CHAMPION, NOBODY, Registry, Version
from tasks.run import Run, StepRun
from tasks.settings import RegistrySettings
from training.digest import Digest


@dataclass(frozen=True)
class Rival:
    """Whom the policy has to beat: the champion's weights, or nobody yet. ``unknown``: a champion that we don't have.

    ``champion``: the number of the version that is champion as the policy is judged.
    """

    weights: Artifact | None
    champion: int | None = None
    unknown: str | None = None


@dataclass(frozen=True)
class Judged:
    """A decision and the step that recorded it."""

    step: StepResult
    rival: Rival

    @property
    def cached(self) -> bool:
        return self.step.cached

    @property
    def digest(self) -> Digest:
        return self.step["decision"].digest

    @cached_property
    def decision(self) -> Decision:
        return Decision.from_json(json.loads((self.step["decision"].path / "decision.json").read_bytes()))


@dataclass(frozen=True)
class Registered:
    version: Version
    cached: bool


@dataclass(frozen=True)
class Promotion:
    """``champion``: the version behind the alias after this run. ``note`` says what happened and why."""

    champion: Version | None
    note: str
    cached: bool


def find_rival(run: Run, settings: RegistrySettings, policy: Artifact) -> Rival:
    """The champion, or, where this policy is champion itself, the one that it was judged against."""
    champion = Registry(run.tracking.client, settings.model).alias(CHAMPION)
    if champion is None:
        return Rival(None)
    if champion.weights == policy.digest:
        weights = champion.judged_against
        if weights is None:
            return Rival(None, champion.number)
    else:
        weights = champion.weights
    if weights is None:
        unknown = f"version {champion.number} was made elsewhere: its weights are not in this workspace's store"
        return Rival(None, champion.number, unknown)
    artifact = run.workspace.store.artifact("model", weights)
    try:
        run.workspace.store.verify(artifact)
    except Damaged as damage:
        return Rival(None, champion.number, str(damage))
    return Rival(artifact, champion.number)


def gate_step(run: Any, settings: GateSettings, scores: Scores, rival: Rival) -> Any:
    inputs = {**scores.inputs("policy"), **scores.inputs("warm_start"), **scores.inputs("champion")}
    read = {**settings.model_dump(mode="json"), "unknown_champion": rival.unknown}
    return run.step("gate", read, inputs, ("evaluation.gate",), ("scipy", "numpy"))


def decide_promotion(run: Run, settings: GateSettings, scores: Scores, rival: Rival) -> Judged:
    """Challenger against champion under the experiment's rules; the decision is an artifact with its reasons."""

    def work(work: Work, step: StepRun) -> Made:
        results = scores.results
        champion = Results() if rival.unknown else results.get("champion")
        decision = decide(settings, results["policy"], champion, results["warm_start"])
        out = run.workspace.store.scratch()
        write_json(out / "decision.json", decision.as_json())
        return Made({"decision": ("decision", out)}, {"accepted": decision.accepted, "reasons": list(decision.reasons)})

    judged = Judged(run.perform(gate_step(run, settings, scores, rival), work), rival)
    run.console.say(f"gate: {'accepted' if judged.decision.accepted else 'refused'}")
    return judged


def register_version(
    run: Run, settings: RegistrySettings, policy: StepResult, judged: Judged, scores: Scores
) -> Registered:
    """A version per (policy, decision), refused ones too; ``challenger`` points to it. Done once, however often called."""
    registry = Registry(run.tracking.client, settings.model)
    weights, decision = policy["model"], judged.digest
    for version in registry.versions():
        if version.weights == weights.digest and version.decision == decision:
            challenger = registry.alias(CHALLENGER)
            if challenger is None or challenger.number < version.number:  # a kill between the two writes
                registry.set_alias(CHALLENGER, version)
            run.console.say(f"register: cached (version {version.number} of {settings.model})", "dim")
            return Registered(version, True)
    run.workspace.store.verify(weights, full=True)
    rival = judged.rival.weights
    tags = {
        "alignmill.weights": str(weights.digest),
        "alignmill.decision": str(decision),
        "alignmill.accepted": str(judged.decision.accepted).lower(),
        "alignmill.judged_against": str(rival.digest) if rival else NOBODY,
        "alignmill.experiment": run.name,
        "alignmill.experiment_digest": str(run.tracking.digest),
        "alignmill.step": str(policy.key),
    }
    version = registry.register(run.tracking, weights, tags, card(run, judged, scores))
    registry.set_alias(CHALLENGER, version)
    run.console.say(f"register: version {version.number} of {settings.model}")
    return Registered(version, False)


def card(run: Run, judged: Judged, scores: Scores) -> str:
    """The version's description: what it is, what was decided and why, what it scored."""
    decision = judged.decision
    lines = [
        f"Policy of experiment `{run.name}` ({run.digest.short}), seed {run.seed}.",
        "",
        f"Gate: **{'accepted' if decision.accepted else 'refused'}**.",
        *(f"- {reason}" for reason in decision.reasons),
        "",
        "| metric | policy |",
        "|---|---:|",
        *(f"| {name} | {score.value:.3f} |" for name, score in scores.results["policy"].scores.items()),
    ]
    return "\n".join(lines)


def promote_version(run: Run, settings: RegistrySettings, registered: Registered, judged: Judged) -> Promotion:
    """Move ``champion`` to an accepted version, once: a version that a person rolled back is not promoted again.

    Where somebody else's version has become champion since the decision, nothing is moved: the evidence is about another.
    """
    registry = Registry(run.tracking.client, settings.model)
    champion, version = registry.alias(CHAMPION), registered.version
    if champion is not None and champion.weights == version.weights and judged.decision.accepted:
        if champion.promoted is None:  # a kill between the two writes
            registry.mark_promoted(champion)
        return Promotion(champion, f"version {champion.number} is champion already", True)
    if not judged.decision.accepted:
        stays = f"version {champion.number} stays champion" if champion else "there is no champion"
        return Promotion(champion, f"version {version.number} was refused; {stays}", registered.cached)
    if version.promoted is not None:
        note = (
            f"version {version.number} was promoted at {version.promoted} and is champion no more; it is not promoted again "
            "by itself"
        )
        return Promotion(champion, note, True)
    if (champion.number if champion else None) != judged.rival.champion:
        moved = f"from {judged.rival.champion or 'none'} to {champion.number if champion else 'none'}"
        note = f"version {version.number} is not promoted: the champion moved {moved} since this decision; run again"
        return Promotion(champion, note, False)
    registry.set_alias(CHAMPION, version)
    registry.mark_promoted(version)
    before = f" in place of version {champion.number}" if champion else ""
    run.console.say(f"promote: version {version.number} is champion{before}", "bold green")
    return Promotion(version, f"version {version.number} is champion{before}", False)
