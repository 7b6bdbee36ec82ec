"""The steps as Prefect tasks: each a thin coat around a plain function. A reused step shows as ``Cached``.

Prefect's own cache stays off: the step key decides what is reused, and the manifest is the evidence.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from tasks import benchmarks, data, models, promotion, validation

P = ParamSpec("P")
R = TypeVar("R")


def as_task(name: str, function: Callable[P, R]) -> Callable[P, R]:
    """``function`` as a Prefect task that reports a reused result by the state ``Cached``."""

    @wraps(function)
    def body(*arguments: Any, **named: Any) -> Any:
        outcome = cast("Callable[..., Any]", function)(*arguments, **named)
        if getattr(outcome, "cached", False):
            return Completed(name="Cached", message="reused: nothing it depends on has changed", data=outcome)
        return outcome

    prefect_task = task(name=name, cache_policy=NO_CACHE, persist_result=False)(body)

    @wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        state = cast("Any", prefect_task)(*arguments, **named, return_state=True)
        return cast("R", state.result())

    return call


snapshot_data = as_task("snapshot", data.snapshot_data)
write_texts = as_task("benchmark texts", validation.write_texts)
validate_data = as_task("validate", validation.validate_data)
prepare_base = as_task("base model", models.prepare_base)
train_warm_start = as_task("SFT warm start", models.train_warm_start)
optimize_preferences = as_task("preference optimization", models.optimize_preferences)
run_benchmarks = as_task("benchmarks", benchmarks.run_benchmarks)
decide_promotion = as_task("gate", promotion.decide_promotion)
register_version = as_task("register", promotion.register_version)
promote_version = as_task("promote", promotion.promote_version)
