"""Mutated sources of every kind: refused in one message, or every line accounted for, in bounded memory and time.

The sources are made from seeds in ``mutated`` and read in a child process with limits. ``make test`` reads some hundreds, the
``soak`` marker 20,000. Besides, hypothesis looks for lines and bytes that break what the seeds don't.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.data.mutated import FORMS, VALUES
from tests.training.data.test_sources import lines
from training.data.records import Record
from training.data.sources import Unreadable
from training.strict import Refused

ROOT = Path(__file__).resolve().parents[3]


def told(folder: Path, first: int, count: int) -> dict[str, Any]:
    """What a child process says of the sources of these seeds."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.training.data.fuzzing", str(folder), str(first), str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def holds(found: dict[str, Any], count: int) -> None:
    assert sum(value for name, value in found.items() if name.endswith(" sources")) == count
    assert found["bomb refused"] == found["bomb sources"] and found["columns refused"] == found["columns sources"]
    # The mutations reach deep enough to say something: much is read, and much is not.
    assert count * 0.2 < found["refused"] < count * 0.8
    assert found["records"] > count and found["unreadable"] > count
    assert found["most_mib"] < 1000 and found["slowest_seconds"] < 60, found


def test_some_hundred_mutated_sources(tmp_path: Path) -> None:
    holds(told(tmp_path, 0, 400), 400)


@pytest.mark.soak
def test_twenty_thousand_mutated_sources(tmp_path: Path) -> None:
    for first in range(0, 20_000, 4000):
        found = told(tmp_path / str(first), first, 4000)
        print(f"seeds {first} to {first + 3999}: {found}")
        holds(found, 4000)


ODD = (
    st.sampled_from([value for value in VALUES if value != "\ud800"])
    | st.text(max_size=4)
    | st.floats()
    | st.integers()
)
COLUMNS = st.sampled_from(sorted({name for form in FORMS for name in form} | {"weight", "license", "purpose", "x"}))
MIXED = st.lists(
    st.dictionaries(COLUMNS, st.recursive(ODD, lambda inner: st.lists(inner, max_size=3), max_leaves=4), max_size=6)
    | st.sampled_from(FORMS)
    | ODD,
    max_size=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FORMS), MIXED)
def test_rows_of_any_forms_and_types_are_accounted_for(tmp_path: Path, form: dict[str, Any], rows: list[Any]) -> None:
    data = "".join(json.dumps(row) + "\n" for row in [form] * 10 + rows).encode()
    found = lines(tmp_path, data)
    assert len(found) == 10 + len(rows) and all(isinstance(line.content, Record) for line in found[:10])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MIXED, st.booleans())
def test_lists_of_any_forms_and_types_are_accounted_for(tmp_path: Path, rows: list[Any], indent: bool) -> None:
    data = json.dumps([FORMS[0], *rows], indent=1 if indent else None).encode()
    try:
        found = lines(tmp_path, data)
    except Refused as refusal:
        assert "not one line" in str(refusal)
        return
    assert len(found) == 1 + len(rows) and all(isinstance(line.content, Record | Unreadable) for line in found)
