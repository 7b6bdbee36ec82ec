"""One execution of an experiment: what every task needs, and the one way in which a step is performed."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.console import Console
from tasks.jobs import EventReader, Job, run_job
from tasks.lineage.closure import code_digest, packages
from tasks.lineage.step import Made, Step, StepResult, Work, find, locked, perform
from tasks.tracking import MetricSink, Tracking
from tasks.workspace import Workspace
from training.digest import Digest
from training.settings import Profile

DATA_PACKAGES = (
    *("pyarrow", "pandas", "numpy", "orjson", "great_expectations"),
    *("rensa", "phonenumbers", "python-stdnum", "py3langid", "tokenizers"),
)
TRAINING_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "peft", "numpy")
BENCHMARK_PACKAGES = (*TRAINING_PACKAGES, "lm_eval", "datasets")


class AlreadyRunning(RuntimeError):
    """Another process runs this experiment in this workspace."""


@dataclass
class Context:
    """What a step's key is made of. ``root`` is the experiment file's folder; ``seed`` the experiment's."""

    name: str
    digest: Digest
    seed: int
    root: Path
    profile: Profile
    workspace: Workspace

    def step(
        self,
        name: str,
        settings: Any,
        inputs: Mapping[str, Digest],
        modules: tuple[str, ...],
        libraries: tuple[str, ...],
        environment: Mapping[str, Any] | None = None,
    ) -> Step:
        """A step that reads ``settings`` and ``inputs``, runs the sources of ``modules`` and uses ``libraries``."""
        return Step(name, settings, inputs, code_digest(*modules), {**packages(*libraries), **(environment or {})})

    def find(self, step: Step) -> StepResult | None:
        """The recorded result of a step, or None."""
        return find(self.workspace.store, step, self.warn)

    def warn(self, text: str) -> None:
        """Tell a person about something that is mended but should not have been."""

    @property
    def compute(self) -> dict[str, Any]:
        """What of the profile can change the bits that training and evaluation produce."""
        return {
            "device": self.profile.device,
            "dtype": self.profile.dtype,
            "world_size": self.profile.processes,
            "strategy": self.profile.strategy,
            "activation_checkpointing": self.profile.activation_checkpointing,
            "layout": self.profile.layout,
            "threads": self.profile.threads,
            "token_budget": self.profile.token_budget,
        }


@dataclass
class Run(Context):
    """One execution: a context with a console, an MLflow run, and the steps done so far."""

    tracking: Tracking
    console: Console
    done: list[StepResult] = field(default_factory=list)

    def warn(self, text: str) -> None:
        self.console.warn(text)

    def perform(self, step: Step, function: Callable[[Work, "StepRun"], Made], title: str = "") -> StepResult:
        """Skip or run a step; tell the console and MLflow what happened, under ``title`` where the name is not enough."""
        title = title or step.name

        def work(work: Work) -> Made:
            with (
                self.tracking.step(title, step.key, step.as_json(), work.folder) as run_id,
                self.console.step(title),
            ):
                made = function(work, StepRun(self, step, work, run_id, title))
                self.tracking.client.log_dict(run_id, dict(made.facts), "facts.json")
                numbers = {key: value for key, value in made.facts.items() if isinstance(value, int | float)}
                self.tracking.metrics(run_id, numbers)
            return Made(made.outputs, made.facts, {**made.extra, "mlflow_run_id": run_id})

        result = perform(self.workspace.store, step, work, self.warn)
        self.done.append(result)
        if result.cached:
            self.console.say(f"{title}: cached", "dim")
        else:
            self.console.say(f"{title}: done in {result.seconds:.1f} s")
        return result

    def record(self, step: Step, outputs: Mapping[str, tuple[str, Path]]) -> StepResult:
        """Record a step whose work was done inside another one."""
        return perform(self.workspace.store, step, lambda work: Made(outputs), self.warn)


