"""Where every token stands: worked by hand, and as laws over random rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.data.encode import Encoded
from training.packing import Group, Packed, Padded, pack, pad

# Ids say where they come from: 1x the first row's prompt, 2x and 3x its completions, 5x the second row, 9 is EOS.
FIRST = Encoded("a", (11, 12, 13), ((21, 22, 9), (9,), (31, 9)))
SECOND = Encoded("b", (51,), ((9,), (61, 62, 63)))

COMPLETION = st.lists(st.integers(0, 40), min_size=1, max_size=6).map(tuple)
ROWS = st.lists(
    st.builds(
        Encoded, st.just("r"), COMPLETION, st.lists(COMPLETION, min_size=1, max_size=5).map(tuple)
    ),
    min_size=1,
    max_size=5,
)  # fmt: skip


def test_a_prompt_stands_once_and_every_branch_goes_on_from_it() -> None:
    packed = pack([FIRST, SECOND], "cpu")
    #                                 0   1   2 | 3   4 | (9 has no token) | 5 || 6 | 7  8
    assert packed.ids.tolist() == [[11, 12, 13, 21, 22, 31, 51, 61, 62]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2]]
    # The prompt's last token predicts the first token of every branch; a branch's last token is never fed.
    assert packed.source.tolist() == [2, 3, 4, 2, 2, 5, 6, 6, 7, 8]
    assert packed.target.tolist() == [21, 22, 9, 9, 31, 9, 9, 61, 62, 63]
    assert packed.branch.tolist() == [0, 0, 0, 1, 2, 2, 3, 4, 4, 4]
    assert packed.groups == (Group(3, (2, 1)), Group(1, (2,)))
    assert packed.completions == 5 and packed.tokens == 9 == sum(group.tokens for group in packed.groups)


def test_without_sharing_each_completion_has_its_prompt() -> None:
    packed = pack([FIRST, SECOND], "cpu", share=False)
    assert packed.ids.tolist() == [[11, 12, 13, 21, 22, 11, 12, 13, 11, 12, 13, 31, 51, 51, 61, 62]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3, 0, 0, 1, 2]]
    assert packed.source.tolist() == [2, 3, 4, 7, 10, 11, 12, 13, 14, 15]
    assert packed.groups == (Group(3, (2,)), Group(3, ()), Group(3, (1,)), Group(1, ()), Group(1, (2,)))


def test_padded_rows_are_filled_up_on_the_right() -> None:
    batch = pad([FIRST, SECOND], "cpu")
    assert batch.ids.tolist() == [
        [11, 12, 13, 21, 22],
        [11, 12, 13, 0, 0],
        [11, 12, 13, 31, 0],
        [51, 0, 0, 0, 0],
        [51, 61, 62, 0, 0],
    ]
    assert batch.source.tolist() == [2, 3, 4, 7, 12, 13, 15, 20, 21, 22]
    assert batch.target.tolist() == pack([FIRST, SECOND], "cpu").target.tolist()


def test_one_token_after_one_token_is_the_least_that_there_is() -> None:
    for batch in (pack([Encoded("r", (7,), ((2,),))], "cpu"), pad([Encoded("r", (7,), ((2,),))], "cpu")):
        assert batch.ids.tolist() == [[7]] and batch.source.tolist() == [0] and batch.target.tolist() == [2]


def made(rows: list[Encoded], layout: str) -> Packed | Padded:
    return pad(rows, "cpu") if layout == "padded" else pack(rows, "cpu", layout == "shared")


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@given(ROWS)
def test_every_completion_token_is_predicted_from_the_token_before_it(layout: str, rows: list[Encoded]) -> None:
    batch = made(rows, layout)
    flat, place = batch.ids.flatten().tolist(), 0
    targets = [token for row in rows for completion in row.completions for token in completion]
    assert batch.target.tolist() == targets
    completions = [(row.prompt, completion) for row in rows for completion in row.completions]
    assert batch.completions == len(completions)
    for number, (prompt, completion) in enumerate(completions):
        for t in range(len(completion)):
            source = int(batch.source[place])
            assert flat[source] == (prompt[-1] if t == 0 else completion[t - 1])
            assert int(batch.branch[place]) == number
            if isinstance(batch, Packed):
                assert int(batch.positions[0, source]) == len(prompt) + t - 1
            place += 1
    assert place == len(batch.source)


@given(ROWS)
def test_a_row_costs_what_it_says(rows: list[Encoded]) -> None:
    assert pack(rows, "cpu").tokens == sum(row.unique for row in rows)
    assert pack(rows, "cpu", share=False).tokens == sum(row.repeated for row in rows)
    completions = sum(len(row.completions) for row in rows)
    assert pad(rows, "cpu").tokens == completions * max(row.longest for row in rows)
    for row in rows:
        assert row.unique <= row.repeated <= len(row.completions) * row.longest


@given(ROWS)
def test_groups_tell_where_prompts_and_branches_lie(rows: list[Encoded]) -> None:
    for share in (True, False):
        packed, start = pack(rows, "cpu", share), 0
        for group in packed.groups:
            assert group.prompt >= 1 and all(length >= 1 for length in group.branches)
            expected = [*range(group.prompt)]
            for length in group.branches:
                expected += range(group.prompt, group.prompt + length)
            assert packed.positions[0, start : start + group.tokens].tolist() == expected
            start += group.tokens
        assert start == packed.tokens
        assert {int(i) for i in packed.source} <= set(range(start))


def test_masks_are_kept_per_row_and_not_shared_between_rows() -> None:
    one, other = pack([FIRST], "cpu"), pack([FIRST], "cpu")
    one.mask_cache["x"] = torch.zeros(1)
    assert other.mask_cache == {} and one != other  # compared by identity: tensors have no truth value
