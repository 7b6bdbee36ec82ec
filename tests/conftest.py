"""Settings of all tests: the same examples every time, and no time limit on one (machines are shared)."""

import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("alignmill", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("alignmill")


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """A training job that runs in this process has the processor take denormal numbers for 0; the next test has not."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
