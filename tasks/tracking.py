"""MLflow runs: one for a flow run, a child for every step that really ran. Nothing here decides anything.

A flow run that was killed leaves its MLflow run open; the next run of the same experiment goes on in it, so that a
curve is whole and no run stays "running" for ever.
"""

import json
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.curves import rates
from tasks.lineage.step import locked
from tasks.lineage.store import write_atomic
from tasks.server import must_answer
from tasks.workspace import Workspace
from training.digest import Digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS_PER_BATCH = 1000
PARAM_LENGTH = 500
# MLflow's own column for a dataset's digest is 36 characters wide; the whole one stands in a tag.
DATASET_DIGEST_LENGTH = 32


def connect(workspace: Workspace) -> "MlflowClient":
    """A client of the workspace's tracking store; a new database is created once, under a lock.

    Raises ServerFailed where ``MLFLOW_TRACKING_URI`` names a server that does not answer.
    """
    import logging

    from mlflow import MlflowClient

    if workspace.tracking_uri.startswith("http"):
        must_answer("MLFLOW_TRACKING_URI", workspace.tracking_uri)
    for noisy in ("mlflow.store.db.utils", "alembic.runtime.migration"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # their faults are raised as well
    if workspace.embedded_mlflow and not workspace.mlflow_database.exists():
        with locked(workspace.home / "locks" / "mlflow.lock"):
            if not workspace.mlflow_database.exists():
                _create_database(workspace.mlflow_database)
    return MlflowClient(workspace.tracking_uri)


def _create_database(path: Path) -> None:
    """MLflow's tables take seconds to make: a kill on the way must not leave half of them under the final name."""
    from mlflow import MlflowClient

    partial = path.with_name(f".partial-{path.name}")
    for left in path.parent.glob(f"{partial.name}*"):
        left.unlink()
    MlflowClient(f"sqlite:///{partial}").search_experiments(max_results=1)
    with closing(sqlite3.connect(partial)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    partial.replace(path)


class Tracking:
    """The MLflow side of one flow run."""

    def __init__(self, workspace: Workspace, name: str, digest: Digest, flow: str = "align") -> None:
        self.workspace, self.name, self.digest, self.flow = workspace, name, digest, flow
        self.client = connect(workspace)
        self.experiment_id = self._experiment()
        self.goes_on = False  # whether this run was begun by one that was killed
        self.run_id = self._open_run()

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.name)
        if found is None:
            place = (
                (self.workspace.home / "mlartifacts" / self.name).as_uri() if self.workspace.embedded_mlflow else None
            )
            try:
                # The kind opens MLflow's pages for model training, and not those for chat traces.
                tags = {"mlflow.experimentKind": "custom_model_development"}
                return str(self.client.create_experiment(self.name, artifact_location=place, tags=tags))
            except MlflowException:  # another process was faster
                found = self.client.get_experiment_by_name(self.name)
        assert found is not None
        return str(found.experiment_id)

    def _open_run(self) -> str:
        """Go on in the run that a kill left open, else begin one. Other open runs of ours are closed as killed."""
        ours: str | None = None
        left = self.client.search_runs(
            [self.experiment_id], "attributes.status = 'RUNNING' and tags.`alignmill.kind` = 'flow'"
        )
        for run in left:
            if run.data.tags.get("alignmill.workspace") != str(self.workspace.home):
                continue  # another machine's, on the same server: it may well be alive
            theirs = run.data.tags.get("alignmill.flow"), run.data.tags.get("alignmill.experiment_digest")
            if ours is None and theirs == (self.flow, str(self.digest)):
                ours = run.info.run_id
                self.client.set_tag(ours, "alignmill.attempts", int(run.data.tags.get("alignmill.attempts", "1")) + 1)
            else:
                self.client.set_terminated(run.info.run_id, "KILLED")
        if ours is not None:
            self.goes_on = True
            return ours
        tags = {
            "alignmill.kind": "flow",
            "alignmill.flow": self.flow,
            "alignmill.experiment_digest": str(self.digest),
            "alignmill.workspace": str(self.workspace.home),
            "mlflow.runName": " ".join(
                [*([self.flow] if self.flow != "align" else []), self.name, time.strftime("%Y-%m-%d %H:%M:%S")]
            ),
        }
        return str(self.client.create_run(self.experiment_id, tags=tags).info.run_id)

    def close(self, status: str) -> None:
        """``status``: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)

    def params(self, run_id: str, settings: Any) -> None:
        """Settings as flat parameters: ``preference.loss.beta``."""
        from mlflow.entities import Param

        flat = [Param(_mlflow_name(key), value[:PARAM_LENGTH]) for key, value in _flatten(settings) if value]
        for i in range(0, len(flat), 100):
            self.client.log_batch(run_id, params=flat[i : i + 100])

    def metrics(self, run_id: str, values: Mapping[str, float], step: int = 0, millis: int | None = None) -> None:
        self.metric_rows(
            run_id, [(key, value, step, millis or int(time.time() * 1000)) for key, value in values.items()]
        )

    def metric_rows(self, run_id: str, rows: Iterable[tuple[str, float, int, int]]) -> None:
        """(key, value, step, Unix milliseconds), in batches of at most 1,000."""
        from mlflow.entities import Metric

        metrics = [Metric(_mlflow_name(key), float(value), millis, step) for key, value, step, millis in rows]
        for i in range(0, len(metrics), METRICS_PER_BATCH):
            self.client.log_batch(run_id, metrics=metrics[i : i + METRICS_PER_BATCH])

    def dataset(self, run_id: str, name: str, digest: Digest, source: str, context: str) -> None:
        """A dataset input. MLflow's digest column is narrow: the whole digest stands in the input's tags."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        short = digest.value[:DATASET_DIGEST_LENGTH]
        dataset = Dataset(
            name, short, "local", json.dumps({"uri": source}), profile=json.dumps({"digest": str(digest)})
        )
        tags = [InputTag("mlflow.data.context", context), InputTag("alignmill.digest", str(digest))]
        self.client.log_inputs(run_id, [DatasetInput(dataset, tags)])

    @contextmanager
    def step(self, name: str, key: Digest, settings: Any, folder: Path) -> Iterator[str]:
        """A child run for a step; ``folder`` remembers it across a kill, so that its curves go on."""
        memory = folder / "mlflow_run_id"
        run_id = self._remembered(memory)
        if run_id is None:
            tags = {
                "mlflow.parentRunId": self.run_id,
                "mlflow.runName": name,
                "alignmill.kind": "step",
                "alignmill.step_key": str(key),
            }
            run_id = str(self.client.create_run(self.experiment_id, tags=tags).info.run_id)
            write_atomic(memory, json.dumps({"run_id": run_id, "uri": self.workspace.tracking_uri}).encode())
            self.params(run_id, settings)
        try:
            yield run_id
        except BaseException:
            with suppress(Exception):  # the fault itself is what the caller has to see
                self.client.set_terminated(run_id, "FAILED")
            raise
        self.client.set_terminated(run_id, "FINISHED")

    def _remembered(self, memory: Path) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            value = json.loads(memory.read_bytes())
            if value["uri"] != self.workspace.tracking_uri:
                return None
            run = self.client.get_run(value["run_id"])
        except (OSError, ValueError, KeyError, MlflowException):
            return None
        # A step that goes on in a later flow run belongs to that one; the curve stays whole.
        self.client.update_run(run.info.run_id, status="RUNNING")
        self.client.set_tag(run.info.run_id, "mlflow.parentRunId", self.run_id)
        return str(run.info.run_id)


class MetricSink:
    """A job's events as MLflow metrics. Steps that were already sent are left out: a resumed job tells some again."""

    def __init__(self, tracking: Tracking, run_id: str, last_step: int = 0) -> None:
        self.tracking, self.run_id, self.last_step = tracking, run_id, last_step

    def __call__(self, events: list[dict[str, Any]]) -> None:
        rows = []
        for event in events:
            if event["type"] == "metrics" and event.get("step", 0) > self.last_step:
                self.last_step = event["step"]
                values = {**event["metrics"], **rates(event)}
                millis = int(event["time"] * 1000)
                rows += [(key, value, event["step"], millis) for key, value in values.items()]
        if rows:
            self.tracking.metric_rows(self.run_id, rows)


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for i, item in enumerate(value):
            yield from _flatten(item, f"{prefix}.{i}")
    elif value is not None:
        yield prefix or "value", value if isinstance(value, str) else json.dumps(value)


def _mlflow_name(name: str) -> str:
    """MLflow names know few characters and are paths: no ``..``, no leading slash."""
    name = re.sub(r"\.\.+/?|^/+", "", name)
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)
