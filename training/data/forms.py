"""The forms of a row: what each is recognised by, and how it becomes a record.

``parse`` turns one row of a file into a record; a row that it cannot turn raises ``ValueError`` with the reason, and a
reason never quotes the row's text. A new form is one function and one entry in ``FORMS``.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from training.data.records import LONE_SURROGATE, Completion, Message, Record
from training.data.values import (
    as_answer,
    as_flag,
    as_messages,
    as_number,
    as_prompt,
    as_rank,
    as_text,
    as_weight,
    kind,
)

MAX_COMPLETIONS = 64

Row = Mapping[str, Any]
Content = tuple[tuple[Message, ...], tuple[Completion, ...]]


@dataclass(frozen=True)
class Form:
    """``needs``: for each column that a row must have, the names it may go by. ``also``: columns that are read if there."""

    needs: tuple[tuple[str, ...], ...]
    read: Callable[[Row], Content]
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(" or ".join(names) for names in self.needs)

    def fits(self, columns: frozenset[str]) -> bool:
        return all(any(name in columns for name in names) for names in self.needs)


def recognise(columns: Iterable[str]) -> str | None:
    """The form of a row with these columns, in whatever order, or None. Where several fit, the first of FORMS wins."""
    found = frozenset(columns)
    return next((name for name, form in FORMS.items() if form.fits(found)), None)


def parse(row: Row, form: str) -> Record:
    """One row of a file in ``form`` → a record. Raises ValueError with the reason; the reason quotes no text."""
    known = FORMS[form]
    for names in known.needs:
        for name in names:
            if row.get(name) is not None:
                break
        else:
            null = next((name for name in names if name in row), None)
            raise ValueError(f"'{null}' is null" if null else f"'{names[0]}' is missing")
    prompt, completions = known.read(row)
    weight = row.get("weight")
    record = Record(prompt, completions, 1.0 if weight is None else as_weight(weight))
    try:
        record.id  # noqa: B018 - canonical JSON refuses what has no bytes
    except ValueError:
        raise ValueError(LONE_SURROGATE) from None
    return record


# ------------------------------------------------------------------------------------------------ preferences


def _pairs(row: Row) -> Content:
    prompt = as_prompt(row["prompt"])
    sides = {name: row[name] for name in ("chosen", "rejected")}
    if any(isinstance(side, list) and len(side) > 1 for side in sides.values()):
        whole = {name: as_messages(side, name) if isinstance(side, list) else () for name, side in sides.items()}
        before = {messages[:-1] for messages in whole.values() if len(messages) > 1}
        shared = next(iter(before)) if len(before) == 1 else None
        if shared == prompt or (shared and len(prompt) == 1 and isinstance(row["prompt"], str) and prompt[0] in shared):
            prompt = shared  # the whole conversations, the prompt repeated in them
            sides = {name: side[-1:] if isinstance(side, list) else side for name, side in sides.items()}
    return prompt, _ranked(row, as_answer(sides["chosen"], "chosen"), as_answer(sides["rejected"], "rejected"))


_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def _transcripts(row: Row) -> Content:
    chosen, rejected = _conversation(row["chosen"], "chosen"), _conversation(row["rejected"], "rejected")
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if not messages or messages[-1].role != "assistant":
            raise ValueError(f"'{name}' doesn't end with an assistant turn")
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("'chosen' and 'rejected' differ before their last assistant turn")
    return chosen[:-1], _ranked(row, chosen[-1].content, rejected[-1].content)


def _conversation(value: Any, name: str) -> tuple[Message, ...]:
    """A list of messages, or a transcript: turns that begin with 'Human: ' or 'Assistant: ' after an empty line."""
    if not isinstance(value, str):
        return as_messages(value, name)
    marks = list(_TURN.finditer(value))
    if not marks or value[: marks[0].start()].strip():
        raise ValueError(f"'{name}' doesn't begin with 'Human:' or 'Assistant:'")
    ends = [mark.start() for mark in marks[1:]] + [len(value)]
    return tuple(Message(_SPEAKERS[mark[1]], value[mark.end() : end]) for mark, end in zip(marks, ends, strict=True))


def _ranked(row: Row, chosen: str, rejected: str) -> tuple[Completion, ...]:
    """Two completions with their scores, where both have one that orders them, else with the ranks 1 and 2."""
    high, low = row.get("score_chosen"), row.get("score_rejected")
    if high is not None and low is not None:
        better, worse = as_number(high, "score_chosen"), as_number(low, "score_rejected")
        if better < worse:
            raise ValueError("'score_chosen' is lower than 'score_rejected'")
        if better > worse:
            return Completion(chosen, score=better), Completion(rejected, score=worse)
    return Completion(chosen, rank=1), Completion(rejected, rank=2)


def _sentences(row: Row) -> Content:
    good, bad = (as_text(row[name], name) for name in ("sentence_good", "sentence_bad"))
    return (), (Completion(good, rank=1), Completion(bad, rank=2))


_GRADES = {"scores": "score", "ranks": "rank", "labels": "label", "models": "model"}


def _graded(row: Row) -> Content:
    name = "completions" if row.get("completions") is not None else "responses"
    items = row[name]
    if not isinstance(items, list):
        raise ValueError(f"'{name}' is {kind(items)}, not a list")
    if len(items) > MAX_COMPLETIONS:
        raise ValueError(f"{len(items)} completions; at most {MAX_COMPLETIONS} are allowed")
    for column, key in _GRADES.items():
        if (values := row.get(column)) is not None:
            items = _beside(items, name, values, column, key)
    return as_prompt(row["prompt"]), tuple(_completion(item, f"{name}[{i}]") for i, item in enumerate(items))


def _beside(items: list[Any], name: str, values: Any, column: str, key: str) -> list[Any]:
    """The completions, each with its grade from a list that stands beside theirs."""
    if not isinstance(values, list):
        raise ValueError(f"'{column}' is {kind(values)}, not a list")
    if len(values) != len(items):
        raise ValueError(f"'{column}' has {len(values)} entries for {len(items)} of '{name}'")
    found = []
    for i, (item, value) in enumerate(zip(items, values, strict=True)):
        item = {"text": item} if isinstance(item, str) else {"messages": item} if isinstance(item, list) else item
        if not isinstance(item, Mapping):
            raise ValueError(f"'{name}[{i}]' is {kind(item)}, neither text nor an object")
        if item.get(key) is not None and value is not None:
            raise ValueError(f"'{name}[{i}]' has a '{key}' of its own and one in '{column}'")
        found.append(item if value is None else {**item, key: value})
    return found


def _completion(item: Any, name: str) -> Completion:
    if isinstance(item, str):
        return Completion(item)
    if not isinstance(item, Mapping):
        raise ValueError(f"'{name}' is {kind(item)}, not an object")
    given = {key: value for key, value in item.items() if value is not None}
    if ("text" in given) == ("messages" in given):
        raise ValueError(f"'{name}' needs either 'text' or 'messages'")
    if sum(key in given for key in ("score", "rank", "label")) > 1:
        raise ValueError(f"'{name}' has more than one of 'score', 'rank' and 'label'")
    return Completion(
        as_answer(given.get("text", given.get("messages")), name),
        None if "score" not in given else as_number(given["score"], f"{name}.score"),
        None if "rank" not in given else as_rank(given["rank"], f"{name}.rank"),
        None if "label" not in given else as_flag(given["label"], f"{name}.label"),
        None if "model" not in given else as_text(given["model"], f"{name}.model"),
    )


def _labelled(row: Row) -> Content:
    answer = as_answer(row["completion"], "completion")
    return as_prompt(row["prompt"]), (Completion(answer, label=as_flag(row["label"], "label")),)


# ------------------------------------------------------------------------------------------------ SFT


def _one(row: Row) -> Content:
    return as_prompt(row["prompt"]), (Completion(as_answer(row["completion"], "completion")),)


def _instruction(row: Row) -> Content:
    """The prompt is the instruction; an input that isn't empty stands below it, an empty line between."""
    instruction, output = as_text(row["instruction"], "instruction"), as_text(row["output"], "output")
    more = "" if row.get("input") is None else as_text(row["input"], "input")
    return (Message("user", f"{instruction}\n\n{more}" if more else instruction),), (Completion(output),)


