"""The forms: what each is recognised by, how a row of it becomes a record, and why one does not."""

from itertools import permutations
from typing import Any

import pytest

from training.data.forms import COLUMNS, FORMS, SFT_FORMS, parse, recognise
from training.data.records import Completion, Message, Record, pairs


def test_a_transcript_keeps_its_text_as_it_stands() -> None:
    chosen = "\n\nHuman: one\n\nAssistant: two \n\nHuman:  three\nfour\n\nAssistant: five "
    record = parse({"chosen": chosen, "rejected": chosen.replace("five ", "")}, "transcripts")
    assert record.prompt == (Message("user", "one"), Message("assistant", "two "), Message("user", " three\nfour"))
    assert [completion.text for completion in record.completions] == ["five ", ""]


USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
ROWS: dict[str, dict[str, Any]] = {
    "pairs": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "transcripts": {"chosen": "Human: q\n\nAssistant: a", "rejected": "Human: q\n\nAssistant: b"},
    "graded": {"prompt": "q", "completions": [{"text": "a", "score": 2}, {"text": "b", "score": 1.5}]},
    "labelled": {"prompt": "q", "completion": "a", "label": True},
    "completion": {"prompt": "q", "completion": "a"},
    "sentences": {"sentence_good": "a", "sentence_bad": "b"},
    "instruction": {"instruction": "q", "input": "", "output": "a"},
    "messages": {"messages": [USER, ASSISTANT]},
    "conversations": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "text": {"text": "a"},
}
# What a row with the columns of both forms is, where that isn't the one which stands first in ROWS.
BOTH = {
    frozenset(pair.split()): form
    for pair, form in {
        "transcripts labelled": "pairs",
        "transcripts graded": "pairs",
        "transcripts completion": "pairs",
        "graded labelled": "graded",
    }.items()
}


@pytest.mark.parametrize("form", ROWS)
def test_a_form_is_recognised_whatever_the_order_and_beside_columns_that_nobody_knows(form: str) -> None:
    assert form in FORMS and ROWS.keys() == FORMS.keys()
    for columns in permutations(ROWS[form]):
        assert recognise(columns) == form
        assert recognise(["id", *columns, "source", "Prompt", "weight", "licence"]) == form


@pytest.mark.parametrize("one", ROWS)
@pytest.mark.parametrize("other", ROWS)
def test_a_row_with_the_columns_of_two_forms_is_of_one_of_them_whatever_the_order(one: str, other: str) -> None:
    columns = [*ROWS[one], *ROWS[other]]
    expected = BOTH.get(frozenset((one, other)), min(one, other, key=list(ROWS).index))
    assert recognise(columns) == recognise(reversed(columns)) == recognise(sorted(columns)) == expected
    assert isinstance(parse({**ROWS[one], **ROWS[other]}, expected), Record)


@pytest.mark.parametrize("form", ROWS)
def test_a_column_that_is_missing_is_another_form_or_none(form: str) -> None:
    for name in ROWS[form].keys() - {"input"}:
        rest = {key: value for key, value in ROWS[form].items() if key != name}
        assert recognise(rest) != form
        with pytest.raises(ValueError, match="is missing"):
            parse(rest, form)
        with pytest.raises(ValueError, match="is null"):
            parse({**rest, name: None}, form)


def test_forms_of_real_sets_are_recognised() -> None:
    ultrafeedback = "prompt prompt_id chosen rejected messages score_chosen score_rejected"
    assert recognise(ultrafeedback.split()) == "pairs"
    assert recognise(["prompt", "prompt_id", "messages"]) == "messages"  # ultrachat
    assert recognise(["instruction", "input", "output", "text"]) == "instruction"  # alpaca
    assert recognise(["id", "conversations", "system"]) == "conversations"
    assert recognise(["prompt", "responses", "ranks"]) == "graded"
    assert recognise(["chosen", "rejected", "messages"]) == "transcripts"
    assert recognise(["question", "answer"]) is None is recognise([])


QUESTION, YES, NO = (Message("user", "q"),), Completion("a", rank=1), Completion("b", rank=2)
TURNS = {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "b"}]}


@pytest.mark.parametrize(
    ("form", "prompt", "completions"),
    [
        ("pairs", QUESTION, (YES, NO)),
        ("transcripts", QUESTION, (YES, NO)),
        ("graded", QUESTION, (Completion("a", score=2.0), Completion("b", score=1.5))),
        ("labelled", QUESTION, (Completion("a", label=True),)),
        ("completion", QUESTION, (Completion("a"),)),
        ("sentences", (), (YES, NO)),
        ("instruction", QUESTION, (Completion("a"),)),
        ("messages", QUESTION, (Completion("a"),)),
        ("conversations", QUESTION, (Completion("a"),)),
        ("text", (), (Completion("a"),)),
    ],
)
def test_a_row_of_each_form_as_a_record(form: str, prompt: Any, completions: Any) -> None:
    assert parse(ROWS[form], form) == Record(prompt, completions)
    assert (form in SFT_FORMS) == (len(completions) == 1 and form != "labelled")
    assert parse({**ROWS[form], "weight": 2, "anything": object()}, form).weight == 2.0