@contextmanager
def open_run(
    name: str,
    digest: Digest,
    seed: int,
    root: Path,
    profile: Profile,
    settings: Mapping[str, Any],
    flow_run_id: str,
    log: Callable[[str], None],
    flow: str = "align",
) -> Iterator[Run]:
    """Take the experiment's lock, open the workspace and the MLflow run, and close both as the block ends.

    What the console says is handed to ``log`` too. Raises AlreadyRunning, and Refused where the workspace cannot be written.
    """
    workspace = Workspace.at()
    workspace.prepare()
    console = Console(log)
    with only_run(workspace, name):
        tracking = Tracking(workspace, name, digest, flow)
        tracking.client.set_tag(tracking.run_id, "alignmill.flow_run_id", flow_run_id)
        tracking.params(tracking.run_id, {**settings, "profile": profile.model_dump(mode="json")})
        try:
            yield Run(name, digest, seed, root, profile, workspace, tracking, console)
        except BaseException as error:
            with suppress(Exception):  # the fault itself is what the caller has to see
                tracking.client.set_tag(tracking.run_id, "alignmill.error", str(error)[:5000])
                tracking.close("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
            raise
        tracking.close("FINISHED")


@dataclass(frozen=True)
class StepRun:
    """A step that is really running: its work folder and its MLflow run; ``title`` is what a person is told."""

    run: Run
    step: Step
    work: Work
    mlflow_run_id: str
    title: str

    def job(
        self,
        module: str,
        payload: dict[str, Any],
        minutes: float,
        online: bool = False,
        folder: str = "job",
        processes: int = 1,
    ) -> dict[str, Any]:
        """Run a child process (of several ``processes``) for this step, in a folder of its own; the facts that it logged."""
        run = self.run
        (self.work.folder / folder).mkdir(exist_ok=True)
        job = Job(
            module,
            {"profile": run.profile.model_dump_json(), "seed": run.seed, **payload},
            self.work.folder / folder,
            minutes,
            self.work.lock,
            run.profile.threads,
            online,
            processes,
        )
        told = EventReader(job.events, job.folder / "events.offset").delivered()
        last = max((event["step"] for event in told if event["type"] == "metrics" and "step" in event), default=0)
        sink = MetricSink(run.tracking, self.mlflow_run_id, last)

        def deliver(events: list[dict[str, Any]]) -> None:
            sink(events)
            for event in events:
                self._show(event)

        return run_job(job, deliver)

    def events(self, folder: str = "job") -> list[dict[str, Any]]:
        """All that the job in ``folder`` has told so far, in all attempts, in order."""
        place = self.work.folder / folder
        return EventReader(place / "events.jsonl", place / "events.offset").delivered()

    def _show(self, event: dict[str, Any]) -> None:
        console, name = self.run.console, self.title
        match event["type"]:
            case "metrics" if "total" in event:
                shown = {k: event["metrics"][k] for k in ("loss", "rewards/accuracies") if k in event["metrics"]}
                note = "  ".join(f"{key} {value:.3f}" for key, value in shown.items())
                console.progress(name, event["step"], event["total"], note)
            case "progress":
                console.progress(name, event["done"], event["total"], event.get("message", ""))
            case "milestone":
                console.say(f"{name}: {event['message']}")


@contextmanager
def only_run(workspace: Workspace, name: str) -> Iterator[None]:
    """Keep a second run of the same experiment out of the workspace. Raises AlreadyRunning, which names the first."""
    path = workspace.home / "locks" / f"experiment-{name}.lock"
    note = path.parent / f"experiment-{name}.json"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, wait=False))
        except BlockingIOError as error:
            raise AlreadyRunning(
                f"experiment {name!r} is already being run {_holder(note)} in {workspace.home}; wait for it or stop it, "
                "then run again"
            ) from error
        note.write_text(json.dumps({"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}))
        yield


def _holder(note: Path) -> str:
    try:
        holder = json.loads(note.read_text())
        return f"by process {holder['pid']} since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "by another process"
