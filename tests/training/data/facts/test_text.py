"""Characters that no text should hold, and repetition, worked by hand."""

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.data.facts.rows import batch, pair
from training.data.facts.text import Text, looped, repeated_lines, repetition
from training.data.records import Record


def facts(*records: Record | None) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in Text()(batch(records)).items()}


def test_bad_characters_are_counted_over_all_texts_of_a_row() -> None:
    found = facts(pair("a\x00", "b\x9b\x1b[0m", "c\ufffd\ufffd"), pair("a\tb\r\n", "c", "é\u2028"), None)
    assert found["control_characters"][:2] == [3, 0] and math.isnan(found["control_characters"][2])
    assert found["replacement_characters"][:2] == [2, 0] and math.isnan(found["replacement_characters"][2])
    assert found["repeated_lines"][:2] == [0, 0] and math.isnan(found["repeated_lines"][2])


def test_an_empty_batch_has_empty_columns() -> None:
    assert facts() == {name: [] for name in Text().columns}


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=6), min_size=3, max_size=3))
def test_control_characters_are_those_of_the_category_but_three(texts: list[str]) -> None:
    expected = sum(unicodedata.category(c) == "Cc" and c not in "\t\n\r" for text in texts for c in text)
    assert facts(pair(*texts))["control_characters"] == [expected]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("a\nb\nc\nd", 0),
        ("a\na\na\nb", 2 / 4),
        ("a\n a \r\n\n\na\nb\n", 2 / 4),  # empty lines don't count, white space around a line neither
        ("a\na\na", 0),  # three lines say nothing
        ("x\n" * 10, 9 / 10),
        ("", 0),
    ],
)
def test_the_share_of_repeated_lines(text: str, share: float) -> None:
    assert repeated_lines(text) == pytest.approx(share)
    assert facts(pair("q", text, "b"))["repeated_lines"] == [pytest.approx(share)]


def test_the_worst_text_of_a_row_counts() -> None:
    assert facts(pair("a\na\nb\nc", "x\nx\nx\nx", "z"))["repeated_lines"] == [3 / 4]


def test_a_phrase_without_end_is_repetition() -> None:
    # 7 letters, 50 times, without the last space: 349 letters are 49 whole rounds, of which 48 repeat the first
    assert looped("no way " * 50) == 48 * 7 / 349
    start = "The answer is as follows, and then I would add a sentence of another kind. "
    assert 0.8 < looped(start + "I am sorry about that. " * 20) < 0.87
    assert looped(start + "I am sorry about that. " * 20 + "I am so") > 0.8  # cut in the middle
    assert facts(pair("q", "no way " * 50, "b"))["repeated_lines"][0] > 0.9
    assert repetition("ab" * 400) > 0.9


def test_what_is_said_three_times_or_in_few_words_is_no_loop() -> None:
    assert looped("I am sorry about that. " * 3) == 0
    assert looped("no " * 20) == 0  # 60 characters
    text = " ".join(f"Sentence {number} differs from the others, as sentences do." for number in range(40))
    assert looped(text) == 0


@given(st.text(max_size=400))
def test_repetition_is_a_share(text: str) -> None:
    assert 0 <= repetition(text) < 1
