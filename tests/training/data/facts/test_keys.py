"""Keys of rows: as the ids, the prompts' digests and the preferences say."""

import random
import unicodedata
from itertools import permutations

import numpy as np
import pytest

from tests.training.data.facts.made import batch, example, pair, scored
from training.data.facts.keys import Edges, Keys, edges
from training.data.records import Completion, Message, Record
from training.data.split import prompt_digest

# Every character that JSON writes in a way of its own, and some that it could.
ODD = "".join(map(chr, range(0x120))) + "\u2028\u2029\ufeff\uffff\U0001f600\U0010ffff"


def number(hexadecimal: str, place: int) -> int:
    return int(hexadecimal[16 * place : 16 * place + 16], 16)


def test_keys_are_the_first_bits_of_id_and_prompt_digest() -> None:
    records = [
        pair("q", "a", "b"),
        pair([("system", ODD), ("user", 'x"\\/'), ("assistant", ""), ("user", ODD)], "a", "b"),
        None,
        Record((), (Completion("text"),)),
        *(pair(char, "a", "b") for char in ODD),
    ]
    rows = batch(records)
    made = Keys()(rows)
    assert tuple(made) == Keys().columns
    for place, record in enumerate(records):
        assert made["id_hi"][place] == number(rows.ids[place], 0)
        assert made["id_lo"][place] == number(rows.ids[place], 1)
        digest = prompt_digest(record.prompt) if record is not None else "0" * 64
        assert made["prompt_hi"][place] == number(digest, 0)
        assert made["prompt_lo"][place] == number(digest, 1)
    assert all(column.dtype == np.uint64 for column in made.values())


def test_an_empty_batch_has_no_keys() -> None:
    assert [len(column) for column in Keys()(batch([])).values()] == [0] * 4
    assert len(edges(batch([])).row) == 0


def test_an_id_of_another_kind_is_refused() -> None:
    rows = batch([pair("q", "a", "b")])
    with pytest.raises(ValueError, match="no SHA-256"):
        Keys()(batch_with_ids(rows, ["ab"]))


def batch_with_ids(rows, ids):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(rows, ids=ids)


def listed(found: Edges) -> list[tuple[int, ...]]:
    columns = (found.row, found.edge_hi, found.edge_lo, found.reverse_hi, found.reverse_lo)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_an_edge_is_the_reverse_of_its_opposite() -> None:
    one, other = listed(edges(batch([pair("q", "a", "b"), pair("q", "b", " a\n")])))
    assert one[1:] == (*other[3:], *other[1:3]) and (one[0], other[0]) == (0, 1)
    third = listed(edges(batch([pair("p", "a", "b")])))[0]
    assert third[1:] != one[1:]


@pytest.mark.parametrize(
    ("record", "count"),
    [
        (scored("q", a=3, b=2, c=1), 3),
        (scored("q", a=1, b=1), 0),
        (scored("q", a=1, b=None, c=0), 1),
        (scored("q", a=1), 0),
        (pair("q", "a", " a "), 0),
        (
            Record(
                (Message("user", "q"),), (Completion("a", score=1), Completion("b", rank=1), Completion("c", score=0))
            ),
            1,
        ),
        # a > b and, by the copy of a, b > a; a > a says nothing.
        (
            Record(
                (Message("user", "q"),), (Completion("a", score=2), Completion("b", score=1), Completion("a", score=0))
            ),
            2,
        ),
        # The same preference twice is one edge.
        (
            Record(
                (Message("user", "q"),), (Completion("a", score=2), Completion("a", score=2), Completion("b", score=0))
            ),
            1,
        ),
        (None, 0),
    ],
)
def test_every_preference_is_an_edge_once(record: Record | None, count: int) -> None:
    found = listed(edges(batch([pair("x", "y", "z"), record])))
    assert len(found) == count + 1 == len(set(found))


def test_edges_do_not_depend_on_the_order_of_completions() -> None:
    answers = {"a": 3.0, "b": 2.0, "c": 2.0, "d": 0.0}
    made = {
        frozenset(listed(edges(batch([scored("q", **{name: answers[name] for name in order})]))))
        for order in permutations(answers)
    }
    assert len(made) == 1 and len(next(iter(made))) == 5


def test_sft_rows_prefer_nothing() -> None:
    assert len(edges(batch([example("q", "a"), scored("q", a=1, b=0)], "sft")).row) == 0


def test_random_text_has_the_prompt_digest_of_the_split() -> None:
    rng = random.Random(2)
    planes = [chr(c) for c in range(0x3000) if unicodedata.category(chr(c)) != "Cs"]
    records = [pair("".join(rng.choices(planes, k=20)), "a", "b") for _ in range(200)]
    made = Keys()(batch(records))
    assert made["prompt_hi"].tolist() == [number(prompt_digest(r.prompt), 0) for r in records]
