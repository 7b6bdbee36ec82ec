"""Settings of all tests: the same examples every time, and no time limit on one (machines are shared)."""

from hypothesis import HealthCheck, settings

settings.register_profile("alignmill", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("alignmill")
