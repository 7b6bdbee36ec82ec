"""Where a prompt ends and a completion begins, what a cut keeps, and how often BOS and EOS stand there."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.tiny import Tiny
from training.data import views
from training.data.encode import CHAT_TEMPLATE, Encoded, Encoder, Encoding, encode_examples, encode_records
from training.data.records import Completion, Example, Message, Record
from training.models import load_tokenizer

ASK = (Message("user", "Tell me about a cat."),)
CHAT = (Message("system", "Be short."), Message("user", "red?"), Message("assistant", "no"), Message("user", "blue?"))


@pytest.fixture
def tokenizer(tiny: Tiny) -> Any:
    return load_tokenizer(tiny.base)


def pair(chosen: str, rejected: str, prompt: tuple[Message, ...] = ASK) -> Record:
    return Record(prompt, (Completion(chosen, rank=1), Completion(rejected, rank=2)))


def scored(*graded: tuple[str, float], prompt: tuple[Message, ...] = ASK, weight: float = 1.0) -> Record:
    return Record(prompt, tuple(Completion(text, score=score) for text, score in graded), weight)


def encode(tokenizer: Any, max_tokens: int, records: Sequence[Record]) -> Encoding:
    """Rows that make a pair."""
    return encode_records(Encoder(tokenizer, max_tokens), records, lambda row: bool(views.pairs(row)))


def ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_the_prompt_is_tokenised_once_each_completion_alone_and_the_ids_are_joined(tokenizer: Any) -> None:
    (row,) = encode(tokenizer, 64, [pair("fine", "bad")]).rows
    assert row.prompt == ids(tokenizer, "<|bos|><|user|>Tell me about a cat.<|end|><|assistant|>")
    assert row.completions == ((*ids(tokenizer, "fine"), 2), (*ids(tokenizer, "bad"), 2))
    assert tokenizer.eos_token_id == 2 and not row.cut
    # the last token is predicted and never fed
    assert row.longest == len(row.prompt) + max(map(len, row.completions)) - 1
    assert (row.grades, row.kind, row.weight) == ((-1.0, -2.0), "rank", 1.0)


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


def test_plain_text_has_no_template_and_begins_with_bos_or_else_with_eos(tokenizer: Any) -> None:
    (row,) = encode_examples(Encoder(tokenizer, 64), [Example("r", (), "fine", 1.0)]).rows
    assert (row.prompt, row.completions) == ((tokenizer.bos_token_id,), ((*ids(tokenizer, "fine"), 2),))
    (row,) = encode(tokenizer, 64, [pair("fine", "bad", ())]).rows
    assert row.prompt == (tokenizer.bos_token_id,) and len(row.completions) == 2
    # Cut to 8 tokens: the one token of the prompt stays.
    (row,) = encode(tokenizer, 8, [pair("tea, milk; " * 9, "bad", ())]).rows
    assert row.prompt == (tokenizer.bos_token_id,) and len(row.completions[0]) == 7 and row.cut
    tokenizer.bos_token = None
    assert Encoder(tokenizer, 64).prompt(()) == [tokenizer.eos_token_id]
    assert Encoder(tokenizer, 64).prompt(iter(())) == [2]


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
    assert row.cut and encoding.cut == 1 and row.longest == room - 1


def test_a_cut_completion_has_no_eos(tokenizer: Any) -> None:
    # max_tokens 24: the prompt keeps 24 / 4 = 6 tokens, so 18 are left for a completion.
    long, short = "tea, milk; " * 9, "fine"
    (row,) = encode(tokenizer, 24, [pair(long, short)]).rows
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


def test_rows_that_the_cut_leaves_without_a_pair_are_dropped_counted_and_named(tokenizer: Any) -> None:
    same = "tea, milk; " * 9
    lost, kept = pair(same + "fine", same + "bad"), pair("fine", "bad")
    encoding = encode(tokenizer, 24, [lost, kept])
    assert encoding.dropped == (lost.id,) and [row.record_id for row in encoding.rows] == [kept.id]
    assert encoding.facts == {"rows": 1, "truncated": 1, "dropped_after_truncation": 1}


@pytest.mark.parametrize("limit", range(8, 60, 7))
def test_every_row_fits(tokenizer: Any, limit: int) -> None:
    for row in encode(tokenizer, limit, [pair("fine " * n, "bad", CHAT) for n in (1, 9)]).rows:
        assert row.longest < limit and row.prompt and all(row.completions)


# ------------------------------------------------------------------------------------------------ several completions


def test_all_graded_completions_stand_in_one_row_as_stored(tokenizer: Any) -> None:
    record = scored(("tea", 0.5), ("milk", -1.0), ("iron", 0.5), ("gold", 2.0), weight=3.0)
    (row,) = encode(tokenizer, 64, [record]).rows
    assert [tokenizer.decode(list(one[:-1])) for one in row.completions] == ["tea", "milk", "iron", "gold"]
    assert (row.grades, row.kind, row.weight, row.record_id) == ((0.5, -1.0, 0.5, 2.0), "score", 3.0, record.id)


def test_grades_of_each_kind_are_numbers_of_which_more_is_better(tokenizer: Any) -> None:
    ranks = Record(ASK, (Completion("a", rank=3), Completion("b", rank=1)))
    labels = Record(ASK, (Completion("a", label=False), Completion("b", label=True), Completion("c", label=True)))
    first, second = encode(tokenizer, 64, [ranks, labels]).rows
    assert (first.grades, first.kind) == ((-3.0, -1.0), "rank")
    assert (second.grades, second.kind) == ((0.0, 1.0, 1.0), "label")


def test_the_first_kind_of_grade_counts_and_what_has_another_or_none_is_left_out(tokenizer: Any) -> None:
    mixed = Record(ASK, (Completion("x"), Completion("a", rank=2), Completion("b", score=9.0), Completion("c", rank=1)))
    (row,) = encode(tokenizer, 64, [mixed]).rows
    assert (row.grades, row.kind) == ((-2.0, -1.0), "rank")
    bare = Record(ASK, (Completion("x"), Completion("y")))
    encoding = encode_records(Encoder(tokenizer, 64), [bare, Record(ASK, ())], lambda row: True)
    assert encoding.rows == () and encoding.dropped == (bare.id, Record(ASK, ()).id)


def test_the_same_answer_counts_once_where_its_grades_agree_and_not_at_all_where_they_contradict(
    tokenizer: Any,
) -> None:
    record = scored(("tea", 1.0), ("milk", 0.0), ("tea", 1.0), ("iron", 2.0), ("iron", 0.5), ("gold", 3.0))
    (row,) = encode(tokenizer, 64, [record]).rows
    assert [tokenizer.decode(list(one[:-1])) for one in row.completions] == ["tea", "milk", "gold"]
    assert row.grades == (1.0, 0.0, 3.0)
    contradiction = scored(("tea", 1.0), ("tea", 0.0))
    assert encode(tokenizer, 64, [contradiction]).dropped == (contradiction.id,)
    # Texts that differ and are the same tokens: a name of the end-of-turn token behind the text is that token.
    (row,) = encode(tokenizer, 64, [scored(("tea", 1.0), ("tea<|end|>", 1.0), ("milk", 0.0))]).rows
    assert len(row.completions) == 2


def test_answers_that_the_cut_makes_the_same_count_once_or_not_at_all(tokenizer: Any) -> None:
    long = "tea, milk; " * 9
    record = scored((long + "a", 1.0), (long + "b", 1.0), (long + "c" + long, 1.0), ("no", 0.0))
    (row,) = encode(tokenizer, 24, [record]).rows
    assert row.grades == (1.0, 0.0) and row.cut and len(row.completions) == 2
    record = scored((long + "a", 2.0), (long + "b", 1.0), ("no", 0.0), ("yes", 3.0))
    (row,) = encode(tokenizer, 24, [record]).rows
    assert row.grades == (0.0, 3.0)


def test_the_longest_completion_decides_what_the_prompt_keeps(tokenizer: Any) -> None:
    """One prompt for all: a short completion sees the same cut prompt as a long one."""
    ask = (Message("user", "gold " * 30),)
    (row,) = encode(tokenizer, 60, [scored(("tea " * 20, 1.0), ("no", 0.0), prompt=ask)]).rows
    whole = Encoder(tokenizer, 999).prompt(ask)
    longest = len(Encoder(tokenizer, 999).completion("tea " * 20))
    assert len(row.prompt) == max(60 - longest, 15) < len(whole)
    assert row.prompt[-1:] == tuple(whole[-1:]) and row.completions[1][-1] == 2


WORDS = st.lists(st.sampled_from(["tea", " milk", "<|end|>", " about", "x", " gold " * 9]), max_size=4).map("".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(WORDS, st.sampled_from([0.0, 1.0, 2.5])), max_size=6), WORDS, st.integers(8, 80))
def test_laws_of_a_row(tokenizer: Any, graded: list[tuple[str, float]], prompt: str, limit: int) -> None:
    encoder = Encoder(tokenizer, limit)
    record = scored(*graded, prompt=(Message("user", prompt),))
    encoding = encode_records(encoder, [record], lambda row: True)
    assert len(encoding.rows) + len(encoding.dropped) == 1
    for row in encoding.rows:
        assert len(row.completions) == len(row.grades) == len(set(row.completions)) >= 1
        assert len(row.prompt) + max(map(len, row.completions)) <= limit
        assert row.prompt.count(tokenizer.bos_token_id) <= 1
        room = limit - len(row.prompt)
        told: dict[tuple[int, ...], set[float]] = {}
        for text, score in graded:
            told.setdefault(tuple(encoder.completion(text)[:room]), set()).add(score)
        assert dict(zip(row.completions, row.grades, strict=True)) == {
            ids: min(scores) for ids, scores in told.items() if len(scores) == 1
        }
        for ids in row.completions:
            assert (ids[-1] == 2 and ids.count(2) == 1) or (len(ids) == room and 2 not in ids)
    if not encoding.rows:  # nothing graded, or all of it contradicts itself
        assert len({score for _, score in graded}) != 1 or not graded


def test_counts_of_tokens() -> None:
    # Prompt of 5; completions of 3, 1 and 4. Fed: 5 + 2 + 0 + 3 once; repeated 3 * 5 + 2 + 0 + 3; the longest 5 + 3.
    row = Encoded("r", (1,) * 5, ((2,) * 3, (2,), (2,) * 4))
    assert (row.unique, row.repeated, row.longest) == (10, 20, 8)
