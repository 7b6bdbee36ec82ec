"""When to stop early: the held-out margin, the best one so far, and how long ago it was."""

import math
from typing import Any

from training.settings import EarlyStop


class Patience:
    """``best`` is the largest margin in nats (None before the first), ``at`` the steps done then, ``waited`` the
    evaluations since. Without settings it never asks and never stops."""

    def __init__(self, settings: EarlyStop | None, state: dict[str, Any] | None = None) -> None:
        self.settings = settings
        state = state or {}
        self.best: float | None = state.get("best")
        self.at: int | None = state.get("at")
        self.waited: int = state.get("waited", 0)

    def asks(self, step: int, steps: int) -> bool:
        """Whether the policy is to be judged after ``step`` of ``steps`` steps."""
        return self.settings is not None and (step % self.settings.every == 0 or step == steps)

    def hears(self, step: int, margin: float) -> bool:
        """Take note of a margin; True where it is a new best one."""
        assert self.settings is not None
        better = math.isfinite(margin) and (self.best is None or margin > self.best + self.settings.min_gain)
        if better:
            self.best, self.at, self.waited = margin, step, 0
        else:
            self.waited += 1
        return better

    @property
    def over(self) -> bool:
        return self.settings is not None and self.waited >= self.settings.patience

    def as_json(self) -> dict[str, Any]:
        return {"best": self.best, "at": self.at, "waited": self.waited}
