"""Base model, warm start and policy: each a step whose work is done by a child process."""

import shutil
from pathlib import Path
from typing import Any

from tasks.curves import Curves, curves, speed
from tasks.data import Data
from tasks.lineage.step import Made, StepResult, Work
from tasks.run import TRAINING_PACKAGES, Run, StepRun
from training.digest import Digest, digest_file, digest_json
from training.settings import ModelSettings, PreferenceSettings, SFTSettings

# Facts of a job that depend on the machine or on what was done before: kept beside the record, outside of its digest.
_BESIDE = ("reference_computed", "reference_cached", "peak_flops")


def base_inputs(settings: ModelSettings, root: Path, examples: dict[str, Digest]) -> dict[str, Digest]:
    """What a base model is made of: the training text for a new one, the folder's files, or the commit."""
    from training.models import find_base, local_folder, model_files

    if settings.new is not None:
        return examples
    if local_folder(settings, root) is None:
        return {"commit": digest_json([settings.base, settings.revision])}
    files = model_files(find_base(settings, root))
    return {"files": digest_json({name: str(digest_file(path)) for name, path in sorted(files.items())})}


def base_step(run: Any, settings: ModelSettings, examples: dict[str, Digest]) -> Any:
    read = {"new": settings.new.model_dump(mode="json"), "seed": run.seed} if settings.new else {}
    return run.step("base", read, base_inputs(settings, run.root, examples), ("training.base",), TRAINING_PACKAGES)


def prepare_base(run: Run, settings: ModelSettings, data: Data) -> StepResult:
    """The base model as an artifact: made from the seed, linked from a folder, or fetched at its commit.

    Raises Refused where it cannot be had or does not load.
    """

    def work(work: Work, step: StepRun) -> Made:
        out = work.folder / "model"
        _clear(out)
        payload = {
            "settings": settings.model_dump_json(),
            "root": str(run.root),
            "inputs": {"examples": data.examples()},
            "output": str(out),
        }
        online = settings.new is None and settings.revision is not None
        facts = step.job("training.base", payload, run.profile.minutes.sft, online)
        return Made({"model": ("model", out)}, facts)

    return run.perform(base_step(run, settings, data.example_inputs()), work)


def warm_start_step(run: Any, settings: SFTSettings, base: Digest, examples: dict[str, Digest]) -> Any:
    inputs = {"model": base, **examples}
    read = {**settings.model_dump(mode="json"), "seed": run.seed}
    return run.step("sft", read, inputs, ("training.sft",), TRAINING_PACKAGES, run.compute)


def train_warm_start(run: Run, settings: SFTSettings | None, base: StepResult, data: Data) -> StepResult:
    """Supervised fine-tuning of the base model; the base itself where the experiment has no ``sft`` section."""
    if settings is None:
        return base
    step = warm_start_step(run, settings, base["model"].digest, data.example_inputs())
    inputs = {"model": str(base["model"].path), "examples": data.examples()}
    return _train(run, step, "training.sft", settings, inputs, run.profile.minutes.sft)


def preference_step(
    run: Any, settings: PreferenceSettings, warm_start: Digest, pairs: dict[str, Digest], examples: dict[str, Digest]
) -> Any:
    inputs = {"model": warm_start, **pairs, **(examples if settings.replay else {})}
    read = {**settings.model_dump(mode="json"), "seed": run.seed}
    return run.step("preference", read, inputs, ("training.preference",), TRAINING_PACKAGES, run.compute)


def optimize_preferences(
    run: Run, settings: PreferenceSettings, warm_start: StepResult, data: Data, label: str = ""
) -> StepResult:
    """Preference optimization of the warm start, which is also the reference. ``label`` tells several of them apart.

    Raises Refused where a loss cannot be trained on these data.
    """
    pairs, examples = data.pair_inputs(), data.example_inputs()
    step = preference_step(run, settings, warm_start["model"].digest, pairs, examples)
    inputs = {"model": str(warm_start["model"].path), "pairs": data.pairs(), "examples": data.examples()}
    title = f"preference {label}".rstrip()
    return _train(run, step, "training.preference", settings, inputs, run.profile.minutes.preference, title)


def reference_cache(run: Any) -> Path:
    """Where reference log-probabilities are kept for every run in this workspace; a cache and no part of any record."""
    return Path(run.workspace.home, "cache", "reference")


def _train(
    run: Run, step: Any, module: str, settings: Any, inputs: dict[str, Any], minutes: float, title: str = ""
) -> StepResult:
    def work(work: Work, step_run: StepRun) -> Made:
        out = work.folder / "model"
        _clear(out)
        payload = {
            "settings": settings.model_dump_json(),
            "inputs": inputs,
            "output": str(out),
            "objective": str(objective(step)),
            "checkpoints": str(work.folder / "checkpoints"),
            "cache": str(reference_cache(run)),
        }
        facts = step_run.job(module, payload, minutes, processes=run.profile.processes)
        beside = {name: facts.pop(name) for name in _BESIDE if name in facts}
        events = step_run.events()
        told = curves(events)
        told.write(work.folder / "curves")
        if step.name == "preference":
            _draw(run, step_run, told)
        outputs = {"model": ("model", out), "curves": ("curves", work.folder / "curves")}
        return Made(outputs, facts, {**beside, **speed(events)})

    return run.perform(step, work, title)


def _draw(run: Run, step_run: StepRun, told: Curves) -> None:
    """The curves as a picture in the step's MLflow run. A picture that fails stops no training."""
    path = step_run.work.folder / "plots" / "preference.png"
    try:
        from tasks.plots import draw_preference

        draw_preference(told, path, step_run.title)
        run.tracking.client.log_artifact(step_run.mlflow_run_id, str(path), "plots")
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        run.warn(f"{step_run.title}: the plot was not made ({type(error).__name__}: {error})")


def objective(step: Any) -> Digest:
    """What a checkpoint belongs to: settings, data and base model; not the code or the environment."""
    return digest_json({"settings": step.settings, "inputs": {name: str(d) for name, d in step.inputs.items()}})


def _clear(folder: Path) -> None:
    """Drop the output of an attempt that was killed before its step was recorded."""
    shutil.rmtree(folder, ignore_errors=True)
