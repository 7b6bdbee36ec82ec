"""Text to token ids: the prompt through the chat template once, each completion alone, the ids joined.

Nothing is found by slicing a joint tokenisation (TRL issue 5213): where a completion begins is known because it was
tokenised on its own. A whole completion ends with exactly one end-of-turn token; one that was cut has none, so that
the model is never taught to stop in the middle of a sentence.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

from training.data.records import Example, Message, Record, graded

# For tokenizers without a template of their own. Saved with every model that we write.
CHAT_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

T = TypeVar("T")
# What becomes a row: record id, prompt, completions, weight.
Row = tuple[str, Iterable[Message], Sequence[str], float]
TOGETHER = 256  # rows that are tokenised in one call


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
        self._numbers: dict[int, int] = {}
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

    def prompts(self, prompts: Sequence[Iterable[Message]]) -> list[list[int]]:
        """Ids of each whole prompt with the header of the answer to come; at most one BOS.

        Without any message (plain text) nothing is rendered: one BOS, or the EOS as a separator where there is no BOS, since
        the first token of a completion is predicted from something.
        """
        bos = self.tokenizer.bos_token_id
        turns = [[{"role": message.role, "content": message.content} for message in prompt] for prompt in prompts]
        rendered = [
            self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
            for turn in turns
            if turn
        ]
        tokenised = iter(self._ids(rendered))
        found = [next(tokenised) if turn else [self.tokenizer.eos_token_id if bos is None else bos] for turn in turns]
        for ids in found:
            while bos is not None and ids[:2] == [bos, bos]:
                ids.pop(0)
        return found

    def completions(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each completion with exactly one end-of-turn token."""
        return [[*self._body(text, ids), self.end] for text, ids in zip(texts, self._ids(texts), strict=True)]

    def _body(self, text: str, ids: list[int]) -> list[int]:
        while ids and ids[-1] == self.end:
            ids.pop()
        if self.end in ids:  # its name stands inside the text: there it is text like any other
            ids = list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        return ids

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """All in one call: called for one text, a tokenizer spends most of its time around it."""
        return (
            [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []
        )

    def prompt(self, messages: Iterable[Message]) -> list[int]:
        """``prompts`` for one."""
        return self.prompts([messages])[0]

    def completion(self, text: str) -> list[int]:
        """``completions`` for one."""
        return self.completions([text])[0]

    def join_all(self, rows: Sequence[Row]) -> list[Encoded]:
        """Rows cut to ``max_tokens``.

        The prompt gives way first, from the left, down to a quarter of the budget, and keeps its opening special
        tokens; then the completions are cut from the right, without the end-of-turn token.
        """
        prompts = self.prompts([messages for _, messages, _, _ in rows])
        completions = iter(self.completions([text for _, _, texts, _ in rows for text in texts]))
        return [
            self._cut(record_id, prompt, list(islice(completions, len(texts))), weight)
            for (record_id, _, texts, weight), prompt in zip(rows, prompts, strict=True)
        ]

    def join(self, record_id: str, messages: Iterable[Message], texts: Sequence[str], weight: float) -> Encoded:
        """``join_all`` for one row."""
        return self.join_all([(record_id, messages, texts, weight)])[0]

    def _cut(self, record_id: str, prompt: list[int], completions: list[list[int]], weight: float) -> Encoded:
        over = len(prompt) + max(len(ids) for ids in completions) - self.max_tokens
        if over > 0:
            prompt = self._cut_left(prompt, max(len(prompt) - over, self.max_tokens // 4))
            completions = [ids[: self.max_tokens - len(prompt)] for ids in completions]
        return Encoded(record_id, self._kept(prompt), tuple(map(self._kept, completions)), weight, cut=over > 0)

    def _kept(self, ids: list[int]) -> tuple[int, ...]:
        """Every number once in memory: of a million rows nothing else takes as much."""
        return tuple(map(self._numbers.setdefault, ids, ids))

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
        for some in _together(records):
            grades = [graded(record) for record in some]
            given: list[Row] = [
                (record.id, record.prompt, [completion.text for completion, _ in found], record.weight)
                for record, (_, found) in zip(some, grades, strict=True)
                if found
            ]
            joined = iter(encoder.join_all(given))
            for record, (kind, found) in zip(some, grades, strict=True):
                if found:
                    yield _distinct(replace(next(joined), grades=tuple(grade for _, grade in found), kind=kind))
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
    rows = (
        row
        for some in _together(examples)
        for row in encoder.join_all([(e.record_id, e.prompt, (e.completion,), e.weight) for e in some])
    )
    return _sift(rows, lambda _: True)


def _together(items: Iterable[T]) -> Iterator[list[T]]:
    source = iter(items)
    while some := list(islice(source, TOGETHER)):
        yield some


def _sift(rows: Iterable[Encoded], useful: Callable[[Encoded], bool]) -> Encoding:
    kept, dropped, cut = [], [], 0
    for row in rows:
        cut += row.cut
        if row.prompt and row.completions and all(row.completions) and useful(row):
            kept.append(row)
        else:
            dropped.append(row.record_id)
    return Encoding(tuple(kept), cut, tuple(dropped))
