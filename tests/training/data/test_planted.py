"""Planted faults: what share of them is found, and how many clean rows are touched.

The generator shares no pattern with the rules: people come from Faker in many countries, secrets are built as their issuers
describe them, clean text is full of what only looks like a fault (dates, sums, versions, times, ISBNs, code, tables).
"""

import json
import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faker import Faker

from training.data.profile import Context, profile
from training.data.records import Record
from training.data.rules import rules
from training.data.settings import Holdout, Source, ValidationSettings
from training.data.snapshot import write_snapshot
from training.data.sources import read

HH = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "hh_harmless_base.jsonl.gz"
LOCALES = ("en_US", "en_GB", "de_DE", "fr_FR", "it_IT", "es_ES", "nl_NL", "pt_BR", "pl_PL", "sv_SE", "en_IN", "ja_JP")
SETTINGS = ValidationSettings.model_validate(
    {
        "max_characters": 6000,
        "max_quarantined": 1.0,
        "licence": "quarantine",
        "use": "product",
        "licences": {"product": ("MIT", "CC0-1.0")},
    }
)
Row = dict[str, Any]


class Writer:
    """Clean rows, and the means to spoil them; everything follows from the seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.people = [Faker(locale) for locale in LOCALES]
        for number, fake in enumerate(self.people):
            fake.seed_instance(seed * 100 + number)
        english = list(Faker("en_US").get_words_list())
        endings = ("", "", "ly", "s", "ing", "ness", "ful", "er", "able", "ment")
        self.words = [word + ending for word in english for ending in endings]
        self.number = 0

    def sentence(self, least: int = 6, most: int = 18) -> str:
        words = self.random.choices(self.words, k=self.random.randint(least, most))
        if self.random.random() < 0.3:
            words.insert(self.random.randrange(len(words)), self.near_miss())
        return " ".join(words).capitalize() + self.random.choice([".", ".", ".", "?", "!"])

    def near_miss(self) -> str:
        """What a careless detector takes for a person, an account or a key."""
        r = self.random
        return r.choice(
            [
                f"{r.randint(1, 28)}.{r.randint(1, 12)}.{r.randint(1990, 2030)}",
                f"{r.randint(1990, 2030)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}",
                f"{r.randint(0, 23)}:{r.randint(0, 59):02d}:{r.randint(0, 59):02d}",
                f"${r.randint(1, 999)},{r.randint(100, 999)}.{r.randint(10, 99)}",
                f"version {r.randint(0, 20)}.{r.randint(0, 20)}.{r.randint(0, 20)}",
                f"{r.randint(100, 999)} x {r.randint(100, 999)} = {r.randint(10000, 999999)}",
                f"ISBN 978-{r.randint(0, 9)}-{r.randint(10, 99)}-{r.randint(100000, 999999)}-{r.randint(0, 9)}",
                f"order {r.randint(10000, 99999)}",
                f"{r.randint(1, 99)}% of {r.randint(100, 9999)}",
                f"x[{r.randint(0, 9)}] += {r.randint(0, 99)}",
                f"#{r.randrange(16**6):06x}",
                f"{r.randint(10, 99)}th and {r.randint(1900, 2020)}s",
                f"@{r.choice(self.words)}",
                f"chapter {r.randint(1, 9)}.{r.randint(1, 9)}.{r.randint(1, 9)}.{r.randint(1, 9)}a",
            ]
        )

    def text(self, least: int = 2, most: int = 6) -> str:
        return " ".join(self.sentence() for _ in range(self.random.randint(least, most)))

    def clean(self) -> Row:
        self.number += 1
        row = {"prompt": self.text(1, 3), "chosen": self.text(), "rejected": self.text()}
        row |= {"licence": self.random.choice(["MIT", "CC0-1.0"])}
        if self.random.random() < 0.05:
            row |= {"subject": f"s{self.number}", "consent": "given", "legal_basis": "consent", "expires": "2031-05-01"}
        return row

    def put(self, what: str, lead: str = "") -> Row:
        """A clean row with something in the middle of one of its texts."""
        row = self.clean()
        name = self.random.choice(["prompt", "chosen", "rejected"])
        row[name] = f"{row[name]} {lead}{what}{self.random.choice(['', '.', ',', ' ok?'])} {self.sentence()}"
        return row

    def token(self, alphabet: str, size: int) -> str:
        return "".join(self.random.choices(alphabet, k=size))

    def person(self) -> Faker:
        return self.random.choice(self.people)


B62, HEX, B64 = string.ascii_letters + string.digits, "0123456789abcdef", string.ascii_letters + string.digits + "+/"


def _graded(w: Writer, *completions: Row) -> Row:
    return {"prompt": w.text(1, 2), "completions": list(completions), "licence": "MIT"}


def _key(w: Writer) -> str:
    """Keys as their issuers document them."""
    return w.random.choice(
        [
            lambda: "AKIA" + w.token(string.ascii_uppercase + "234567", 16),
            lambda: "ghp_" + w.token(B62, 36),
            lambda: "github_pat_" + w.token(B62, 22) + "_" + w.token(B62, 59),
            lambda: "AIza" + w.token(B62 + "-_", 35),
            lambda: "xoxb-" + w.token(string.digits, 12) + "-" + w.token(string.digits, 12) + "-" + w.token(B62, 24),
            lambda: "sk_live_" + w.token(B62, 24),
            lambda: "sk-proj-" + w.token(B62, 48),
            lambda: "glpat-" + w.token(B62 + "-_", 20),
            lambda: "hf_" + w.token(string.ascii_letters, 34),
            lambda: "npm_" + w.token(B62, 36),
            lambda: "SG." + w.token(B62 + "-_", 22) + "." + w.token(B62 + "-_", 43),
        ]
    )()


def _private_key(w: Writer) -> str:
    kind = w.random.choice(["RSA PRIVATE KEY", "PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY"])
    lines = "\n".join(w.token(B64, 64) for _ in range(6))
    return f"\n-----BEGIN {kind}-----\n{lines}\n-----END {kind}-----\n"


def _near(w: Writer) -> list[Row]:
    """A long row, and the same with one word in fifty another one."""
    row = w.clean() | {"chosen": w.text(12, 16), "rejected": w.text(12, 16)}

    def altered(text: str) -> str:
        words = text.split(" ")
        for place in range(7, len(words), 50):
            words[place] = w.random.choice(w.words)
        return " ".join(words)

    return [row, row | {name: altered(row[name]) for name in ("chosen", "rejected")}]


def _twice(w: Writer) -> list[Row]:
    row = w.clean()
    return [row, dict(row)]


def _opposite(w: Writer) -> list[Row]:
    row = w.clean()
    return [row, row | {"chosen": row["rejected"], "rejected": row["chosen"]}]


def _roles(w: Writer) -> Row:
    wrong = w.random.choice(
        [("user", "user"), ("assistant", "user"), ("user", "assistant"), ("system",), ("bot", "user")]
    )
    return w.clean() | {"prompt": [{"role": role, "content": w.sentence()} for role in wrong]}


def _identical(row: Row, end: str) -> Row:
    return row | {"rejected": row["chosen"] + end}


def _repeated(w: Writer) -> Row:
    lines = [w.sentence()] * w.random.randint(6, 12) + [w.sentence(), w.sentence()]
    w.random.shuffle(lines)
    return w.clean() | {"chosen": "\n".join(lines)}


def _blank(w: Writer) -> str:
    return w.random.choice(["", " ", "\n\n", "\t", "\u200b", "\u3000", "\u00a0 "])


# What each rule is broken by: rows of the file of pairs, raw lines of it, or rows of the file of graded completions. Of
# several rows the last ``faulty`` ones break it.
PAIRS: dict[str, Callable[[Writer], Row | str]] = {
    "unreadable": lambda w: w.random.choice(
        [
            json.dumps(w.clean())[:-9],
            json.dumps({"prompt": w.sentence(), "chosen": w.sentence()}),
            json.dumps(w.clean() | {"chosen": 12}),
            "no json at all",
            json.dumps([w.sentence()]),
            json.dumps(w.clean() | {"rejected": None}),
        ]
    ),
    "empty_prompt": lambda w: w.clean() | {"prompt": _blank(w)},
    "empty_completion": lambda w: w.clean() | {w.random.choice(["chosen", "rejected"]): _blank(w)},
    "wrong_roles": _roles,
    "identical_completions": lambda w: _identical(w.clean(), w.random.choice(["", " ", "\n"])),
    "control_characters": lambda w: w.put(w.random.choice("\x00\x07\x08\x1b\x7f\x85\x9b")),
    "replacement_characters": lambda w: w.put("caf\ufffd"),
    "repeated_lines": _repeated,
    "too_long": lambda w: w.clean() | {"chosen": w.text(110, 140)},
    "email": lambda w: w.put(w.person().email()),
    "phone": lambda w: w.put(w.random.choice(w.people[:10]).phone_number(), w.random.choice(["", "call ", "tel. ", "is "])),
    "card": lambda w: w.put(w.person().credit_card_number()),
    "iban": lambda w: w.put(w.random.choice(w.people[1:8]).iban()),
    "ip_address": lambda w: w.put(w.random.choice([w.people[0].ipv4_public(), w.people[0].ipv6()])),
    "api_key": lambda w: w.put(_key(w)),
    "private_key": lambda w: w.put(_private_key(w)),
    "licence": lambda w: w.clean() | {"licence": w.random.choice(["CC-BY-NC-4.0", "GPL-3.0-only", "proprietary"])},
    "no_consent": lambda w: w.clean() | {"subject": "s", "consent": w.random.choice([None, "given"]), "legal_basis": None},
    "consent_expired": lambda w: w.clean()
    | {"subject": "s", "consent": "given", "legal_basis": "consent", "expires": f"20{w.random.randint(10, 25)}-03-04"},
    "erased": lambda w: w.clean() | {"subject": "gone", "consent": "given", "legal_basis": "consent"},
}  # fmt: skip
SEVERAL: dict[str, tuple[Callable[[Writer], list[Row]], int]] = {
    "duplicate": (_twice, 1),
    "near_duplicate": (_near, 1),
    "contradiction": (_opposite, 2),
}
GRADED: dict[str, Callable[[Writer], Row]] = {
    "too_few_completions": lambda w: _graded(w, {"text": w.text(), "score": 1}),
    "missing_grades": lambda w: _graded(
        w, {"text": w.text(), "score": 1}, {"text": w.text(), "score": 2}, {"text": w.text()}
    ),
    "no_preference": lambda w: _graded(w, {"text": w.text(), "score": 3}, {"text": w.text(), "score": 3}),
}


def plant(
    folder: Path, w: Writer, clean: int, each: int
) -> tuple[dict[str, set[tuple[str, int]]], set[tuple[str, int]]]:
    """Write the data. Rule → the (source, line)s that break it on purpose; and those of all clean rows."""
    planted: dict[str, list[tuple[list[Row | str], int]]] = {}
    for name, make in PAIRS.items():
        planted[name] = [([make(w)], 1) for _ in range(each)]
    for name, (several, faulty) in SEVERAL.items():
        planted[name] = [(list(several(w)), faulty) for _ in range(each)]
    texts = [{"benchmark": "exam", "item": i, "text": w.text(3, 4)} for i in range(each)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    planted["contaminated"] = [([w.put(str(text["text"]))], 1) for text in texts]
    held = [w.clean() for _ in range(each)]
    planted["in_holdout"] = [([w.clean() | {"prompt": row["prompt"]}], 1) for row in held]
    groups: list[tuple[str | None, list[Row | str], int]] = [
        (name, rows, faulty) for name, found in planted.items() for rows, faulty in found
    ]
    groups += [(None, [w.clean()], 0) for _ in range(clean)]
    w.random.shuffle(groups)
    where: dict[str, set[tuple[str, int]]] = {name: set() for name in planted}
    good: set[tuple[str, int]] = set()
    with open(folder / "pairs.jsonl", "w", encoding="utf-8") as file:
        line = 0
        for name, rows, faulty in groups:
            for place, row in enumerate(rows):
                line += 1
                file.write((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n")
                if name is None:
                    good.add(("pairs.jsonl", line))
                elif place >= len(rows) - faulty:
                    where[name].add(("pairs.jsonl", line))
    graded = [(name, make(w)) for name, make in GRADED.items() for _ in range(each)]
    graded += [(None, _graded(w, {"text": w.text(), "score": 1}, {"text": w.text(), "score": 2})) for _ in range(each)]
    _lines(folder / "graded.jsonl", [row for _, row in graded])
    for line, (name, _) in enumerate(graded, start=1):
        (where.setdefault(name, set()) if name else good).add(("graded.jsonl", line))
    _lines(folder / "held.jsonl", held)
    (folder / "erased.jsonl").write_text('{"subject": "gone"}\n')
    return where, good


def _lines(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=alphabet | {"<end>": len(alphabet)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    whole = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")
    whole.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    whole.save_pretrained(folder)


def recall_of(folder: Path, w: Writer, clean: int, each: int) -> tuple[dict[str, float], float, str]:
    """Rule → share of its planted faults that were found; the share of clean rows that are put aside; both as text."""
    where, good = plant(folder, w, clean, each)
    tokenizer(folder / "tokenizer")
    sources = {"preferences": ["pairs.jsonl", "graded.jsonl"], "holdout": ["held.jsonl"]}
    parts = {}
    for part, names in sources.items():
        write_snapshot([Source(path=name) for name in names], folder, folder / part, processes=2)
        parts[part] = folder / part
    context = Context(
        processes=2,
        tokenizer=folder / "tokenizer",
        tokenizer_digest="test",
        max_tokens={"preferences": 2500},  # a token a byte: 6,000 characters lose more than half
        benchmarks=folder / "texts.jsonl",
        erased=folder / "erased.jsonl",
        today="2026-07-01",
    )
    found = profile(parts, SETTINGS, Holdout(sources=(Source(path="held.jsonl"),)), context)
    places = list(_places(found.segments, "preferences"))
    row_of = {place: row for row, place in enumerate(places)}
    where["too_many_tokens"] = where["cut"] = where["too_long"]
    recall = {}
    for rule in rules(SETTINGS):
        failing = found.failing[rule.name]
        hits = [bool(failing[row_of[place]]) for place in where[rule.name]]
        assert len(hits) >= each, rule.name
        recall[rule.name] = sum(hits) / len(hits)
    touched = np.array([found.quarantined[row_of[place]] for place in good])
    why = {name: int(sum(failing[row_of[place]] for place in good)) for name, failing in found.failing.items()}
    told = "\nrecall: " + ", ".join(f"{name} {share:.3f}" for name, share in recall.items())
    told += f"\nclean rows touched: {touched.sum()} of {len(good)}; {dict((k, v) for k, v in why.items() if v)}"
    return recall, float(touched.mean()), told


@pytest.mark.parametrize(
    ("clean", "each"), [(1500, 15), pytest.param(20_000, 50, marks=pytest.mark.soak)], ids=["small", "full"]
)
def test_planted_faults_are_found_and_clean_rows_are_left_alone(
    tmp_path: Path, clean: int, each: int, capsys: pytest.CaptureFixture[str]
) -> None:
    recall, touched, told = recall_of(tmp_path, Writer(7), clean, each)
    with capsys.disabled():
        print(told)
    assert {name: share for name, share in recall.items() if share < 0.98} == {}
    assert touched <= 0.005


class Real(Writer):
    """Rows of hh-rlhf in place of made ones: the last question, and both answers."""

    def __init__(self, seed: int, path: Path) -> None:
        super().__init__(seed)
        lines = read(Source(path=path.name), path.parent).lines
        records = [line.content for line in lines if isinstance(line.content, Record)]
        said = [record for record in records if record.prompt and all(one.text.strip() for one in record.completions)]
        once = {record.prompt[-1].content: record for record in said}  # a short "Why?" stands there many times
        self.rows = list(once.values())
        self.random.shuffle(self.rows)

    def clean(self) -> Row:
        record = self.rows.pop()
        chosen, rejected = (completion.text for completion in record.completions)
        return {"prompt": record.prompt[-1].content, "chosen": chosen, "rejected": rejected, "licence": "MIT"}


@pytest.mark.skipif(not HH.is_file(), reason=f"{HH} is absent")
def test_planted_faults_are_found_in_real_rows_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = Real(7, HH)
    recall, touched, told = recall_of(tmp_path, writer, 700, 25)
    with capsys.disabled():
        print(told)
    # Of 25 faults one may be missed. The people whom these rows really name are not planted, and found all the same.
    assert {name: share for name, share in recall.items() if share < 0.96} == {}
    assert touched <= 0.02


def _places(segments: Any, part: str) -> Iterator[tuple[str, int]]:
    import pyarrow.parquet as pq

    for segment in segments:
        if segment.part == part:
            table = pq.read_table(segment.segment, columns=["source", "line"])
            yield from zip(table.column("source").to_pylist(), table.column("line").to_pylist(), strict=True)
