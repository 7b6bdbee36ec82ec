"""Numbers about shortcuts of a whole part."""

import math

import numpy as np
import pytest

from training.data.shortcuts import first_token, label_balance, longer_chosen, one_model_chosen

NAN = math.nan


def hashes(*values: int) -> np.ndarray:
    return np.array(values, "uint64")


def test_longer_is_a_share_of_the_rows_that_differ() -> None:
    assert longer_chosen(np.array([1, 1, 0, NAN, 1])) == 0.75
    assert math.isnan(longer_chosen(np.array([NAN])))


def test_one_model_has_to_be_the_same_in_all_rows() -> None:
    # Of five rows that name both models, model 7 wins three against another one and once against itself.
    assert one_model_chosen(hashes(7, 7, 7, 7, 8, 7, 0), hashes(1, 2, 3, 7, 7, 0, 1)) == 3 / 5
    assert one_model_chosen(hashes(1, 2, 3, 4), hashes(9, 9, 9, 9)) == 0.25
    assert one_model_chosen(hashes(1, 1), hashes(1, 1)) == 0
    assert math.isnan(one_model_chosen(hashes(1, 0), hashes(0, 0)))


def test_a_first_word_that_gives_the_label_away_is_told() -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 2**63, 2000, "uint64")
    other = rng.integers(10, 30, 2000, "uint64")
    again = rng.integers(10, 30, 2000, "uint64")
    assert first_token(np.full(2000, 5, "uint64"), other, ids) == 1.0
    assert first_token(other, np.full(2000, 5, "uint64"), ids) == 1.0
    assert first_token(other, again, ids) == pytest.approx(0.5, abs=0.05)
    # In nine of ten rows, of which the tenth is a coin: 0.9 + 0.05.
    some = np.where(rng.random(2000) < 0.9, np.uint64(5), other)
    assert first_token(some, again, ids) == pytest.approx(0.95, abs=0.03)


def test_words_that_stand_there_once_are_no_evidence() -> None:
    ids = np.random.default_rng(2).integers(0, 2**63, 500, "uint64")
    chosen, rejected = np.arange(1, 501, dtype="uint64"), np.arange(501, 1001, dtype="uint64")
    assert first_token(chosen, rejected, ids) == 0.5  # without the halves it would be 1


def test_labels_of_single_completions_are_judged_alone_and_weigh_the_same() -> None:
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 2**63, 3000, "uint64")
    good = rng.random(3000) < 0.9
    told = np.where(good, np.uint64(5), np.uint64(6))
    same = rng.integers(10, 14, 3000, "uint64")
    zero = np.zeros(3000, "uint64")
    assert first_token(np.where(good, told, zero), np.where(good, zero, told), ids) == 1.0
    # "Always desirable" is right in nine of ten rows and tells nothing.
    assert first_token(np.where(good, same, zero), np.where(good, zero, same), ids) == pytest.approx(0.5, abs=0.08)
    assert first_token(told, zero, ids) == 0.5  # one label only
    assert math.isnan(first_token(zero, zero, ids))


def test_label_balance_is_the_share_of_the_rarer_label() -> None:
    assert label_balance(np.array([1, 2, NAN, 1]), np.array([1, 0, NAN, 0])) == 0.25
    assert label_balance(np.array([4.0]), np.array([4.0])) == 0
    assert math.isnan(label_balance(np.array([NAN, 0]), np.array([NAN, 0])))
