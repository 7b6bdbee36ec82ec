"""A tiny random Llama with its byte-level tokenizer, made once per session; one torch thread everywhere."""

import os
from pathlib import Path

import pytest

from tests.training.tiny import TEXTS, Tiny, write_data

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Base model, warm-start examples and pairs on disc. Tests read them and never write there."""
    from training.models import new_model, prepare_torch
    from training.settings import NewModel, Profile

    prepare_torch(Profile(threads=1))
    folder = tmp_path_factory.mktemp("tiny")
    settings = NewModel(layers=2, hidden=16, heads=2, vocabulary=300, context=128)
    new_model(settings, 7, TEXTS, folder / "base")
    write_data(folder)
    return Tiny(folder)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for a job's checkpoints and output."""
    return tmp_path
