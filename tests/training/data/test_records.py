"""The canonical record: its bytes, its id, and the views."""

import dataclasses
import hashlib
import inspect
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data import records
from training.data.forms import parse
from training.data.records import Completion, Message, Provenance, Record, graded, merit, pairs, sft, teaches
from training.digest import canonical_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
COMPLETIONS = st.builds(
    Completion,
    TEXT,
    score=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    model=st.none() | TEXT,
) | st.builds(Completion, TEXT, rank=st.integers(1, 9))
RECORDS = st.builds(
    Record,
    st.lists(st.builds(Message, TEXT, TEXT), max_size=3).map(tuple),
    st.lists(COMPLETIONS, max_size=4).map(tuple),
    st.floats(0.01, 100),
)


def scored(*grades: float) -> Record:
    return Record((Message("user", "q"),), tuple(Completion(f"a{i}", score=grade) for i, grade in enumerate(grades)))


@given(RECORDS)
def test_a_record_survives_its_payload(record: Record) -> None:
    import json

    assert Record.from_payload(record.payload()) == record
    again = Record.from_payload(json.loads(canonical_json(record.payload())))
    assert again == record and again.id == record.id


NASTY = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\/\b\f\n\r\t\x00\x1f\x7f\x80\u2028\ufeff\U0001f600é'),
    max_size=20,
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, -0.0, 1.0, 0.1, 1e-5, 1e-7, 123456789.5, 2.0**53, 2.0**53 - 1, -(2.0**53), 1e16, 1e21, 1e22, 5e-324, 1.7e308]
)
RANKS = st.integers(1, 2**53) | st.sampled_from([2**53 - 1, 2**53])
ODD = st.builds(
    Record,
    st.lists(st.builds(Message, NASTY, NASTY), max_size=3).map(tuple),
    st.lists(
        st.builds(
            Completion, NASTY, score=st.none() | NUMBERS, model=st.none() | NASTY, label=st.none() | st.booleans()
        )
        | st.builds(Completion, NASTY, rank=RANKS),
        max_size=3,
    ).map(tuple),
    NUMBERS,
)


@given(ODD)
def test_bytes_and_id_are_those_of_canonical_json(record: Record) -> None:
    payload = record.payload()
    assert record.payload_bytes == canonical_json(payload)
    content = {"prompt": payload["prompt"], "completions": payload["completions"]}
    assert record.id == hashlib.sha256(canonical_json(content)).hexdigest()


@given(ODD)
def test_the_bytes_are_the_same_where_orjson_is_absent(record: Record) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "orjson", None)
        slow = Record(record.prompt, record.completions, record.weight)
        assert (slow.id, slow.payload_bytes) == (record.id, record.payload_bytes)


@pytest.mark.parametrize(
    "completion", [Completion("\ud800"), Completion("a", model="\udfff"), Completion("a", score=math.nan)]
)
def test_what_has_no_canonical_json_has_no_id(completion: Completion) -> None:
    with pytest.raises(ValueError):
        Record((), (completion,)).id  # noqa: B018


def test_the_id_is_the_content_and_neither_the_form_nor_the_weight() -> None:
    as_pair = parse({"prompt": "q", "chosen": "yes", "rejected": "no"}, "pairs")
    message = [{"role": "user", "content": "q"}]
    answers = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "yes"), ("rejected", "no"))}
    transcript = {"chosen": "\n\nHuman: q\n\nAssistant: yes", "rejected": "\n\nHuman: q\n\nAssistant: no"}
    assert parse({"prompt": message, **answers}, "pairs").id == as_pair.id
    assert parse(transcript, "transcripts").id == as_pair.id
    assert parse({name: message + answer for name, answer in answers.items()}, "transcripts").id == as_pair.id
    whole = {name: message + answer for name, answer in answers.items()}
    assert parse({"prompt": "q", **whole}, "pairs").id == as_pair.id
    assert parse({"prompt": "q", "chosen": "yes", "rejected": "no", "weight": 2}, "pairs").id == as_pair.id
    assert parse({"prompt": "q", "chosen": "no", "rejected": "yes"}, "pairs").id != as_pair.id


def test_a_pair_becomes_ranks_one_and_two() -> None:
    record = parse({"prompt": "q", "chosen": "yes", "rejected": "no"}, "pairs")
    assert record.completions == (Completion("yes", rank=1), Completion("no", rank=2))
    (pair,) = pairs(record)
    assert (pair.chosen, pair.rejected, pair.weight) == ("yes", "no", 1.0)


