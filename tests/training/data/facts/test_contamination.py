"""Contamination against the definition in plain Python: 13-grams, items inside texts, whole short items."""

import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.data.facts.made import VOCABULARY, batch, example, pair, sliced, text
from training.data.facts.base import Batch
from training.data.facts.contamination import BenchmarkShare, Contamination, benchmark_shares
from training.data.records import Record
from training.strict import Refused


def maker(folder: Path, *items: str | tuple[str, Any, str]) -> Contamination:
    """A maker over items, given as texts or as (benchmark, item, text)."""
    path = folder / "items.jsonl"
    lines = [("b", number, item) if isinstance(item, str) else item for number, item in enumerate(items)]
    path.write_text("".join(json.dumps({"benchmark": b, "item": i, "text": t}) + "\n" for b, i, t in lines), "utf-8")
    return Contamination(str(path), hashlib.sha256(path.read_bytes()).hexdigest())


def shares(made: Contamination, *records: Record | None) -> list[tuple[float, float | None]]:
    facts = made(batch(records))
    found = zip(facts["contaminated"].tolist(), facts["contaminated_item"].tolist(), strict=True)
    return [(share, None if np.isnan(item) else item) for share, item in found]


def split(content: str) -> list[str]:
    return re.findall("[a-z0-9]+", content.lower())


def inside(part: list[str], content: list[str]) -> bool:
    return any(content[i : i + len(part)] == part for i in range(len(content) - len(part) + 1))


def naive(items: list[str], record: Record) -> list[float]:
    """The share of every item in a record of ASCII text, where no 13-gram stands in more than 10 items."""
    prompt = [word for message in record.prompt for word in split(message.content)]
    answers = [split(completion.text) for completion in record.completions]
    runs = [prompt, *(prompt[-12:] + answer for answer in answers)]
    texts = [*(split(m.content) for m in record.prompt), *answers]
    texts += [split(record.prompt[-1].content) + answer for answer in answers if record.prompt]
    found = []
    for item in map(split, items):
        if len(item) >= 13:
            grams = {tuple(item[i : i + 13]) for i in range(len(item) - 12)}
            found.append(sum(any(inside(list(gram), run) for run in runs) for gram in grams) / len(grams))
        elif len(item) >= 8:
            found.append(float(any(inside(item, run) for run in runs)))
        else:
            found.append(float(len(item) >= 4 and item in texts))
    return found


def test_a_whole_item_is_found_wherever_it_stands(tmp_path: Path) -> None:
    rng = random.Random(1)
    item = text(rng, 30)
    question, answer = " ".join(item.split()[:22]), " ".join(item.split()[22:])
    made = maker(tmp_path, text(rng, 30), item)
    rows = [
        pair(f"Look: {item.upper()}!", "a", "b"),
        pair("q", "a", f"well, {item}, so it is"),
        pair(question, answer, "b"),
        pair(question, "a", answer + " indeed"),
        pair([("system", "s"), ("user", question), ("assistant", answer), ("user", "q")], "a", "b"),
        example("", item),
    ]
    assert shares(made, *rows) == [(1.0, 1.0)] * 6
    assert shares(made, pair("q", "a", "b"), None)[0] == (0.0, None)
    assert np.isnan(shares(made, None)[0][0])


def test_the_share_counts_the_items_own_thirteen_grams(tmp_path: Path) -> None:
    rng = random.Random(2)
    words = rng.sample(VOCABULARY, 32)  # 32 words have 20 sequences of 13
    made = maker(tmp_path, " ".join(words))
    for count, share in ((12, 0.0), (13, 1 / 20), (17, 5 / 20), (31, 19 / 20), (32, 1.0)):
        row = pair("something else", " ".join(words[:count]), "b")
        assert shares(made, row, row)[1] == (pytest.approx(share), 0.0 if share else None)
    # Said twice it counts once; its two halves count both.
    twice = " ".join([*words[:13], "x", *words[:13]])
    assert shares(made, pair("q", twice, twice))[0][0] == pytest.approx(1 / 20)
    halves = pair(" ".join(words[:16]), " ".join(words[16:]), "b")
    apart = pair("q", " ".join(words[:16]), " ".join(words[16:]))
    # Question and answer in two texts are one run; chosen and rejected are two: 4 + 4 of the 20 are left.
    assert shares(made, halves)[0][0] == 1.0 and shares(made, apart)[0][0] == pytest.approx(8 / 20)


