"""What of the profile changes how a model is trained in one process; several are in test_processes.py."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny import LORA, Stopped, stop_at
from tests.training.workers import (
    Events,
    Likelihood,
    Log,
    ignore,
    policy,
    profile,
    rows,
    same,
    settings,
    told,
    trained,
    weights,
)
from training.loop import train
from training.strict import Refused


def test_activation_checkpointing_changes_no_bit(root: Path) -> None:
    def run(asked: bool) -> dict[str, Any]:
        objective = Likelihood(rows(), 3)
        model = policy(lora=LORA.model_copy(update={"dropout": 0.2}))
        chosen = profile(activation_checkpointing=asked)
        result = train(model, objective, settings(3), chosen, 3, "x", root / str(asked), ignore)
        assert result.model.is_gradient_checkpointing == asked
        return weights(result)

    assert same(run(True), run(False))


def test_a_model_that_cannot_compute_activations_again_is_refused(root: Path) -> None:
    model = policy()
    type(model.model).supports_gradient_checkpointing = False
    try:
        with pytest.raises(Refused, match="activation_checkpointing: this model does not support it"):
            train(model, Likelihood(rows(), 3), settings(3),
                  profile(activation_checkpointing=True), 3, "x", root, ignore)  # fmt: skip
    finally:
        type(model.model).supports_gradient_checkpointing = True


@pytest.mark.parametrize("dtype", ["bfloat16", "pure-bfloat16"])
def test_bfloat16_trains_resumes_and_is_what_it_says(root: Path, dtype: Any) -> None:
    def run(folder: str, log: Log) -> Any:
        model = policy()
        model = model.to(torch.bfloat16) if dtype == "pure-bfloat16" else model
        objective = Likelihood(rows(), 4)
        return train(model, objective, settings(4), profile(dtype=dtype), 3, "x", root / folder, log)

    events: Events = []
    quiet = run("quiet", events.append)
    with pytest.raises(Stopped):
        run("killed", stop_at(3, []))
    assert same(weights(run("killed", ignore)), weights(quiet))
    wanted = torch.float32 if dtype == "bfloat16" else torch.bfloat16
    assert {value.dtype for value in quiet.parameters()} == {wanted}
    exact: Events = []
    trained(root / "exact", exact.append, Likelihood(rows(), 1), settings(1))
    (first, *_), (expected, *_) = told(events, "metrics"), told(exact, "metrics")
    assert 1e-6 < abs(first["metrics"]["loss"] - expected["metrics"]["loss"]) < 0.05
    assert quiet(rows()[:2])[0].dtype == torch.float32  # and the forward pass is as it was: autocast is gone
    assert "forward" not in vars(quiet)
