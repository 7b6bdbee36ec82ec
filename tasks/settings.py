"""The settings of the registry and of a comparison."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from training.settings import PreferenceSettings
from training.strict import Settings

# What the other columns of a comparison's table are called.
TAKEN = ("base", "warm_start", "policy", "champion")


class RegistrySettings(Settings):
    """The registered model that receives a version per run; aliases ``challenger`` and ``champion`` point into it."""

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$", max_length=200)]


class Candidate(PreferenceSettings):
    """One column of ``alignmill compare``: complete preference settings, because one loss's beta is not another's tau.

    ``label`` names it (else the loss's own name does) and is no part of what is trained.
    """

    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=32)] | None = None

    @model_validator(mode="after")
    def _free(self) -> Self:
        if self.label in TAKEN:
            raise ValueError(f"the label {self.label!r} is taken; {', '.join(TAKEN)} name other models")
        return self

    @property
    def name(self) -> str:
        return self.label or self.loss.name

    @property
    def settings(self) -> PreferenceSettings:
        """What a preference step reads. Law: equal to a ``preference`` section that says the same."""
        return PreferenceSettings(**{name: getattr(self, name) for name in PreferenceSettings.model_fields})