def test_every_strict_order_is_a_pair_and_a_prompt_counts_once() -> None:
    # Scores 0.5, 1, 0.5, 0: a1 beats three, a0 and a2 beat a3, a0 and a2 tie. 3 + 1 + 1 = 5 pairs of weight 1/5.
    found = pairs(scored(0.5, 1, 0.5, 0))
    assert [(pair.chosen, pair.rejected) for pair in found] == [
        ("a1", "a0"),
        ("a1", "a2"),
        ("a1", "a3"),
        ("a0", "a3"),
        ("a2", "a3"),
    ]
    assert {pair.weight for pair in found} == {0.2}


def test_ties_and_ungraded_completions_give_no_pair() -> None:
    assert pairs(scored(1, 1, 1)) == []
    ungraded = Record((), (Completion("a"), Completion("b", score=1.0), Completion("c", rank=1)))
    assert pairs(ungraded) == []


def test_equal_texts_give_no_pair() -> None:
    record = Record((), (Completion("a", rank=1), Completion("a", rank=2), Completion("b", rank=3)))
    # a(1) > a(2) is left out; a(1) > b and a(2) > b stay.
    assert [(pair.chosen, pair.rejected, pair.weight) for pair in pairs(record)] == [("a", "b", 0.5), ("a", "b", 0.5)]


def test_labels_and_ranks_order_completions_too() -> None:
    labels = Record((), (Completion("bad", label=False), Completion("good", label=True)))
    assert [(pair.chosen, pair.rejected) for pair in pairs(labels)] == [("good", "bad")]
    assert sft(labels).completion == "good"


def test_what_is_graded_is_told_with_its_kind_and_as_stored() -> None:
    assert graded(scored(0.5, -1)) == ("score", [(Completion("a0", score=0.5), 0.5), (Completion("a1", score=-1), -1)])
    ranks = (Completion("a", rank=2), Completion("b"), Completion("c", rank=1), Completion("d", label=True))
    assert graded(Record((), ranks)) == ("rank", [(ranks[0], -2.0), (ranks[2], -1.0)])
    assert graded(Record((), ranks[3:])) == ("label", [(ranks[3], 1.0)])
    assert graded(Record((), ())) == ("", []) == graded(Record((), (Completion("a"),)))


@given(RECORDS)
def test_graded_completions_and_their_pairs_agree(record: Record) -> None:
    """For records of one kind of grade, which is what validation lets through."""
    kind, found = graded(record)
    assert [completion for completion, _ in found] == [
        c for c in record.completions if merit(c) and merit(c)[0] == kind
    ]  # type: ignore[index]
    same = Record(record.prompt, tuple(completion for completion, _ in found), record.weight)
    expected = [(a.text, b.text) for a, x in found for b, y in found if x > y and a.text != b.text]
    assert sorted((pair.chosen, pair.rejected) for pair in pairs(same)) == sorted(expected)


def test_sft_takes_the_best_completion_and_the_first_of_ties() -> None:
    assert sft(scored(0, 1, 1)).completion == "a1"
    assert sft(Record((), (Completion("x"), Completion("y")))).completion == "x"
    with pytest.raises(ValueError, match="no completion"):
        sft(Record((), ()))


def test_what_is_labelled_undesirable_is_never_an_example() -> None:
    bad, good, plain = Completion("x", label=False), Completion("y", label=True), Completion("z")
    assert sft(Record((), (bad, good))).completion == "y" and sft(Record((), (bad, plain))).completion == "z"
    assert teaches(Record((), (bad, good))) and not teaches(Record((), (bad, bad))) and not teaches(Record((), ()))
    with pytest.raises(ValueError, match="no completion"):
        sft(Record((), (bad,)))


@pytest.mark.parametrize(
    "made", [Message("a", "b"), Completion("a", rank=1), Provenance("a", 1, "MIT"), Record((), (Completion("a"),), 2.0)]
)
def test_records_and_their_parts_are_frozen_and_survive_a_process(made: Any) -> None:
    names = [field.name for field in dataclasses.fields(made)]
    assert list(vars(made)) == names and inspect.signature(type(made)).parameters.keys() == set(names)
    again = pickle.loads(pickle.dumps(made))
    assert again == made == dataclasses.replace(made) and hash(again) == hash(made) and repr(made) == repr(again)
    for name, value in vars(made).items():
        assert dataclasses.replace(made, **{name: "x"}) != made and getattr(made, name) == value
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, name, value)
