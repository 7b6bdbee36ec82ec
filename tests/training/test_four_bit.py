"""4-bit base weights for adapters: what is trained, what the reference is, and what is merged."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny import TEXTS, Tiny, job, preference_settings, profile, write_data
from training import preference
from training.models import load_model, new_model
from training.settings import LoRA, NewModel
from training.strict import Refused

LORA = LoRA(rank=2, alpha=4.0, bits=4)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """bitsandbytes packs weights in blocks of 64: a model whose matrices are multiples of it."""
    folder = tmp_path_factory.mktemp("wide")
    new_model(NewModel(layers=1, hidden=192, heads=2, vocabulary=300, context=128), 7, TEXTS, folder / "base")
    write_data(folder)
    return Tiny(folder)


@pytest.mark.filterwarnings("ignore")
def test_adapters_train_on_four_bits_and_are_merged_into_the_whole_weights(wide: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    events: list[dict[str, Any]] = []
    preference.run(job(wide, preference_settings(4, LORA), tmp_path, "policy"), events.append)
    losses = [event["metrics"]["loss"] for event in events if event["type"] == "metrics"]
    # The reference is the 4-bit model too, so that the first log-ratios are zero and not the rounding to 4 bits.
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5) and losses[-1] < losses[0]
    before, after = load_model(wide.base).state_dict(), load_model(tmp_path / "policy").state_dict()
    assert before.keys() == after.keys()
    moved = {name: (after[name] - before[name]) for name in before if not torch.equal(after[name], before[name])}
    assert moved and all("proj" in name for name in moved)
    for name, difference in moved.items():  # an update of rank 2 on the weights as they were, and no rounding to 4 bits
        values = torch.linalg.svdvals(difference)
        assert float(values[2:].max()) < 1e-5 * float(values[0]), name


def test_without_bitsandbytes_four_bits_are_refused(wide: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match="needs bitsandbytes, which is not installed: pip install"):
        load_model(wide.base, profile(), LORA)
