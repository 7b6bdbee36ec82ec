"""The settings of the registry."""

from typing import Annotated

from pydantic import Field

from training.settings import Settings


class RegistrySettings(Settings):
    """The registered model that receives a version per run; aliases ``challenger`` and ``champion`` point into it."""

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$", max_length=200)]