def test_an_item_of_eight_to_twelve_words_is_found_as_a_whole_only(tmp_path: Path) -> None:
    rng = random.Random(3)
    for count in range(8, 13):
        words = rng.sample(VOCABULARY, count)
        made = maker(tmp_path, " ".join(words))
        assert shares(made, pair("q", f"so {' '.join(words)} then", "b")) == [(1.0, 0.0)]
        assert shares(made, pair(" ".join(words[:5]), "a", " ".join(words[5:]))) == [(1.0, 0.0)]
        assert shares(made, pair("q", " ".join(words[:-1]), " ".join(words[1:]))) == [(0.0, None)]


@pytest.mark.parametrize("count", [4, 5, 6, 7])
def test_a_shorter_item_is_found_as_a_whole_text_only(tmp_path: Path, count: int) -> None:
    words = ["what", "is", "two", "plus", "two", "four", "indeed"][:count]
    made = maker(tmp_path, " ".join(words))
    rows = [
        pair(" ".join(words).title() + "?", "a", "b"),
        pair("q", "a", " ".join(words)),
        pair(" ".join(words[:-1]), "a", words[-1] + "."),
        pair([("user", "before"), ("assistant", "x"), ("user", " ".join(words[:-1]))], words[-1], "b"),
    ]
    assert shares(made, *rows) == [(1.0, 0.0)] * 4
    rows = [pair(f"tell me: {' '.join(words)}", "a", "b"), pair(" ".join(words[:-1]), "a", f"{words[-1]} or so")]
    assert shares(made, *rows) == [(0.0, None)] * 2


@pytest.mark.parametrize("item", ["yes", "Paris", "I do not", "", "…"])
def test_an_item_of_less_than_four_words_is_never_found(tmp_path: Path, item: str) -> None:
    made = maker(tmp_path, item)
    assert shares(made, pair(item, item, "b"), pair("", item, "b")) == [(0.0, None)] * 2
    found = benchmark_shares(made.texts_file, made.digest, [], 0.5)
    assert found == {"b": BenchmarkShare(items=1, exact=0, overlapping=0, too_short=1)}


def test_boilerplate_of_many_items_finds_none(tmp_path: Path) -> None:
    rng = random.Random(4)
    frame = text(rng, 40)
    row = pair(frame, "a", "b")
    assert [share for share, _ in shares(maker(tmp_path, *(f"{frame} {text(rng, 20)}" for _ in range(11))), row)] == [
        0.0
    ]
    assert shares(maker(tmp_path, *(f"{frame} {text(rng, 20)}" for _ in range(10))), row)[0][0] > 0.5
    # Lines of one item (several right answers) are no boilerplate, whatever their number.
    answers = [("b", 0, f"{frame} {text(rng, 20)}") for _ in range(30)]
    assert shares(maker(tmp_path, *answers), row)[0][0] > 0.5
    # An item that stands in the file twenty times is one text.
    assert shares(maker(tmp_path, *[frame] * 20), row) == [(1.0, 0.0)]
    # Items that have nothing but boilerplate keep it: a round of 20 words, said twice from each of its words on.
    turn = rng.sample(VOCABULARY, 20)
    rounds = [" ".join([*turn[start:], *turn, *turn[:start]]) for start in range(20)]
    assert shares(maker(tmp_path, *rounds), pair(rounds[3], "a", "b"))[0][0] == 1.0


def corpus(rng: random.Random) -> tuple[list[str], list[Record]]:
    """Items of all lengths, and rows made of pieces of them and of other words."""
    items = [
        " ".join(rng.sample(VOCABULARY, rng.choice([1, 3, 4, 6, 7, 8, 10, 12, 13, 14, 20, 40]))) for _ in range(60)
    ]

    def content() -> str:
        parts = []
        for _ in range(rng.randint(1, 3)):
            words = rng.choice(items).split()
            low = rng.choice([0, 0, rng.randrange(len(words))])
            parts.append(" ".join(words[low : rng.choice([len(words), rng.randint(low, len(words))])]))
            parts.append(text(rng, rng.choice([0, 0, 5])))
        return " ".join(parts).strip()

    def turns() -> list[tuple[str, str]]:
        return [("user", content()), ("assistant", content()), ("user", content())][rng.choice([0, 2]) :]

    return items, [pair(turns(), content(), content()) for _ in range(300)]