def _chat(row: Row) -> Content:
    return _last_answer(as_messages(row["messages"], "messages"), "messages")


_SPOKEN_BY = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "function", "function_response", "observation"), "tool"),
}


def _conversations(row: Row) -> Content:
    """ShareGPT's ``{from, value}``, or ``{role, content}``; a column ``system`` opens the conversation."""
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise ValueError(f"'conversations' is {kind(turns)}, not a list")
    messages = [] if not row.get("system") else [Message("system", as_text(row["system"], "system"))]
    for i, turn in enumerate(turns):
        if isinstance(turn, Mapping) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str):
            role = _SPOKEN_BY.get(turn["from"].lower())
            if role is None:
                raise ValueError(f"'conversations[{i}].from' is none of {', '.join(_SPOKEN_BY)}")
            messages.append(Message(role, turn["value"]))
        else:
            messages += as_messages(turns[i : i + 1], "conversations", "'from' and 'value'", i)
    return _last_answer(tuple(messages), "conversations")


def _last_answer(messages: tuple[Message, ...], name: str) -> Content:
    if not messages or messages[-1].role != "assistant":
        raise ValueError(f"'{name}' doesn't end with an assistant turn")
    return messages[:-1], (Completion(messages[-1].content),)


def _text(row: Row) -> Content:
    return (), (Completion(as_text(row["text"], "text")),)


# ------------------------------------------------------------------------------------------------ the table

_SCORES = ("score_chosen", "score_rejected")
# Where a row has the columns of several forms, the earlier wins: the one that says more comes first.
FORMS: dict[str, Form] = {
    "pairs": Form((("prompt",), ("chosen",), ("rejected",)), _pairs, _SCORES),
    "transcripts": Form((("chosen",), ("rejected",)), _transcripts, _SCORES),
    "graded": Form((("prompt",), ("completions", "responses")), _graded, tuple(_GRADES)),
    "labelled": Form((("prompt",), ("completion",), ("label",)), _labelled),
    "completion": Form((("prompt",), ("completion",)), _one),
    "sentences": Form((("sentence_good",), ("sentence_bad",)), _sentences),
    "instruction": Form((("instruction",), ("output",)), _instruction, ("input",)),
    "messages": Form((("messages",),), _chat),
    "conversations": Form((("conversations",),), _conversations, ("system",)),
    "text": Form((("text",),), _text),
}
SFT_FORMS = frozenset({"completion", "instruction", "messages", "conversations", "text"})  # one ungraded completion
COLUMNS = frozenset(name for form in FORMS.values() for names in (*form.needs, form.also) for name in names) | {
    "weight"
}