def test_whole_message_lists_share_the_prompt() -> None:
    """As in UltraFeedback-binarized: the prompt as text, the answers as conversations, and their scores."""
    row = {"prompt": "q", **TURNS, "messages": TURNS["chosen"], "score_chosen": 9.0, "score_rejected": 4}
    assert parse(row, "pairs") == Record(QUESTION, (Completion("a", score=9.0), Completion("b", score=4.0)))
    tied = parse({**row, "score_rejected": 9}, "pairs")
    assert tied == parse({**row, "score_rejected": None}, "pairs") == Record(QUESTION, (YES, NO))
    with pytest.raises(ValueError, match="'score_chosen' is lower"):
        parse({**row, "score_chosen": 1}, "pairs")
    with pytest.raises(ValueError, match="'score_chosen' is text"):
        parse({**row, "score_chosen": "9"}, "pairs")
    del row["prompt"]
    assert parse(row, "transcripts").completions == (Completion("a", score=9.0), Completion("b", score=4.0))


def test_a_system_message_of_the_conversation_is_kept_where_the_prompt_is_one_of_its_turns() -> None:
    system = {"role": "system", "content": "s"}
    row = {"prompt": "q", **{name: [system, *turns] for name, turns in TURNS.items()}}
    assert parse(row, "pairs").prompt == (Message("system", "s"), *QUESTION)
    with pytest.raises(ValueError, match="exactly one assistant message"):
        parse({**row, "prompt": "another"}, "pairs")
    with pytest.raises(ValueError, match="exactly one assistant message"):
        parse({**row, "chosen": [USER, *TURNS["chosen"]]}, "pairs")


@pytest.mark.parametrize("name", ["completions", "responses"])
def test_grades_may_stand_in_lists_beside_the_completions(name: str) -> None:
    texts = {"prompt": "q", name: ["a", "b", "c"]}
    ranked = parse({**texts, "ranks": [2, 1.0, None], "models": ["m", None, None]}, "graded")
    assert ranked.completions == (Completion("a", rank=2, model="m"), Completion("b", rank=1), Completion("c"))
    scored = parse({**texts, "scores": [0.5, 2, -1]}, "graded")
    assert [pair.chosen + pair.rejected for pair in pairs(scored)] == ["ba", "bc", "ac"]
    assert [c.label for c in parse({**texts, "labels": [1, 0, True]}, "graded").completions] == [True, False, True]
    as_messages = {"prompt": "q", name: [[ASSISTANT], {"text": "b", "model": "m"}], "scores": [1, 2]}
    expected = (Completion("a", score=1.0), Completion("b", score=2.0, model="m"))
    assert parse(as_messages, "graded").completions == expected


def test_labels_are_true_false_one_and_zero() -> None:
    row = {"prompt": "q", "completion": "a"}
    given = [True, 1, 1.0, False, 0, 0.0]
    assert [parse({**row, "label": label}, "labelled").completions[0].label for label in given] == [True] * 3 + [
        False
    ] * 3
    for label in (2, "true", 0.5, -1, []):
        with pytest.raises(ValueError, match="not true or false"):
            parse({**row, "label": label}, "labelled")


def test_an_input_stands_below_the_instruction() -> None:
    assert parse({"instruction": "do", "input": "it", "output": "a"}, "instruction").prompt == (
        Message("user", "do\n\nit"),
    )
    assert parse({"instruction": "do", "input": None, "output": "a"}, "instruction").prompt == (Message("user", "do"),)


def test_conversations_know_the_speakers_of_sharegpt() -> None:
    turns = [("system", "s"), ("human", "q"), ("gpt", "a"), ("tool", "t"), ("GPT", "b")]
    row = {"conversations": [{"from": speaker, "value": value} for speaker, value in turns], "system": ""}
    record = parse(row, "conversations")
    assert [m.role for m in record.prompt] == ["system", "user", "assistant", "tool"]
    assert record.completions == (Completion("b"),)
    as_roles = {"conversations": [USER, ASSISTANT], "system": "s"}
    assert parse(as_roles, "conversations").prompt == (Message("system", "s"), *QUESTION)


def test_every_column_that_a_form_reads_is_known() -> None:
    assert {"prompt", "scores", "input", "weight", "label", "score_chosen", "system"} <= COLUMNS
    assert all(name in COLUMNS for row in ROWS.values() for name in row)


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
        ("graded", {"prompt": "q", "completions": ["a"], "scores": [1, 2]}, "2 entries for 1"),
        ("graded", {"prompt": "q", "completions": ["a"], "scores": 1}, "'scores' is a number, not a list"),
        ("graded", {"prompt": "q", "completions": [{"text": "a", "score": 1}], "scores": [2]}, "of its own"),
        ("graded", {"prompt": "q", "completions": ["a"], "scores": [2], "ranks": [1]}, "more than one of"),
        ("graded", {"prompt": "q", "completions": [1], "scores": [2]}, "neither text nor an object"),
        ("graded", {"prompt": "q", "completions": [{"text": "a", "rank": 1.5}]}, "whole number from 1"),
        ("instruction", {"instruction": "q", "input": 1, "output": "a"}, "'input' is a number"),
        ("instruction", {"instruction": [], "output": "a"}, "'instruction' is a list"),
        ("text", {"text": ["a"]}, "'text' is a list, not text"),
        ("sentences", {"sentence_good": "a", "sentence_bad": 1}, "'sentence_bad' is a number"),
        ("conversations", {"conversations": "a"}, "not a list"),
        ("conversations", {"conversations": [{"from": "nobody", "value": "a"}]}, r"\[0\]\.from' is none of"),
        ("conversations", {"conversations": [USER, {"from": "gpt"}]}, r"\[1\]' must be an object with 'from' and"),
        ("conversations", {"conversations": [{"from": "human", "value": "a"}]}, "doesn't end with an assistant"),
    ],
)
def test_a_row_that_is_no_record_says_why(form: str, row: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(row, form)