def test_every_share_is_that_of_plain_python(tmp_path: Path) -> None:
    items, rows = corpus(random.Random(5))
    made = maker(tmp_path, *items)
    found = made.found(batch(rows))
    table = np.zeros((len(rows), len(items)))
    table[found.row, found.item] = found.share
    expected = np.array([naive(items, row) for row in rows])
    assert np.allclose(table, expected)
    assert {0.0, 1.0} < set(expected.ravel().tolist())
    assert (found.share > 0).all() and len(set(zip(found.row.tolist(), found.item.tolist(), strict=True))) == len(
        found.row
    )
    facts = made(batch(rows))
    assert np.allclose(facts["contaminated"], expected.max(1))
    best = np.where(expected.max(1) > 0, expected.argmax(1), np.nan)
    assert np.array_equal(facts["contaminated_item"], best, equal_nan=True)


@pytest.mark.parametrize("size", [1, 50])
def test_batches_change_nothing(tmp_path: Path, size: int) -> None:
    items, rows = corpus(random.Random(6))
    made = maker(tmp_path, *items)
    every = batch([*rows, None])
    whole, parts = made(every), [made(part) for part in sliced(every, size)]
    for name in made.columns:
        assert np.array_equal(whole[name], np.concatenate([part[name] for part in parts]), equal_nan=True)
    assert len(made(batch([]))["contaminated"]) == 0


def test_each_benchmarks_share_is_counted_by_items(tmp_path: Path) -> None:
    rng = random.Random(7)
    a, b, c, d, e = (text(rng, 32) for _ in range(5))
    half = " ".join(b.split()[:24])  # 12 of 20 sequences
    made = maker(
        tmp_path,
        *[("one", 0, a), ("one", 1, b), ("one", 2, c), ("one", 3, "yes")],
        *[("two", "x", d), ("two", "x", e), ("two", "y", a), ("two", "z", c)],
    )
    rows = [batch([pair(a, half, "b"), None]), batch([pair("q", e, "b")])]

    def found(row: Batch) -> tuple[Any, Any]:
        return made.found(row).item, made.found(row).share

    expected = {"one": BenchmarkShare(4, 1, 2, 1), "two": BenchmarkShare(3, 2, 2, 0)}
    assert benchmark_shares(made.texts_file, made.digest, map(found, rows), 0.5) == expected
    assert expected["one"].share == 0.5
    strict = benchmark_shares(made.texts_file, made.digest, map(found, rows), 0.7)
    assert strict["one"] == BenchmarkShare(4, 1, 1, 1)
    # Of the columns alone: the best item of each row.
    columns = [(f["contaminated_item"], f["contaminated"]) for f in map(made, rows)]
    assert benchmark_shares(made.texts_file, made.digest, columns, 0.5)["one"].exact == 1


def test_a_row_is_not_blamed_for_a_frequent_word(tmp_path: Path) -> None:
    rng = random.Random(8)
    made = maker(tmp_path, *(text(rng, rng.randint(1, 60)) for _ in range(500)))
    rows = [pair(text(rng, 50), text(rng, 50), text(rng, 50)) for _ in range(300)]
    assert not any(share for share, _ in shares(made, *rows))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"benchmark": "b", "item": 1, "text": "x"}\n{', ":2: the line is no JSON object"),
        ('{"benchmark": "b", "item": 1}', "'text' is missing"),
        ('{"item": 1, "text": "x"}', "'benchmark' is missing"),
        ('{"benchmark": "b", "item": 1, "text": 3}', "'text' is missing or no text"),
        ("[]", "'benchmark' is missing"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(content)
    made = Contamination(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(Refused, match=re.escape(message)):
        made(batch([pair("q", "a", "b")]))


def test_another_file_than_the_one_that_was_named_is_refused(tmp_path: Path) -> None:
    made = maker(tmp_path, "x")
    Path(made.texts_file).write_text('{"benchmark": "b", "item": 0, "text": "y"}\n')
    with pytest.raises(Refused, match="was changed since"):
        made(batch([pair("q", "a", "b")]))
    Path(made.texts_file).unlink()
    with pytest.raises(Refused, match="cannot be read"):
        made(batch([pair("q", "a", "b")]))


def test_an_empty_file_finds_nothing(tmp_path: Path) -> None:
    made = maker(tmp_path)
    assert shares(made, pair("q", "a", "b")) == [(0.0, None)]
    assert benchmark_shares(made.texts_file, made.digest, [], 0.5) == {}
    assert made.key == made.digest
