"""What all sections of settings have in common, and the one exception for input that will not do."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1, description="a share between 0 and 1")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Refused(ValueError):
    """The input or the settings are not acceptable; the message says what, where, found, allowed, next move."""

    exit_code = 2


class Settings(BaseModel):
    """A section that is immutable and knows every key it accepts."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
