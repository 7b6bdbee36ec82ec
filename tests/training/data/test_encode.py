"""Where a prompt ends and a completion begins, what a cut keeps, and how often BOS and EOS stand there."""

from typing import Any

import pytest

from tests.training.tiny import Tiny
from training.data.encode import CHAT_TEMPLATE, Encoder, encode_examples, encode_pairs
from training.data.records import Example, Message, Pair
from training.models import load_tokenizer

ASK = (Message("user", "Tell me about a cat."),)
CHAT = (Message("system", "Be short."), Message("user", "red?"), Message("assistant", "no"), Message("user", "blue?"))


@pytest.fixture
def tokenizer(tiny: Tiny) -> Any:
    return load_tokenizer(tiny.base)


def pair(chosen: str, rejected: str, prompt: tuple[Message, ...] = ASK, record_id: str = "r") -> Pair:
    return Pair(record_id, prompt, chosen, rejected, 1.0)


def ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_the_prompt_is_tokenised_once_each_completion_alone_and_the_ids_are_joined(tokenizer: Any) -> None:
    (row,) = encode_pairs(Encoder(tokenizer, 64), [pair("fine", "bad")]).rows
    assert row.prompt == ids(tokenizer, "<|bos|><|user|>Tell me about a cat.<|end|><|assistant|>")
    assert row.completions == ((*ids(tokenizer, "fine"), 2), (*ids(tokenizer, "bad"), 2))
    assert tokenizer.eos_token_id == 2 and not row.cut
    assert row.longest == len(row.prompt) + max(map(len, row.completions))


def test_a_boundary_that_a_joint_tokenisation_would_move_stays_where_it_is(tokenizer: Any) -> None:
    # The byte pairs have learnt " about" as one token, which " ab" and "out" are not.
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert len(ids(tokenizer, " about")) == 1
    (row,) = encode_examples(Encoder(tokenizer, 64), [Example("r", (Message("user", " ab"),), "out", 1.0)]).rows
    assert row.prompt == ids(tokenizer, " ab") and row.completions[0][:-1] == ids(tokenizer, "out")


@pytest.mark.parametrize(
    "text", ["fine", "fine ", " fine", "fine<|end|>", "fine<|end|><|end|>", "a<|end|>b", "<|end|>", ""]
)
def test_a_whole_completion_has_exactly_one_eos_and_no_stray_space(tokenizer: Any, text: str) -> None:
    found = Encoder(tokenizer, 64).completion(text)
    assert found.count(2) == 1 and found[-1] == 2
    body = text if text == "a<|end|>b" else text.replace("<|end|>", "")
    assert tokenizer.decode(found[:-1]) == body


def test_there_is_at_most_one_bos(tokenizer: Any) -> None:
    # A template that writes BOS, over a tokenizer whose template writes another one.
    tokenizer.chat_template = "<|bos|>" + CHAT_TEMPLATE
    assert Encoder(tokenizer, 64).prompt(CHAT).count(1) == 1
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ bos_token or '' }}", "")
    assert Encoder(tokenizer, 64).prompt(CHAT).count(1) == 0


def test_the_end_of_a_turn_is_the_one_of_the_template_and_not_of_the_tokenizer(tokenizer: Any) -> None:
    # As in Gemma and Phi-3: eos_token ends a document, and another token ends a turn.
    tokenizer.add_tokens(["<|eot|>"], special_tokens=True)
    eot = tokenizer.convert_tokens_to_ids("<|eot|>")
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ eos_token }}", "<|eot|>\\n")
    (row,) = encode_examples(Encoder(tokenizer, 64), [Example("r", ASK, "fine", 1.0)]).rows
    assert row.completions == ((*ids(tokenizer, "fine"), eot),)


def test_an_end_of_turn_is_found_where_only_the_added_tokens_list_it(tokenizer: Any) -> None:
    tokenizer.add_tokens(["<|eot|>"], special_tokens=True)

    class Phi:
        """A tokenizer whose ``all_special_ids`` names its eos_token alone."""

        all_special_ids = (2,)

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, *given: Any, **options: Any) -> Any:
            return tokenizer(*given, **options)

    tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ eos_token }}", "<|eot|>")
    assert Encoder(Phi(), 64).end == tokenizer.convert_tokens_to_ids("<|eot|>")


def test_a_tokenizer_without_template_gets_ours_and_one_without_eos_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    assert Encoder(tokenizer, 64).tokenizer.chat_template == CHAT_TEMPLATE
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token; set 'eos_token'"):
        Encoder(tokenizer, 64)


# ------------------------------------------------------------------------------------------------ cuts


def test_a_prompt_is_cut_from_the_left_and_keeps_its_opening_tokens_and_its_header(tokenizer: Any) -> None:
    prompt = Encoder(tokenizer, 999).prompt(ASK)
    completion = (*ids(tokenizer, "fine"), 2)
    room = len(prompt) + len(completion) - 5  # five tokens too many: five tokens of the question's start go
    (row,) = (encoding := encode_examples(Encoder(tokenizer, room), [Example("r", ASK, "fine", 1.0)])).rows
    assert row.prompt == tuple([*prompt[:2], *prompt[2 + 5 :]])
    assert tokenizer.convert_ids_to_tokens(list(row.prompt[:2])) == ["<|bos|>", "<|user|>"]
    assert tokenizer.convert_ids_to_tokens([row.prompt[-2], row.prompt[-1]]) == ["<|end|>", "<|assistant|>"]
    assert row.completions == (completion,)  # whole, so it has its EOS
    assert row.cut and encoding.cut == 1 and row.longest == room


def test_a_cut_completion_has_no_eos(tokenizer: Any) -> None:
    # max_tokens 24: the prompt keeps 24 / 4 = 6 tokens, so 18 are left for a completion.
    long, short = "tea, milk; " * 9, "fine"
    (row,) = encode_pairs(Encoder(tokenizer, 24), [pair(long, short)]).rows
    assert len(row.prompt) == 6 and len(row.completions[0]) == 18
    assert row.completions[0] == ids(tokenizer, long)[:18] and 2 not in row.completions[0]
    assert row.completions[1] == (*ids(tokenizer, short), 2)


def test_a_completion_that_lacks_room_for_eos_alone_is_cut_there(tokenizer: Any) -> None:
    text = "tea, milk; " * 9
    whole = len(ids(tokenizer, text))
    # The prompt's quarter is max_tokens // 4, the completion gets the rest: choose it one token short of text + EOS.
    limit = next(n for n in range(8, 999) if n - n // 4 == whole)
    long_prompt = (Message("user", "gold " * 200),)
    (row,) = encode_examples(Encoder(tokenizer, limit), [Example("r", long_prompt, text, 1.0)]).rows
    assert row.completions == (ids(tokenizer, text),)


def test_pairs_that_the_cut_makes_identical_are_dropped_counted_and_named(tokenizer: Any) -> None:
    same = "tea, milk; " * 9
    pairs = [pair(same + "fine", same + "bad", record_id="lost"), pair("fine", "bad", record_id="kept")]
    encoding = encode_pairs(Encoder(tokenizer, 24), pairs)
    assert encoding.dropped == ("lost",) and [row.record_id for row in encoding.rows] == ["kept"]
    assert encoding.facts == {"rows": 1, "truncated": 1, "dropped_after_truncation": 1}


def test_every_row_fits(tokenizer: Any) -> None:
    for limit in range(8, 60, 3):
        for row in encode_pairs(Encoder(tokenizer, limit), [pair("fine " * n, "bad", CHAT) for n in (1, 9)]).rows:
            assert row.longest <= limit and row.prompt and all(row.completions)
