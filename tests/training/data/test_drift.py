"""Drift between snapshots, by the formula worked by hand."""

import json
import math

import numpy as np
import pytest

from training.data.drift import added, counted, drift, grades, histograms, lengths, stability


def test_the_index_is_that_of_the_formula() -> None:
    # Two kinds, 9 and 1 now, 5 and 5 before; with one half added: (9.5, 1.5) / 11 and (5.5, 5.5) / 11.
    p, q = (9.5 / 11, 1.5 / 11), (0.5, 0.5)
    expected = (p[0] - q[0]) * math.log(p[0] / q[0]) + (p[1] - q[1]) * math.log(p[1] / q[1])
    assert stability({"a": 9, "b": 1}, {"a": 5, "b": 5}) == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(4 / 11 * math.log(9.5 / 1.5))
    assert stability({"a": 5, "b": 5}, {"b": 1, "a": 9}) == pytest.approx(expected, rel=1e-12)


def test_the_same_mix_has_not_moved_whatever_its_size() -> None:
    assert stability({"a": 3, "b": 4}, {"b": 4, "a": 3}) == 0
    assert stability({"a": 30_000, "b": 10_000}, {"a": 300_000, "b": 100_000}) < 1e-6


def test_a_kind_that_is_new_or_gone_counts_and_is_finite() -> None:
    new = stability({"a": 90, "b": 10}, {"a": 100})
    assert 0.25 < new < math.inf
    assert stability({"a": 100}, {"a": 90, "b": 10}) == pytest.approx(new)
    assert stability({"a": 100}, {"b": 100}) > 5


def test_lengths_double_from_kind_to_kind() -> None:
    characters = np.array([0, 1, 2, 3, 4, 7, 8, 1023, 1024, np.nan])
    assert lengths(characters) == {"0": 1, "1": 1, "2": 2, "3": 2, "4": 1, "10": 1, "11": 1}


def test_grades_are_counted_in_tenths_then_whole_numbers_then_powers() -> None:
    chosen = np.array([0.51, 0.54, 1, np.nan, 100, -0.0, 7.2, 6.8])
    assert grades(chosen, np.array([-1.0, np.nan, -20, 0.02, np.nan, np.nan])) == {
        **{"chosen 0.5": 2, "chosen 1": 1, "chosen from 64": 1, "chosen 0": 1, "chosen 7": 2},
        **{"rejected -1": 1, "rejected from -16": 1, "rejected 0": 1},
    }


def test_what_is_not_known_is_not_counted() -> None:
    assert counted(["de", None, "en", "de", math.nan, 3, 3.0]) == {"de": 2, "en": 1, "3": 2}


def test_every_part_of_a_snapshot_is_compared() -> None:
    before = histograms(100, np.full(100, 50.0), source={"a": 100}, label={"true": 50, "false": 50})
    now = histograms(200, np.full(200, 5000.0), source={"a": 100, "b": 100}, label={"true": 100, "false": 100})
    found = drift(now, json.loads(json.dumps(before)))
    assert set(found) == {"rows", "length", "source", "label"}
    assert found["rows"] == pytest.approx(math.log(2))
    assert found["length"] > 5 and found["source"] > 0.25 and found["label"] == pytest.approx(0, abs=1e-9)
    assert drift(now, now) == {"rows": 0, "length": 0, "source": 0, "label": 0}


def test_what_one_of_two_snapshots_has_not_counted_is_left_out() -> None:
    one = histograms(3, np.array([1.0, 2, 3]), language={"en": 3})
    other = histograms(3, np.full(3, np.nan), language={}, source={"a": 3})
    assert drift(one, other) == {"rows": 0.0}


def test_rows_from_and_to_nothing() -> None:
    none, some = histograms(0, np.zeros(0)), histograms(4, np.ones(4))
    assert drift(none, none) == {"rows": 0}
    assert drift(some, none) == drift(none, some) == {"rows": math.inf}
    assert drift(some, histograms(8, np.ones(8)))["rows"] == pytest.approx(math.log(2))


def test_the_histograms_of_parts_add_up() -> None:
    characters = np.array([1.0, 5, 9, 100, np.nan])
    parts = [
        histograms(2, characters[:2], source={"a": 2}),
        histograms(3, characters[2:], source={"b": 3}, language={"en": 1}),
    ]
    whole = histograms(5, characters, source={"a": 2, "b": 3}, language={"en": 1})
    assert added(*parts) == added(*reversed(parts)) == whole
