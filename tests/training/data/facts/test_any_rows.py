"""Whatever rows there are, every maker makes whole columns of them, the same however they are cut into batches."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data.facts.made import batch, sliced
from training.data.facts.base import Maker
from training.data.facts.contamination import Contamination
from training.data.facts.keys import Keys, edges
from training.data.facts.near import Near
from training.data.facts.policy import Policy
from training.data.facts.shortcuts import Shortcuts
from training.data.records import Completion, Message, Record

WORDS = st.lists(
    st.sampled_from(["one", "Two", "drei", "四", "5", "—", "\u00a0", "é" * 9, "x" * 1100]), max_size=50
).map(" ".join)
TEXT = st.one_of(WORDS, st.text(max_size=20))
MESSAGES = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), TEXT), max_size=4).map(tuple)
SCORES = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))
COMPLETIONS = st.lists(
    st.one_of(
        st.builds(Completion, TEXT, score=SCORES, model=st.one_of(st.none(), TEXT)),
        st.builds(Completion, TEXT, rank=st.integers(1, 2**53)),
        st.builds(Completion, TEXT, label=st.booleans()),
    ),
    max_size=5,
).map(tuple)
ROWS = st.lists(st.one_of(st.none(), st.builds(Record, MESSAGES, COMPLETIONS)), max_size=8)


@pytest.fixture(scope="module")
def makers(tmp_path_factory: pytest.TempPathFactory) -> list[Maker]:
    path: Path = tmp_path_factory.mktemp("texts") / "items.jsonl"
    texts = ["one Two drei 四", "one " * 9, "Two drei " * 12, "5"]
    path.write_text("".join(f'{{"benchmark": "b", "item": {i}, "text": "{t}"}}\n' for i, t in enumerate(texts)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return [
        Keys(),
        Near(0.8),
        Near(0.55),
        Contamination(str(path), digest),
        Shortcuts(),
        Policy(("MIT",), "2026-11-21"),
    ]


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(1, 4))
def test_columns_are_whole_and_do_not_depend_on_batches(makers: list[Maker], rows: list[Any], size: int) -> None:
    every = batch(rows)
    for maker in makers:
        maker = pickle.loads(pickle.dumps(maker))  # as a worker process gets it
        whole = maker(every)
        parts = [maker(part) for part in sliced(every, size)]
        assert tuple(whole) == tuple(maker.columns)
        for name, values in whole.items():
            assert len(values) == len(rows) and values.dtype in (np.dtype("float64"), np.dtype("uint64"))
            again = np.concatenate([values[:0], *(part[name] for part in parts)])
            assert np.array_equal(values, again, equal_nan=values.dtype.kind == "f")
    found = edges(every)
    cut = [(start * size + part.row, part.edge_hi) for start, part in enumerate(map(edges, sliced(every, size)))]
    assert found.row.tolist() == [row for rows_, _ in cut for row in rows_.tolist()]
    assert found.edge_hi.tolist() == [edge for _, edges_ in cut for edge in edges_.tolist()]
