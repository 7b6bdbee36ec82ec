"""Words and n-grams as hashes, against the same in plain Python."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data.facts.made import batch, pair
from training.data.facts import words as subject
from training.data.facts.words import Words, ngrams, whole, words, words_of

M = (1 << 64) - 1
GRAM = 0xD1342543DE82EF95


def splitmix(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & M
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M
    return z ^ (z >> 31)


def naive_hash(word: bytes) -> int:
    value = 0
    for place in range(0, len(word), 8):
        value = splitmix(value ^ int.from_bytes(word[place : place + 8], "little"))
    return value


def separates(char: str) -> bool:
    code = ord(char)
    if code < 0x80:
        return not char.isalnum()
    ranges = [(0x80, 0xBF), (0x2000, 0x206F), (0x3000, 0x3004), (0x3008, 0x3020), (0x30FB, 0x30FB), (0xFEFF, 0xFEFF)]
    ranges += [(0xFF01, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF65)]
    return any(low <= code <= high for low, high in ranges)


def naive_words(text: str) -> list[bytes]:
    found, run = [], b""
    for char in [*text, " "]:
        alone = not separates(char) and 0x3000 <= ord(char) < 0xE000
        if separates(char) or alone:
            found += [run[place : place + 1024] for place in range(0, len(run), 1024)]
            run = b""
        if alone:
            found.append(char.encode())
        elif not separates(char):
            run += (char.lower() if char.isascii() else char).encode()
    return found


def split(found: Words) -> list[list[int]]:
    return [found.hashes[low:high].tolist() for low, high in zip(found.offsets[:-1], found.offsets[1:], strict=True)]


def test_hashes_never_change() -> None:
    found = words(["Hello, world", "", "naïve 東京x internationalisation"])
    assert split(found) == [
        [naive_hash(b"hello"), naive_hash(b"world")],
        [],
        [naive_hash("naïve".encode()), *map(naive_hash, ("東".encode(), "京".encode(), b"x", b"internationalisation"))],
    ]
    # The numbers themselves: facts that were stored long ago are compared by them.
    assert found.hashes[:2].tolist() == PINNED_WORDS
    assert ngrams(words(["one two three four five six"]), 5).hashes.tolist() == PINNED_GRAMS
    assert whole(words(["one two three"])).tolist() == PINNED_WHOLE


PINNED_WORDS = [13627897860194927673, 15695083511567688181]
PINNED_GRAMS = [9968362808531378585, 18159796924584857405]
PINNED_WHOLE = [8247569058731382672]


def test_case_and_punctuation_do_not_count() -> None:
    plain = split(words(["do not stop it s late"]))
    assert split(words(["“Do not” — STOP! It\u2019s…\u00a0late。"])) == plain
    assert split(words(["do\tnot\nstop\r\n[it's] (late);"])) == plain


CHARACTERS = st.sampled_from(
    "abZ09 .,-\n\tß\u00e9\u00a0\u00ad\u00d7\u2014\u2019\u3000\u3002\u6771\uac00\ud7a3\uff0c\uff21\U0001f600\u0e01\u3042\ufeff"
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.text(CHARACTERS, max_size=40), st.text(max_size=12)), max_size=6))
def test_words_are_those_of_plain_python(texts: list[str]) -> None:
    assert split(words(texts)) == [[naive_hash(word) for word in naive_words(text)] for text in texts]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(CHARACTERS, max_size=30), min_size=1, max_size=5))
def test_texts_joined_by_a_space_have_their_words_joined(texts: list[str]) -> None:
    assert words([" ".join(texts)]).hashes.tolist() == words(texts).hashes.tolist()


def test_slices_of_the_work_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    texts = ["".join(rng.choices("ab é東.", k=rng.choice([0, 1, 3, 50]))) for _ in range(300)]
    once = words(texts)
    for size in (1, 7, 100):
        monkeypatch.setattr(subject, "_SLICE", size)
        again = words(texts)
        assert np.array_equal(once.hashes, again.hashes) and np.array_equal(once.offsets, again.offsets)


def test_a_very_long_run_is_cut_into_words() -> None:
    texts = ["x" * 2500, "a " + "y" * 1024, "東" * 3 + "z" * 1025]
    assert split(words(texts)) == [[naive_hash(word) for word in naive_words(text)] for text in texts]
    assert [len(found) for found in split(words(texts))] == [3, 2, 5]


def test_texts_that_hold_half_a_character_have_words() -> None:
    assert len(words(["a \ud800 b"]).hashes) == 3


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 12, 13])
def test_ngrams_are_those_of_plain_python(n: int) -> None:
    rng = random.Random(n)
    texts = [" ".join(rng.choices("abcdefg", k=rng.randint(0, 30))) for _ in range(40)]
    found = words(texts)

    def gram(hashes: list[int]) -> int:
        value = 0
        for number in hashes:
            value = (value * GRAM + number) & M
        return splitmix(value) if n > 1 else value

    expected = [[gram(h[i : i + n]) for i in range(len(h) - n + 1)] for h in split(found)]
    assert split(ngrams(found, n)) == expected


def test_ngrams_of_nothing() -> None:
    assert split(ngrams(words([]), 5)) == []
    assert split(ngrams(words(["", "a b"]), 5)) == [[], []]
    with pytest.raises(ValueError, match="1 or more"):
        ngrams(words(["a"]), 0)


def test_whole_texts_are_equal_where_their_words_are() -> None:
    one, same, longer, turned, none = whole(words(["a b", "A, b!", "a b b", "b a", "…"])).tolist()
    assert one == same
    assert len({one, longer, turned, none}) == 4 and none == 0


def test_the_words_of_a_batch_are_computed_once() -> None:
    rows = batch([pair("a b", "c", "d"), None, pair("e", "f g", "h")])
    assert words_of(rows) is words_of(rows)
    assert words_of(rows).counts.tolist() == [2, 1, 1, 1, 2, 1]
