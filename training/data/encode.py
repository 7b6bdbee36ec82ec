"""Text to token ids: the prompt through the chat template once, each completion alone, the ids joined.

Nothing is found by slicing a joint tokenisation (TRL issue 5213): where a completion begins is known because it was
tokenised on its own. A whole completion ends with exactly one end-of-turn token; one that was cut has none, so that
the model is never taught to stop in the middle of a sentence.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from training.data.records import Example, Message, Record, graded

# For tokenizers without a template of their own. Saved with every model that we write.
CHAT_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Encoded:
    """One prompt and its K completions as token ids: one example of an optimiser step.

    ``grades`` has a number per completion (more is better) and ``kind`` says what it is: a score, a negated rank, a
    label (1 or 0). An SFT row has neither. ``cut``: whether anything was truncated.
    """

    record_id: str
    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    weight: float = 1.0
    cut: bool = False
    grades: tuple[float, ...] = ()
    kind: str = ""

    @property
    def longest(self) -> int:
        """Tokens to compute for the prompt with its longest completion, whose last token is never fed."""
        return len(self.prompt) + max(len(ids) for ids in self.completions) - 1

    @property
    def repeated(self) -> int:
        """Tokens to compute where each completion repeats the prompt."""
        return len(self.completions) * (len(self.prompt) - 1) + sum(len(ids) for ids in self.completions)

    @property
    def unique(self) -> int:
        """Tokens to compute where the prompt is there once."""
        return len(self.prompt) - len(self.completions) + sum(len(ids) for ids in self.completions)


@dataclass(frozen=True)
class Encoding:
    """All encoded rows of a step, and what truncation did to them."""

    rows: tuple[Encoded, ...]
    cut: int
    dropped: tuple[str, ...]

    @property
    def facts(self) -> dict[str, int]:
        return {"rows": len(self.rows), "truncated": self.cut, "dropped_after_truncation": len(self.dropped)}


class Encoder:
    """A tokenizer with what is needed to join prompts and completions.

    Raises ValueError where the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token; set 'eos_token' in its tokenizer_config.json")
        if not tokenizer.chat_template:
            tokenizer.chat_template = CHAT_TEMPLATE
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        # Some tokenizers (Phi-3) list their turn tokens among the added tokens only.
        added = (token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special)
        self.special = frozenset([*tokenizer.all_special_ids, *added])
        self.end = self._end_of_turn()

    def _end_of_turn(self) -> int:
        """The token that the chat template puts after an assistant's text (it may differ from ``eos_token``)."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "#"}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        suffix = text.rpartition("#")[2]
        ids = self.tokenizer(suffix, add_special_tokens=False)["input_ids"]
        return int(next((i for i in ids if i in self.special), self.tokenizer.eos_token_id))

    def prompt(self, messages: Iterable[Message]) -> list[int]:
        """Ids of the whole prompt with the header of the answer to come; at most one BOS."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        ids = list(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))
        bos = self.tokenizer.bos_token_id
        while bos is not None and ids[:2] == [bos, bos]:
            ids.pop(0)
        return ids

    def completion(self, text: str) -> list[int]:
        """Ids of one completion with exactly one end-of-turn token."""
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        while ids and ids[-1] == self.end:
            ids.pop()
        if self.end in ids:  # its name stands inside the text: there it is text like any other
            ids = list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        return [*ids, self.end]

    def join(self, record_id: str, messages: Iterable[Message], texts: Iterable[str], weight: float) -> Encoded:
        """One row, cut to ``max_tokens``.

        The prompt gives way first, from the left, down to a quarter of the budget, and keeps its opening special
        tokens; then the completions are cut from the right, without the end-of-turn token.
        """
        prompt = self.prompt(messages)
        completions = [self.completion(text) for text in texts]
        longest = max(len(ids) for ids in completions)
        over = len(prompt) + longest - self.max_tokens
        if over <= 0:
            return Encoded(record_id, tuple(prompt), tuple(map(tuple, completions)), weight)
        prompt = self._cut_left(prompt, max(len(prompt) - over, self.max_tokens // 4))
        room = self.max_tokens - len(prompt)
        cut = [ids if len(ids) <= room else ids[:room] for ids in completions]
        return Encoded(record_id, tuple(prompt), tuple(map(tuple, cut)), weight, cut=True)

    def _cut_left(self, ids: list[int], keep: int) -> list[int]:
        if len(ids) <= keep:
            return ids
        opening = 0
        while opening < len(ids) and ids[opening] in self.special:
            opening += 1
        opening = min(opening, keep // 2)
        return ids[:opening] + ids[len(ids) - (keep - opening) :]


def encode_records(encoder: Encoder, records: Iterable[Record], useful: Callable[[Encoded], bool]) -> Encoding:
    """A row for each record, its graded completions with their grades.

    Completions that are the same tokens after the cut are one where their grades agree, and none where they contradict.
    A row that is not ``useful`` then (no two different grades, say) is dropped and named.
    """

    def rows() -> Iterator[Encoded]:
        for record in records:
            kind, completions = graded(record)
            if completions:
                texts = [completion.text for completion, _ in completions]
                row = encoder.join(record.id, record.prompt, texts, record.weight)
                yield _distinct(replace(row, grades=tuple(grade for _, grade in completions), kind=kind))
            else:
                yield Encoded(record.id, (), ())

    return _sift(rows(), useful)


def _distinct(row: Encoded) -> Encoded:
    found: dict[tuple[int, ...], set[float]] = {}
    for ids, grade in zip(row.completions, row.grades, strict=True):
        found.setdefault(ids, set()).add(grade)
    if len(found) == len(row.completions):
        return row
    kept = {ids: next(iter(grades)) for ids, grades in found.items() if len(grades) == 1}
    return replace(row, completions=tuple(kept), grades=tuple(kept.values()))


def encode_examples(encoder: Encoder, examples: Iterable[Example]) -> Encoding:
    """Rows with one completion. One that has no token left after the cut is dropped and named."""
    return _sift((encoder.join(e.record_id, e.prompt, (e.completion,), e.weight) for e in examples), lambda _: True)


def _sift(rows: Iterable[Encoded], useful: Callable[[Encoded], bool]) -> Encoding:
    kept, dropped, cut = [], [], 0
    for row in rows:
        cut += row.cut
        if row.prompt and row.completions and all(row.completions) and useful(row):
            kept.append(row)
        else:
            dropped.append(row.record_id)
    return Encoding(tuple(kept), cut, tuple(dropped))
