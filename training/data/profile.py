"""One pass over the snapshots: a flat row of facts per record, and the rules that name every failing record.

A fact is a whole number (or null where it makes no sense, as the pairs of an SFT row); a rule is a bound on one fact.
So the same rules can be read by a person, applied here to every row, and handed to Great Expectations. The profile
holds no text.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.records import LONE_SURROGATE, Message, Record, ordered
from training.data.snapshot import read_snapshot
from training.data.split import digest_in_holdout, prompt_digest
from training.settings import Holdout, ValidationSettings

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

PARTS = ("preferences", "sft", "holdout")
# Every control character (Unicode category Cc) but tab, newline and carriage return; and the replacement character,
# which says that text was lost before it came here. Half surrogates never get this far: see LONE_SURROGATE.
_BAD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")


@dataclass(frozen=True)
class Rule:
    """A bound on one fact; rows where the fact is null pass. ``sentence`` says what holds of a good record."""

    name: str
    fact: str
    sentence: str
    minimum: int | None = None
    maximum: int | None = None


def rules(settings: ValidationSettings) -> tuple[Rule, ...]:
    """The rules in the order of the fields of ``ValidationSettings``, which they are named after."""
    long = settings.max_characters
    return (
        Rule("unreadable", "unreadable", "Every line is a record of its file's form.", maximum=0),
        Rule("empty_prompt", "question_characters", "The prompt's last message says something.", minimum=1),
        Rule("empty_completion", "shortest_completion", "Every completion says something.", minimum=1),
        Rule(
            "wrong_roles",
            "wrong_roles",
            "A prompt is an optional system message, then user and assistant in turn, and a user has the last word.",
            maximum=0,
        ),
        Rule(
            "too_few_completions",
            "missing_completions",
            "A preference has two completions or more, an SFT row one or more.",
            maximum=0,
        ),
        Rule("no_preference", "ordered_pairs", "At least one completion is graded above another one.", minimum=1),
        Rule("identical_completions", "identical_pairs", "No completion is preferred to the same text.", maximum=0),
        Rule("duplicate", "occurrence", "A record stands once in its part (the first one stays).", maximum=1),
        Rule(
            "contradiction",
            "contradictions",
            "No other record of the same prompt prefers the two completions the other way round.",
            maximum=0,
        ),
        Rule("in_holdout", "prompt_in_holdout", "No training record has the prompt of a held-out one.", maximum=0),
        Rule(
            "bad_characters",
            "bad_characters",
            "The text has no control characters (but tab and line ends), no U+FFFD and no half surrogates.",
            maximum=0,
        ),
        Rule("too_long", "characters", f"Prompt and longest completion have at most {long} characters.", maximum=long),
    )


_FACTS = (*(rule.fact for rule in rules(ValidationSettings())), "completions", "pairs")


@dataclass(frozen=True)
class Profile:
    """``table``: a row per line of every part (part, row, id, split, source, line, facts), in stored order.

    ``failing``: rule name → whether each row breaks it. ``quarantined``: whether each row is put aside, for whichever
    rules. ``faulty``: the same, without rows that only have a held-out prompt, which are nobody's fault.
    """

    table: "pd.DataFrame"
    failing: "dict[str, np.ndarray[Any, Any]]"
    quarantined: "np.ndarray[Any, Any]"
    faulty: "np.ndarray[Any, Any]"


def profile(parts: Mapping[str, Path], settings: ValidationSettings, holdout: Holdout) -> Profile:
    """Profile the snapshots ``parts`` ('preferences', and where there are any 'sft' and 'holdout') and apply the rules.

    Raises ValueError on an unknown part and where 'holdout' is given without files of its own, or the reverse.
    """
    import pandas as pd

    unknown = set(parts) - set(PARTS)
    if unknown or "preferences" not in parts or ("holdout" in parts) != bool(holdout.sources):
        raise ValueError(f"parts {sorted(parts)} don't fit: preferences, sft if any, holdout if it has its own sources")
    facts: list[dict[str, Any]] = []
    prompts: list[str | None] = []
    for part in (name for name in PARTS if name in parts):
        _part(part, parts[part], holdout.share, facts, prompts)
    held = {digest for fact, digest in zip(facts, prompts, strict=True) if fact["split"] == "holdout" and digest}
    for fact, digest in zip(facts, prompts, strict=True):
        if fact["split"] == "train":
            fact["prompt_in_holdout"] = int(digest in held)
    table = pd.DataFrame(facts, columns=["part", "row", "id", "split", "source", "line", *_FACTS])
    table = table.astype(dict.fromkeys(_FACTS, "float64"))  # null is NaN
    return _judged(table, settings)


def _judged(table: "pd.DataFrame", settings: ValidationSettings) -> Profile:
    import numpy as np

    failing: dict[str, np.ndarray[Any, Any]] = {}
    quarantined = np.zeros(len(table), dtype=bool)
    faulty = quarantined.copy()
    for rule in rules(settings):
        values = table[rule.fact].to_numpy()
        low = values < rule.minimum if rule.minimum is not None else np.zeros(len(values), dtype=bool)
        high = values > rule.maximum if rule.maximum is not None else np.zeros(len(values), dtype=bool)
        failing[rule.name] = low | high  # comparisons with NaN are false: null passes
        if getattr(settings, rule.name) != "warn":
            quarantined |= failing[rule.name]
            if rule.name != "in_holdout":
                faulty |= failing[rule.name]
    return Profile(table, failing, quarantined, faulty)


def _part(
    part: str, directory: Path, share: float | None, facts: list[dict[str, Any]], prompts: list[str | None]
) -> None:
    seen: dict[str, int] = {}
    # (prompt, better, worse) as a digest → its reverse and the facts of the records that say so
    edges: dict[bytes, tuple[bytes, list[dict[str, Any]]]] = {}
    for number, row in enumerate(read_snapshot(directory)):
        fact: dict[str, Any] = {"part": part, "row": number, "id": row.id, "split": None}
        fact |= {
            "source": row.provenance.source,
            "line": row.provenance.line,
            "unreadable": int(row.reason is not None),
        }
        facts.append(fact)
        if row.reason is not None:
            fact["bad_characters"] = 1 if row.reason == LONE_SURROGATE else None
            prompts.append(None)
            continue
        record = row.record
        digest = prompt_digest(record.prompt)
        prompts.append(digest)
        held = part == "holdout" or (part == "preferences" and share is not None and digest_in_holdout(digest, share))
        fact["split"] = "holdout" if held else "train"
        seen[row.id] = fact["occurrence"] = seen.get(row.id, 0) + 1
        fact |= _text_facts(record, 1 if part == "sft" else 2)
        if part != "sft":
            fact |= _preference_facts(record)
            fact["contradictions"] = 0
            for edge, reverse in _edges(digest, record):
                edges.setdefault(edge, (reverse, []))[1].append(fact)
    for reverse, holders in edges.values():
        others = edges.get(reverse, (b"", []))[1]
        for fact in holders:
            fact["contradictions"] += any(other is not fact for other in others)


def _text_facts(record: Record, needed: int) -> dict[str, Any]:
    texts = [completion.text for completion in record.completions]
    contents = [message.content for message in record.prompt]
    return {
        "question_characters": len(contents[-1].strip()) if contents else 0,
        "shortest_completion": min((len(text.strip()) for text in texts), default=None),
        "wrong_roles": _wrong_roles(record.prompt),
        "completions": len(texts),
        "missing_completions": max(0, needed - len(texts)),
        "bad_characters": sum(len(_BAD.findall(text)) for text in [*contents, *texts]),
        "characters": sum(map(len, contents)) + max(map(len, texts), default=0),
    }


def _preference_facts(record: Record) -> dict[str, Any]:
    both = ordered(record)
    return {
        "ordered_pairs": len(both) if len(record.completions) > 1 else None,
        "identical_pairs": sum(better.text.strip() == worse.text.strip() for better, worse in both),
        "pairs": sum(better.text != worse.text for better, worse in both),
    }


def _wrong_roles(prompt: tuple[Message, ...]) -> int:
    """How many turns are not the one expected there."""
    roles = [message.role for message in prompt]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns:
        return len(roles)  # a lone system message; no message at all is an empty prompt
    before = ["assistant", *turns[:-1]]
    faults = sum(
        turn != ("user" if last == "assistant" else "assistant") for turn, last in zip(turns, before, strict=True)
    )
    return faults + (turns[-1] != "user")


def _edges(digest: str, record: Record) -> set[tuple[bytes, bytes]]:
    """What the record prefers to what, and the reverse, as digests; whitespace around a text doesn't count."""

    def key(first: str, second: str) -> bytes:
        content = b"".join(hashlib.sha256(text.strip().encode("utf-8")).digest() for text in (first, second))
        return hashlib.sha256(bytes.fromhex(digest) + content).digest()[:16]

    return {
        (key(better.text, worse.text), key(worse.text, better.text))
        for better, worse in ordered(record)
        if better.text.strip() != worse.text.strip()
    }
