"""The canonical record: forms, ids, and the views."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.records import Completion, Message, Record, graded, merit, pairs, parse, recognise, sft

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

    from training.digest import canonical_json

    assert Record.from_payload(record.payload()) == record
    again = Record.from_payload(json.loads(canonical_json(record.payload())))
    assert again == record and again.id == record.id


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


def test_a_transcript_keeps_its_text_as_it_stands() -> None:
    chosen = "\n\nHuman: one\n\nAssistant: two \n\nHuman:  three\nfour\n\nAssistant: five "
    record = parse({"chosen": chosen, "rejected": chosen.replace("five ", "")}, "transcripts")
    assert record.prompt == (Message("user", "one"), Message("assistant", "two "), Message("user", " three\nfour"))
    assert [completion.text for completion in record.completions] == ["five ", ""]


def test_forms_are_recognised_by_columns() -> None:
    assert recognise(["prompt", "chosen", "rejected", "id"]) == "pairs"
    assert recognise(["chosen", "rejected", "messages"]) == "transcripts"
    assert recognise(["prompt", "completions"]) == "graded"
    assert recognise(["prompt", "completion"]) == "completion"
    assert recognise(["messages", "prompt"]) == "messages"
    assert recognise(["question", "answer"]) is None


SPOKEN = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("form", "row", "reason"),
    [
        ("pairs", {"prompt": "q", "chosen": "a"}, "'rejected' is missing"),
        ("pairs", {"prompt": None, "chosen": "a", "rejected": "b"}, "'prompt' is null"),
        ("pairs", {"prompt": 3, "chosen": "a", "rejected": "b"}, "'prompt' is a number"),
        ("pairs", {"prompt": "q", "chosen": {"a": 1}, "rejected": "b"}, "'chosen' is an object"),
        ("pairs", {"prompt": "other", "chosen": SPOKEN, "rejected": SPOKEN}, "exactly one assistant message"),
        ("pairs", {"prompt": "q\ud800", "chosen": "a", "rejected": "b"}, "half a surrogate"),
        ("transcripts", {"chosen": "a", "rejected": "b"}, "doesn't begin"),
        ("transcripts", {"chosen": "Human: a", "rejected": "Human: b"}, "doesn't end with an assistant"),
        ("transcripts", {"chosen": SPOKEN, "rejected": SPOKEN[1:]}, "differ before"),
        ("graded", {"prompt": "q", "completions": "a"}, "not a list"),
        ("graded", {"prompt": "q", "completions": [1]}, r"completions\[0\]' is a number"),
        ("graded", {"prompt": "q", "completions": ["a"] * 65}, "at most 64"),
        ("graded", {"prompt": "q", "completions": [{"score": 1}]}, "either 'text' or 'messages'"),
        ("graded", {"prompt": "q", "completions": [{"text": "a", "score": "1"}]}, "is text, not a number"),
        ("graded", {"prompt": "q", "completions": [{"text": "a", "score": True}]}, "not a number"),
        ("graded", {"prompt": "q", "completions": [{"text": "a", "score": 10**400}]}, "no finite number"),
        ("graded", {"prompt": "q", "completions": [{"text": "a", "score": 1, "rank": 1}]}, "more than one of"),
        ("graded", {"prompt": "q", "completions": [{"text": "a", "rank": 0}]}, "whole number from 1"),
        ("graded", {"prompt": "q", "completions": [{"text": "a", "label": "yes"}]}, "not true or false"),
        ("graded", {"prompt": "q", "completions": [{"text": "a", "model": 4}]}, "not text"),
        ("completion", {"prompt": "q", "completion": SPOKEN}, "exactly one assistant message"),
        ("completion", {"prompt": [{"role": "user"}], "completion": "a"}, "'role' and 'content'"),
        ("completion", {"prompt": "q", "completion": "a", "weight": 0}, "more than 0"),
        ("messages", {"messages": SPOKEN[:1]}, "doesn't end with an assistant"),
        ("messages", {"messages": []}, "doesn't end with an assistant"),
    ],
)
def test_a_row_that_is_no_record_says_why(form: str, row: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(row, form)
