"""Counting the tokens of rows: exactly where a limit is near, by a bound that holds where it is far.

Two bounds, for byte-level BPE alone, whose type proves them. A token covers at least a byte, so a text has no more tokens
than bytes. And where text is split before every space (GPT-2's pattern), each word is tokenised apart from the others:
a text has no more tokens than its words have, which are looked up, and its other white space has bytes.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from training.data.encode import Encoder
from training.data.records import Message, Record, graded, sft, teaches

_WORDS = 400_000  # remembered at most
_WORD = 48  # characters; a longer one counts as its bytes


class Counter:
    """Token counts with one tokenizer, as ``Encoder`` encodes."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.encoder = Encoder(tokenizer, max_tokens=0)  # nothing is cut here
        self._texts = _quick(tokenizer) or _plainly(tokenizer)
        self._factor = tokens_a_byte(tokenizer)
        self._by_word = self._factor is not None and splits_at_spaces(tokenizer)
        self._spaced: dict[str, int] = {}
        self._either: dict[str, int] = {}
        self._overheads: dict[tuple[str, ...], int | None] = {}
        end = tokenizer.added_tokens_decoder.get(self.encoder.end)
        self._end = end.content if end is not None and not (end.normalized and self._factor != 1) else ""

    def counts(self, records: Sequence[Record], needed: int, limit: int) -> list[int | None]:
        """Tokens of each row's prompt and longest completion; None where the chat template refuses the prompt.

        ``needed`` is 1 for SFT rows. Laws: more than ``limit`` is exact, ``len(prompt) + max(len(completion))`` of
        ``Encoder.join`` without a limit; what is at most ``limit`` is at least that and at most ``limit``.
        """
        found: list[int | None] = [self._bound(record, self._bytes) for record in records]
        if self._by_word:
            near = [place for place, count in enumerate(found) if count is not None and count > limit]
            self._learn([text for place in near for text in _all_texts(records[place])])
            for place in near:
                found[place] = self._bound(records[place], self._in_words)
        exact = [place for place, count in enumerate(found) if count is None or count > limit]
        for place, count in zip(exact, self.exact([records[place] for place in exact], needed), strict=True):
            found[place] = count
        return found

    def exact(self, records: Sequence[Record], needed: int) -> list[int | None]:
        """The counts, all by tokenising."""
        rendered = [self._rendered(record.prompt) for record in records]
        given = [text for text in rendered if text is not None]
        prompts = iter([self._prompt(*pair) for pair in zip(self._texts(given), given, strict=True)])
        rows = [_learnt(record, needed) for record in records]
        texts = [text for row in rows for text in row]
        lengths = iter([self._completion(*pair) for pair in zip(self._texts(texts), texts, strict=True)])
        longest = [max([next(lengths) for _ in row]) for row in rows]
        return [None if text is None else next(prompts) + most for text, most in zip(rendered, longest, strict=True)]

    def _rendered(self, prompt: Sequence[Message]) -> str | None:
        from jinja2 import TemplateError

        turns = [{"role": message.role, "content": message.content} for message in prompt]
        try:
            return str(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
        except (TemplateError, TypeError, IndexError):
            return None

    def _prompt(self, ids: Any, text: str) -> int:
        """Without the second of two BOS tokens, as in ``Encoder.prompt``."""
        bos, first = self.tokenizer.bos_token_id, 0
        if bos is not None:
            head = ids.ids if hasattr(ids, "ids") else ids
            while head[first : first + 2] == [bos, bos]:
                first += 1
        return len(ids) - first

    def _completion(self, ids: Any, text: str) -> int:
        """With one end-of-turn token; where its name stands in the text ``Encoder.completion`` knows better."""
        if self._end and self._end not in text:
            return len(ids) + 1
        held = self.encoder.end in (ids.ids if hasattr(ids, "ids") else ids)
        return len(self.encoder.completion(text)) if held else len(ids) + 1

    # -------------------------------------------------------------------------------------------- bounds

    def _bound(self, record: Record, most: Callable[[str], int]) -> int | None:
        if self._factor is None:
            return None
        roles = tuple([message.role for message in record.prompt])
        if roles not in self._overheads:
            self._overheads[roles] = self._overhead(roles)
        overhead = self._overheads[roles]
        if overhead is None:
            return None
        prompt = sum([most(message.content) + self._edges(message.content) for message in record.prompt])
        return overhead + prompt + max([most(completion.text) for completion in record.completions]) + 1

    def _overhead(self, roles: tuple[str, ...]) -> int | None:
        """Tokens that the template adds to turns of these roles, at most; None unless it holds each content once.

        What a template adds is taken to depend on the roles alone. Its bytes bound its tokens.
        """
        probes = [f"Probe{place}x" for place in range(len(roles))]
        text = self._rendered(tuple(map(Message, roles, probes)))
        if text is None:
            return None
        rest = text
        for probe in probes:
            _, found, rest = rest.partition(probe)
            if not found or text.count(probe) != 1:
                return None
        return (self._factor or 1) * (len(text.encode("utf-8")) - sum(map(len, probes)))

    def _edges(self, text: str) -> int:
        """The bytes of the first and the last word, which are tokenised together with the template beside them."""
        words = text.split(None, 1)[:1] + text.rsplit(None, 1)[-1:]
        return sum(map(self._bytes, words))

    def _bytes(self, text: str) -> int:
        return len(text) if text.isascii() else (self._factor or 1) * len(text.encode("utf-8"))

    def _in_words(self, text: str) -> int:
        """The tokens of the words, each with or without a space before it, and the bytes of all other white space.

        A gap of k characters before a word is k - 1 tokens at most and the word with a space, or, where the last one
        is no space, k tokens and the word alone, which only a line's first word may be where there are no tabs.
        """
        words = text.split()
        spaces, tabs = text.count(" "), text.count("\t")
        others = tabs + text.count("\n") + text.count("\r")
        if len(text) - sum(map(len, words)) != spaces + others:  # rarer white space, on which the patterns disagree
            return self._bytes(text)
        spaced, either = self._spaced, self._either
        total = spaces + others - max(0, len(words) - 1) + others
        for line in [text] if tabs or others == 0 else re.split("[\r\n]", text):
            some = words if others == 0 or tabs else line.split()
            alone = some if tabs else some[:1]
            total += sum([either[word] if word in either else self._bytes(word) + 1 for word in alone])
            total += sum([spaced[word] if word in spaced else self._bytes(word) + 1 for word in some[len(alone) :]])
        return total

    def _learn(self, texts: list[str]) -> None:
        """Count the tokens of words that are new, with a space before them and without."""
        if len(self._spaced) > _WORDS:
            self._spaced.clear()
            self._either.clear()
        words = {word for text in texts for word in text.split()} - self._spaced.keys()
        new = [word for word in words if len(word) <= _WORD]
        alone, spaced = self._texts(new), self._texts([f" {word}" for word in new])
        for word, one, other in zip(new, alone, spaced, strict=True):
            self._spaced[word] = len(other)
            self._either[word] = max(len(one), len(other))


def _all_texts(record: Record) -> list[str]:
    return [message.content for message in record.prompt] + [completion.text for completion in record.completions]


def _learnt(record: Record, needed: int) -> list[str]:
    """The completions that training reads, never none."""
    if needed == 1 and teaches(record):
        return [sft(record).completion]
    return [completion.text for completion, _ in graded(record)[1]] or [c.text for c in record.completions]


# ------------------------------------------------------------------------------------------------ tokenizers


def _plainly(tokenizer: Any) -> Callable[[list[str]], list[Any]]:
    def ids(texts: list[str]) -> list[Any]:
        return list(tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else []

    return ids


def _quick(tokenizer: Any) -> Callable[[list[str]], list[Any]] | None:
    """The same through the tokenizer's core, which makes no lists of ids; None where its class adds to that."""
    from transformers import PreTrainedTokenizerFast

    own = PreTrainedTokenizerFast
    if not isinstance(tokenizer, own) or type(tokenizer)._encode_plus is not own._encode_plus:
        return None
    core = tokenizer.backend_tokenizer

    def encodings(texts: list[str]) -> list[Any]:
        core.no_truncation()
        core.no_padding()
        core.encode_special_tokens = False
        return list(core.encode_batch_fast(texts, add_special_tokens=False))

    return encodings


def tokens_a_byte(tokenizer: Any) -> int | None:
    """How many tokens a byte of text makes at most, for all texts; None where the tokenizer's type proves nothing.

    Byte-level BPE begins with a token a byte and only merges: 1, or 3 where it composes characters (NFC) before, which
    may make a text three times as long. ASCII stays as it is then, too.
    """
    spec = _spec(tokenizer)
    steps = _steps(spec)
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    if not levels or spec["model"]["type"] != "BPE":
        return None
    if {step.get("type") for step in steps} - {"ByteLevel", "Split", "Digits"}:
        return None
    if any(step.get("add_prefix_space") for step in levels) or not _whole_alphabet(spec["model"]["vocab"]):
        return None
    return {"": 1, "NFC": 3}.get((spec["normalizer"] or {}).get("type", ""))


def splits_at_spaces(tokenizer: Any) -> bool:
    """Whether no token holds a character and white space behind it, or white space other than one space before it."""
    steps = _steps(_spec(tokenizer))
    return len(steps) == 1 and steps[0].get("type") == "ByteLevel" and bool(steps[0].get("use_regex"))


def _spec(tokenizer: Any) -> dict[str, Any]:
    core = getattr(tokenizer, "backend_tokenizer", None)
    return (
        {"model": {"type": ""}, "normalizer": None, "pre_tokenizer": None}
        if core is None
        else json.loads(core.to_str())
    )


def _steps(spec: dict[str, Any]) -> list[dict[str, Any]]:
    steps = spec["pre_tokenizer"] or {}
    return list(steps["pretokenizers"]) if steps.get("type") == "Sequence" else [steps]


def _whole_alphabet(vocabulary: Any) -> bool:
    from tokenizers.pre_tokenizers import ByteLevel

    return all(letter in vocabulary for letter in ByteLevel.alphabet())
