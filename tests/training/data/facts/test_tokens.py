"""Tokens beyond the budget: the same numbers as the encoder of training, however they were found."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.data.facts.rows import ASK, batch, pair
from training.data.encode import CHAT_TEMPLATE, Encoder
from training.data.facts.counting import Counter, splits_at_spaces, tokens_a_byte
from training.data.facts.tokens import Tokens, load
from training.data.records import Completion, Message, Record, graded, sft
from training.strict import Refused

SPECIAL = {"bos_token": "<|bos|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
CORPUS = [
    "Tell me about the moon and the rain.",
    "red green blue, two dogs; it is fine!",
    "\n\nwhat is this about?",
] * 30


def tokenizer(pre: Any = None, normal: Any = None, template: str = CHAT_TEMPLATE, byte_level: bool = True) -> Any:
    """A small BPE tokenizer trained here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE() if byte_level else models.BPE(unk_token="<|pad|>"))
    if pre is None:
        pre = pre_tokenizers.ByteLevel(add_prefix_space=False) if byte_level else pre_tokenizers.Whitespace()
    core.pre_tokenizer = pre
    if normal is not None:
        core.normalizer = normal
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    names = [*SPECIAL.values(), "<|user|>", "<|assistant|>", "<|system|>"]
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=names, initial_alphabet=alphabet, show_progress=False),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL)  # type: ignore[no-untyped-call]
    made.chat_template = template
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer().save_pretrained(path)
    return path


def tokens_of(encoder: Encoder, record: Record, needed: int = 2) -> int:
    """What training would feed of the row without a limit."""
    texts = [sft(record).completion] if needed == 1 else [c.text for c, _ in graded(record)[1]]
    row = encoder.join(record.id, record.prompt, texts or [c.text for c in record.completions], 1.0)
    assert not row.cut
    return len(row.prompt) + max(map(len, row.completions))


RECORDS = [
    pair("Tell me about the moon.", "It is fine.", "no"),
    pair("q" * 300, "a", "b"),
    pair("Über die Möwe: 🐦", "日本語のテキスト", "no"),
    pair("a <|end|> b", "text with <|end|> inside", "ends with one<|end|>"),
    pair("<|bos|>twice", "x", ""),
    pair(
        (Message("system", "Be short."), *ASK, Message("assistant", "no"), Message("user", " and\n\nnow? ")), " ", "\n"
    ),
    Record(ASK, (Completion("short", score=1.0), Completion("longer, but nobody graded it" * 9))),
    Record(ASK, (Completion("short"), Completion("ungraded, the longest"))),
    Record(ASK, (Completion("good", score=1.0), Completion("bad, and long as it is", score=0.0))),
]


@pytest.mark.parametrize("limit", [1, 8, 30, 60, 200, 100_000])
@pytest.mark.parametrize("needed", [1, 2])
def test_the_numbers_are_those_of_the_encoder(folder: Path, limit: int, needed: int) -> None:
    found = Tokens(str(folder), "digest", limit)(batch(RECORDS, needed))
    encoder = Encoder(load(folder), 10**9)
    counts = [tokens_of(encoder, record, needed) for record in RECORDS]
    assert found["tokens_over"].tolist() == [max(0, count - limit) for count in counts]
    assert found["cut_share"].tolist() == pytest.approx([max(0, count - limit) / count for count in counts])


def test_what_is_over_is_what_the_encoder_cuts(folder: Path) -> None:
    encoder = Encoder(load(folder), 40)
    found = Tokens(str(folder), "digest", 40)(batch(RECORDS))
    for record, over in zip(RECORDS, found["tokens_over"], strict=True):
        texts = [c.text for c, _ in graded(record)[1]] or [c.text for c in record.completions]
        assert encoder.join(record.id, record.prompt, texts, 1.0).cut == (over > 0)


def test_nothing_is_known_without_a_tokenizer_or_a_record_or_a_completion(folder: Path) -> None:
    none = Tokens(None, "", 8)
    assert none.key == ""
    assert all(map(math.isnan, [*none(batch(RECORDS))["tokens_over"], *none(batch(RECORDS))["cut_share"]]))
    found = Tokens(str(folder), "digest", 8)(batch([None, Record(ASK, ()), RECORDS[0]]))
    assert [math.isnan(value) for value in found["tokens_over"]] == [True, True, False]


