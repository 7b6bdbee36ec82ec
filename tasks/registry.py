"""The MLflow registry: versions with the digests of what they are, aliases ``challenger`` and ``champion``."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.lineage.closure import packages
from tasks.lineage.store import Artifact
from tasks.tracking import Tracking
from training.digest import Digest

CHALLENGER, CHAMPION = "challenger", "champion"
NOBODY = "nobody"


@dataclass(frozen=True)
class Version:
    """A registered version. ``weights`` and ``judged_against`` are None where the version was made elsewhere."""

    model: str
    number: int
    weights: Digest | None
    judged_against: Digest | None
    decision: Digest | None
    accepted: bool
    promoted: str | None
    experiment: str | None

    @classmethod
    def of(cls, version: Any) -> "Version":
        tags = version.tags or {}

        def digest(tag: str) -> Digest | None:
            try:
                return Digest.parse(tags.get(tag, ""))
            except ValueError:
                return None

        return cls(
            version.name,
            int(version.version),
            digest("alignmill.weights"),
            digest("alignmill.judged_against"),
            digest("alignmill.decision"),
            tags.get("alignmill.accepted") == "true",
            tags.get("alignmill.promoted"),
            tags.get("alignmill.experiment"),
        )


class Registry:
    """Versions of one registered model."""

    def __init__(self, client: Any, model: str) -> None:
        self.client, self.model = client, model

    def versions(self) -> list[Version]:
        """All versions, oldest first."""
        found = self.client.search_model_versions(f"name = '{self.model}'", max_results=10_000)
        return sorted((Version.of(version) for version in found), key=lambda version: version.number)

    def alias(self, alias: str) -> Version | None:
        """The version behind an alias, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return Version.of(self.client.get_model_version_by_alias(self.model, alias))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def set_alias(self, alias: str, version: Version) -> None:
        self.client.set_registered_model_alias(self.model, alias, str(version.number))

    def mark_promoted(self, version: Version) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.client.set_model_version_tag(self.model, str(version.number), "alignmill.promoted", stamp)

    def register(self, tracking: Tracking, policy: Artifact, tags: Mapping[str, str], description: str) -> Version:
        """A new version of the model from the policy's files, with its tags from the first moment on."""
        from mlflow.exceptions import MlflowException

        info = _log_model(tracking, policy)
        try:
            self.client.create_registered_model(self.model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self.client.create_model_version(
            self.model,
            info.model_uri,
            tracking.run_id,
            tags=dict(tags),
            description=description,
            model_id=info.model_id,
        )
        return Version.of(self.client.get_model_version(self.model, version.version))


def _log_model(tracking: Tracking, policy: Artifact) -> Any:
    """A logged model in MLflow's transformers flavour: safetensors, signature, requirements; no pickle."""
    import mlflow
    import mlflow.transformers
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    from training.models import load_model, load_tokenizer

    text = Schema([ColSpec(DataType.string)])
    versions = packages("torch", "transformers", "accelerate")
    needs = [f"{name}=={version.partition('+')[0]}" for name, version in versions.items() if name != "python"]
    mlflow.set_tracking_uri(tracking.workspace.tracking_uri)
    with _quiet(), mlflow.start_run(run_id=tracking.run_id):
        return mlflow.transformers.log_model(
            {"model": load_model(policy.path), "tokenizer": load_tokenizer(policy.path)},
            name="policy",
            task="text-generation",
            signature=ModelSignature(inputs=text, outputs=text),
            pip_requirements=needs,
            metadata={"alignmill.weights": str(policy.digest)},
        )


def _quiet() -> Any:
    """MLflow warns at length about what is meant here; a fault still raises."""
    import contextlib
    import io
    import logging
    import warnings

    @contextlib.contextmanager
    def muted() -> Any:
        logger = logging.getLogger("mlflow")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                yield
        finally:
            logger.setLevel(level)

    return muted()
