"""Where everything lives, and the embedded default: Prefect and MLflow inside the workspace, no server, no network."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tasks.lineage.store import Store
from training.strict import Refused

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
PREFECT = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
    "PREFECT_CLI_PROMPT": "false",
}
MLFLOW = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


@dataclass(frozen=True)
class Workspace:
    """The folder of ``ALIGNMILL_HOME`` (default: ``.alignmill`` in the current directory), as an absolute path."""

    home: Path

    @classmethod
    def at(cls, home: str | Path | None = None) -> "Workspace":
        """The workspace's place; nothing is read or written."""
        return cls(Path(home or os.environ.get("ALIGNMILL_HOME") or ".alignmill").expanduser().resolve())

    @property
    def store(self) -> Store:
        return Store(self.home / "store")

    @property
    def reports(self) -> Path:
        return self.home / "reports"

    @property
    def mlflow_database(self) -> Path:
        return self.home / "mlflow.db"

    @property
    def tracking_uri(self) -> str:
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.mlflow_database}"

    @property
    def embedded_mlflow(self) -> bool:
        return self.tracking_uri == f"sqlite:///{self.mlflow_database}"

    def prepare(self) -> None:
        """Make the folders and set the environment of Prefect and MLflow. Call before either is imported.

        Raises Refused where the workspace cannot be written.
        """
        try:
            for folder in (self.home / "store", self.home / "prefect", self.reports, self.home / "mlartifacts"):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.home / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise Refused(
                f"the workspace {self.home} cannot be written ({error.strerror}); set ALIGNMILL_HOME to a folder that you can "
                "write, or mend its permissions"
            ) from error
        self.configure()

    def configure(self) -> None:
        """Set the environment variables of Prefect and MLflow, without touching what is already set."""
        for key, value in (QUIET | PREFECT | MLFLOW | {"PREFECT_HOME": str(self.home / "prefect")}).items():
            os.environ.setdefault(key, value)
        if not os.environ.get("PREFECT_API_URL"):
            os.environ.pop("PREFECT_API_URL", None)
        os.environ["MLFLOW_TRACKING_URI"] = self.tracking_uri
        os.environ.setdefault("MLFLOW_REGISTRY_URI", self.tracking_uri)

    def free_bytes(self) -> int:
        """Free space on the workspace's disk; of its nearest existing parent where it does not exist yet."""
        place = self.home
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free