def test_the_key_is_the_tokenizer_and_the_limit_and_not_the_folder() -> None:
    assert Tokens("/a", "x", 8).key == Tokens("/b", "x", 8).key
    assert len({Tokens("/a", "x", 8).key, Tokens("/a", "y", 8).key, Tokens("/a", "x", 9).key}) == 3


def test_a_prompt_that_the_template_refuses_is_null(tmp_path: Path) -> None:
    refusing = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    tokenizer(template=refusing).save_pretrained(tmp_path)
    system = pair((Message("system", "Be short."), *ASK), "a", "b")
    found = Tokens(str(tmp_path), "refusing", 2)(batch([system, RECORDS[0]]))["tokens_over"]
    assert math.isnan(found[0]) and found[1] > 0


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(Refused, match="does not load"):
        Tokens(str(tmp_path), "broken", 8)(batch(RECORDS))


def test_what_proves_a_bound() -> None:
    from tokenizers import normalizers, pre_tokenizers

    assert tokens_a_byte(tokenizer()) == 1 and splits_at_spaces(tokenizer())
    assert tokens_a_byte(tokenizer(normal=normalizers.NFC())) == 3
    assert tokens_a_byte(tokenizer(normal=normalizers.NFKC())) is None  # one character may become eighteen
    prefixed = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert tokens_a_byte(tokenizer(pre=prefixed)) is None
    assert tokens_a_byte(tokenizer(byte_level=False)) is None
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    assert tokens_a_byte(tokenizer(pre=split)) == 1 and not splits_at_spaces(tokenizer(pre=split))


TEMPLATES = [
    CHAT_TEMPLATE,
    "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "{% for m in messages %}<{{ m.role }}>:{{ m.content | trim }}</s>{% endfor %}The answer",
    "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",  # twice: no bound
]


@pytest.fixture(scope="module")
def counters() -> list[Counter]:
    from tokenizers import normalizers

    normal = [None, None, None, None, normalizers.NFC(), normalizers.NFKC()]
    return [Counter(tokenizer(normal=n, template=TEMPLATES[i % 4])) for i, n in enumerate(normal)]


TEXT = st.text(max_size=60) | st.text(st.sampled_from(" \n\r\t.,the mo'sé\x1c\u00a0\u0301ﷺ<|end|>"), max_size=60)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4))
def test_no_bound_is_less_than_the_count(counters: list[Counter], rows: list[tuple[str, str, str]]) -> None:
    records = [pair(*texts) for texts in rows]
    for counter in counters:
        exact = counter.exact(records, 2)
        for limit in (0, 30, 60, 10**9):
            for found, count in zip(counter.counts(records, 2, limit), exact, strict=True):
                assert found is not None and count is not None
                assert count <= found <= limit or found == count
        counter._learn([text for row in rows for text in row])
        for record, count in zip(records, exact, strict=True):
            for most in (counter._bytes, counter._in_words) if counter._by_word else (counter._bytes,):
                bound = counter._bound(record, most)
                assert bound is None or count is None or bound >= count


def test_most_rows_are_settled_without_tokenising(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(load(folder))
    records = [pair("Tell me about the moon and the rain. " * 20, "two dogs; it is fine! " * 25, "no")] * 5
    asked: list[int] = []

    def exact(some: list[Record], needed: int) -> list[int]:
        asked.append(len(some))
        return [7] * len(some)

    monkeypatch.setattr(counter, "exact", exact)
    count = tokens_of(Encoder(load(folder), 10**9), records[0])
    size = len(records[0].prompt[0].content) + len(records[0].completions[0].text)
    assert count + 150 < size / 2
    counter.counts(records, 2, size + 100)  # fewer bytes than that
    counter.counts(records, 2, count + 150)  # fewer tokens in all words than that
    assert asked == [0, 0]
    counter.counts(records, 2, count - 1)
    assert asked[-1] == 5


def test_counting_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys\n"
        "from training.data.facts.tokens import Tokens\n"
        "from tests.training.data.facts.rows import batch, pair\n"
        f"found = Tokens({str(folder)!r}, 'd', 3)(batch([pair('a b c', 'd', 'e')]))\n"
        "assert found['tokens_over'][0] > 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    root = Path(__file__).resolve().parents[4]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=300)
