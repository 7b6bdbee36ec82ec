"""Every layout of every architecture against naive float64 passes; and that what cannot be packed is noticed and left alone.

Bounds are those of the engine: log-probabilities within 2e-4 nats and gradients within 1e-5 relative L2, in float32.
"""

import copy
import dataclasses
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training import naive
from tests.training.naive import ALONE, HEADS, SHARING
from tests.training.tiny import Tiny
from training import attention, packing, scorer
from training.attention import by_groups, by_segments
from training.data.encode import Encoded, Encoder, encode_records
from training.data.forms import parse
from training.models import load_tokenizer, save_model, with_lora
from training.packing import Packed
from training.scorer import PackedPath, PaddedPath, Scorer, make_scorer, own_attention, paths, without_adapters
from training.settings import LoRA, Profile

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
LAYOUTS = ("shared", "packed", "padded")
NATS, SLOPE = 2e-4, 1e-5


def profile(layout: Any = "shared", **other: Any) -> Profile:
    return Profile(threads=1, layout=layout, **other)


@dataclasses.dataclass(frozen=True)
class Expected:
    """Totals in nats and the gradient of their ``mixed`` sum, by the naive way."""

    totals: Tensor
    gradient: dict[str, Tensor]


def mixed(totals: Tensor) -> Tensor:
    """A sum in which every completion has a weight of its own."""
    return (torch.linspace(-1, 1.5, len(totals), dtype=totals.dtype) * totals).sum()


def expected_of(model: Any, rows: Sequence[Encoded]) -> Expected:
    exact = naive.exact(model)
    totals = torch.cat(naive.totals(exact, rows))
    return Expected(totals.detach(), naive.gradient(exact, mixed(totals)))


def assert_right(scorer: Scorer, rows: Sequence[Encoded], expected: Expected, slope: float = SLOPE) -> None:
    scorer.zero_grad()
    totals, lengths = scorer(scorer.batch(rows))
    assert totals.dtype == lengths.dtype == torch.float32
    assert lengths.tolist() == [len(completion) for row in rows for completion in row.completions]
    assert float((totals.detach().double() - expected.totals).abs().max()) < NATS
    mixed(totals).backward()
    assert naive.distance(naive.gradient(scorer.model), expected.gradient) < slope


def scorer_of(model: Any, rows: Sequence[Encoded], chosen: Profile) -> tuple[Scorer, list[str]]:
    events: list[dict[str, Any]] = []
    found = make_scorer(model, rows, chosen, events.append)
    assert events.pop() == {"type": "facts", "facts": {"layout": found.path.name, "attention": found.path.attention}}
    return found, [event["message"] for event in events]


ROWS = naive.rows()


@pytest.fixture(scope="module", params=SHARING)
def sharing(request: pytest.FixtureRequest) -> tuple[Any, Expected]:
    model = naive.model(request.param)
    return model, expected_of(model, ROWS)


# ------------------------------------------------------------------------------------------------ right numbers


@pytest.mark.parametrize("segment_from", [768, 0], ids=["whole groups", "segments"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probabilities_and_gradients_are_the_naive_ones(
    monkeypatch: pytest.MonkeyPatch, sharing: tuple[Any, Expected], layout: str, segment_from: int
) -> None:
    monkeypatch.setattr(attention, "SEGMENT_FROM", segment_from)
    model, expected = sharing
    lengths = torch.tensor([len(completion) for row in ROWS for completion in row.completions])
    assert float((expected.totals / lengths).std()) > 1  # far from uniform, where ln 67 a token would always do
    found, told = scorer_of(model, ROWS, profile(layout))
    assert (found.path.name, told) == (layout, [])
    assert_right(found, ROWS, expected)
    model.zero_grad()
    found.release()


@pytest.mark.parametrize("name", ["llama", "mistral, a window of 11"])
def test_any_cut_of_the_rows_gives_the_same_numbers(name: str) -> None:
    model = naive.model(name)
    expected = expected_of(model, ROWS)
    found, _ = scorer_of(model, ROWS, profile())
    for cut in ([[i] for i in range(8)], [[7, 0, 3], [4, 4, 1, 2], [6, 5]]):
        for places in cut:
            totals, _ = found(found.batch([ROWS[i] for i in places]))
            starts = torch.cumsum(torch.tensor([0, *(len(row.completions) for row in ROWS)]), 0).tolist()
            wanted = torch.cat([expected.totals[starts[i] : starts[i + 1]] for i in places])
            assert float((totals.detach() - wanted).abs().max()) < NATS


@pytest.mark.parametrize("layout", ["shared", "packed"])
@pytest.mark.parametrize("name", ["llama", "mistral, a window of 11"])
def test_groups_longer_than_the_longest_whole_one(name: str, layout: str) -> None:
    """760 and 900 tokens: one group is masked as a whole, the other goes segment by segment, in one row."""
    rows = naive.rows([(700, [30, 33], [1.0, 0.0]), (420, [300, 182, 1], [0.0, 2.0, 1.0]), (5, [4, 2], [1.0, 0.0])])
    sizes = [group.tokens for group in packing.pack(rows, "cpu").groups]
    assert sizes == [761, 900, 9] and sizes[0] < attention.SEGMENT_FROM < sizes[1]
    model = naive.model(name)
    found, told = scorer_of(model, rows, profile(layout))
    assert (found.path.name, told) == (layout, [])
    expected = expected_of(model, rows)
    totals, _ = found(found.batch(rows))
    # 700 nats and more: their rounding to float32 alone is 6e-5
    assert float((totals.detach().double() - expected.totals).abs().max()) < 5 * NATS
    mixed(totals).backward()
    assert naive.distance(naive.gradient(model), expected.gradient) < SLOPE


def real_rows(tiny: Tiny, name: str, count: int, max_tokens: int) -> list[Encoded]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [json.loads(next(file)) for _ in range(count)]
    form = "transcripts" if "chosen" in lines[0] else "graded"
    encoder = Encoder(load_tokenizer(tiny.base), max_tokens)
    return list(
        encode_records(encoder, [parse(line, form) for line in lines], lambda row: len(row.completions) > 1).rows
    )


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is absent")
@pytest.mark.parametrize("name, count", [("hh_harmless_base", 10), ("alpaca_eval_graded", 2)])
def test_real_rows(tiny: Tiny, name: str, count: int) -> None:
    rows = real_rows(tiny, name, count, 320)
    assert len(rows) >= min(2, count) and max(row.longest for row in rows) > 200
    import transformers

    small = {**naive.SMALL, "vocab_size": load_tokenizer(tiny.base).vocab_size + 9}
    model = naive.drawn(transformers.LlamaForCausalLM(transformers.LlamaConfig(**small)))
    expected = expected_of(model, rows)
    for layout in LAYOUTS:
        found, told = scorer_of(model, rows, profile(layout))
        assert (found.path.name, told) == (layout, [])
        totals, _ = found(found.batch(rows))
        # Real completions come to a thousand nats with this model, where float32 has steps of 6e-5 to 1.2e-4.
        off = (totals.detach().double() - expected.totals).abs()
        assert float((off - 2e-7 * expected.totals.abs()).max()) < NATS
        model.zero_grad()
        mixed(totals).backward()
        assert naive.distance(naive.gradient(model), expected.gradient) < SLOPE
        found.release()


# ------------------------------------------------------------------------------------------------ one variable-length call


def loop(q: Any, k: Any, v: Any, qs: Any, ks: Any, mq: int, mk: int, scale: Any, window: Any) -> Tensor:
    """What flash attention does, in plain torch."""
    from torch.nn.functional import scaled_dot_product_attention

    found = []
    for i in range(len(qs) - 1):
        own, keys, values = (t[e[i] : e[i + 1]].transpose(0, 1)[None] for t, e in ((q, qs), (k, ks), (v, ks)))
        n, m = own.shape[2], keys.shape[2]
        distance = (torch.arange(n) + m - n)[:, None] - torch.arange(m)[None]
        mask = (distance >= 0) & (distance < (window or m + 1))
        found.append(scaled_dot_product_attention(own, keys, values, mask, scale=scale)[0].transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("share", [True, False], ids=["shared", "packed"])
def test_the_layout_for_variable_length_attention_gives_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, sharing: tuple[Any, Expected], share: bool
) -> None:
    monkeypatch.setattr(attention, "varlen_attention", lambda: loop)
    model, expected = sharing
    found = Scorer(model, PackedPath("x", share, by_segments))
    assert own_attention(model) == "alignmill_by_segments"
    assert_right(found, ROWS, expected)
    model.zero_grad()
    found.release()


# ------------------------------------------------------------------------------------------------ what cannot share


REASONS = {
    "mamba": "mixes tokens in a way",
    "bloom": "mixes tokens in a way",
    "gemma2": "its Gemma2Attention uses softcap",
    "gpt-oss": "its GptOssAttention uses s_aux",
}


@pytest.mark.parametrize("layout", ["shared", "packed"])
@pytest.mark.parametrize("name", HEADS)
def test_a_model_that_does_more_in_its_head_than_multiply_shares_with_its_own_head(name: str, layout: str) -> None:
    model = naive.model(name)
    expected = expected_of(model, ROWS)
    found, told = scorer_of(model, ROWS, profile(layout))
    assert isinstance(found.path, PackedPath) and (found.path.name, found.path.own_head) == (layout, True)
    assert len(told) == 1 and "chunked head cannot be used" in told[0] and "the plain forward finds" in told[0]
    assert_right(found, ROWS, expected)


@pytest.mark.parametrize("name", ALONE)
def test_a_model_that_cannot_share_is_padded_with_a_message_and_right_numbers(name: str) -> None:
    model = naive.model(name)
    own = own_attention(model)
    expected = expected_of(model, ROWS)
    found, told = scorer_of(model, ROWS, profile())
    assert found.path.name == "padded" and own_attention(model) == own == found.path.attention
    assert told and told[0].startswith("the layout shared, chunked head cannot be used (alignmill_by_groups): ")
    assert all(REASONS[name] in message for message in told)
    # a state-space model's scan runs in float32 even in the float64 copy: what it is compared with is rounded too
    assert_right(found, ROWS, expected, 5 * SLOPE if name == "mamba" else SLOPE)


def test_a_model_that_knows_no_other_attention_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = naive.model("llama")

    def refuses(self: Any, name: str) -> None:
        raise ValueError("no other attention here")

    monkeypatch.setattr(type(model), "set_attn_implementation", refuses)
    found, told = scorer_of(model, ROWS, profile())
    assert found.path.name == "padded" and len(told) == 1  # said once, not once for each way
    assert all("ValueError: no other attention here" in message for message in told)


def test_a_model_without_a_body_of_that_name_is_called_as_a_whole() -> None:
    model = naive.model("llama")
    model.base_model_prefix = "trunk"
    found, told = scorer_of(model, ROWS, profile())
    assert (found.path.name, found.path.own_head) == ("shared", True) and "AttributeError" in told[0]
    assert_right(found, ROWS, expected_of(model, ROWS))


def test_memory_that_runs_out_is_no_reason_to_give_a_layout_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PackedPath, "token_logps", full)
    with pytest.raises(torch.OutOfMemoryError):
        scorer_of(naive.model("llama"), ROWS, profile())


# ------------------------------------------------------------------------------------------------ planted faults


def leaky_whole(packed: Packed, group: packing.Group, window: int | None, like: Tensor) -> tuple[None, bool]:
    """A branch sees the branches before it."""
    return None, True


def leaky_in_segments(patch: pytest.MonkeyPatch) -> None:
    """All branches of a prompt are attended to as one."""

    def attend(query: Tensor, key: Tensor, value: Tensor, packed: Packed, *other: Any) -> Tensor:
        joined = tuple(packing.Group(g.prompt, (sum(g.branches),) if g.branches else ()) for g in packed.groups)
        return by_groups(query, key, value, dataclasses.replace(packed, groups=joined), *other)

    attend.__name__ = "by_groups"
    patch.setattr(attention, "SEGMENT_FROM", 0)
    patch.setattr(scorer, "by_groups", attend)


def packed_window(packed: Packed, group: packing.Group, window: int | None, like: Tensor) -> tuple[Tensor, bool]:
    """The window is measured in places of the packed row."""
    sizes = torch.tensor([group.prompt, *group.branches])
    branch, place = torch.repeat_interleave(torch.arange(len(sizes)), sizes), torch.arange(group.tokens)
    seen = ((branch[None] == 0) | (branch[None] == branch[:, None])) & (place[None] <= place[:, None])
    if window is not None:
        seen &= place[:, None] - place[None] < window
    return attention._additive(seen, like), False


def short_window(real: Callable[..., Any]) -> Callable[..., Any]:
    """The window is one token too narrow."""

    def made(packed: Packed, group: packing.Group, window: int | None, like: Tensor) -> Any:
        return real(packed, group, window - 1 if window else None, like)

    return made


def running_positions(rows: Any, device: Any, share: bool = True, real: Any = packing.pack) -> Packed:
    """Positions go on from branch to branch, and from row to row."""
    packed = real(rows, device, share)
    return dataclasses.replace(packed, positions=torch.arange(packed.tokens)[None])


def late_first_token(rows: Any, device: Any, share: bool = True, real: Any = packing.pack) -> Packed:
    """Every branch's first token is predicted by the token before it in the packed row."""
    packed = real(rows, device, share)
    first = torch.cat([torch.ones(1, dtype=torch.bool), packed.branch.diff() != 0])
    later = torch.cat([packed.source[1:], packed.source[-1:]]) - 1
    return dataclasses.replace(packed, source=torch.where(first, later.clamp(min=0), packed.source))


FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None], str]] = {
    "a branch sees another, whole groups": (
        "llama", lambda patch: patch.setattr(attention, "_whole", leaky_whole), "packed"
    ),
    "a branch sees another, segments": ("llama", leaky_in_segments, "packed"),
    "a window in packed places": (
        "mistral, a window of 11", lambda patch: patch.setattr(attention, "_whole", packed_window), "packed"
    ),
    "a window that is too narrow": (
        "mistral, a window of 11",
        lambda patch: patch.setattr(attention, "_whole", short_window(attention._whole)),
        "padded",
    ),
    "positions that are not restarted": (
        "gpt2", lambda patch: patch.setattr(scorer, "pack", running_positions), "padded"
    ),
    "positions that are not restarted, rotary": (
        "llama", lambda patch: patch.setattr(scorer, "pack", running_positions), "packed"
    ),
    "a first token from the wrong place": (
        "llama", lambda patch: patch.setattr(scorer, "pack", late_first_token), "padded"
    ),
}  # fmt: skip


# Rows that make it hard to see: many of one completion, shorter and longer than the few that have branches.
HIDDEN = [
    *naive.rows([(30 + i, [14], [1.0]) for i in range(4)], seed=8),
    *naive.rows([(10, [12, 9], [1.0, 0.0]), (12, [3, 14], [1.0, 0.0])], seed=9),
    *naive.rows([(2 + i, [1], [1.0]) for i in range(4)], seed=10),
]


@pytest.mark.parametrize("rows", [ROWS, HIDDEN], ids=["rows of all kinds", "few rows with branches"])
@pytest.mark.parametrize("name, plant, falls_to", FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_noticed(
    monkeypatch: pytest.MonkeyPatch, rows: list[Encoded], name: str, plant: Any, falls_to: str
) -> None:
    """Rotary positions are relative, so a packed row whose positions run on is right for a Llama and for no GPT-2."""
    model = naive.model(name)
    rows = [dataclasses.replace(row, record_id=f"{i}") for i, row in enumerate(rows)]
    expected = torch.cat(naive.scored(model, rows))
    plant(monkeypatch)
    found, told = scorer_of(model, rows, profile())
    assert told and told[0].startswith("the layout shared, chunked head cannot be used (alignmill_by_groups): ")
    assert found.path.name == falls_to
    totals, _ = found(found.batch(rows))
    assert float((totals.detach() - expected).abs().max()) < NATS


@pytest.mark.parametrize("seed", range(3))
def test_a_scorer_that_is_no_number_is_noticed(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(scorer, "through_head", lambda *given: torch.full((len(given[2]),), float("nan")))
    found, told = scorer_of(naive.model("llama", seed), ROWS, profile())
    assert (found.path.name, found.path.own_head) == ("shared", True)
    assert "nan nats where the plain forward finds" in told[0]


# ------------------------------------------------------------------------------------------------ adapters


ADAPTERS = {
    "lora": LoRA(rank=3, alpha=6.0),
    "rslora": LoRA(rank=3, alpha=6.0, rslora=True),
    "dora": LoRA(rank=3, alpha=6.0, dora=True),
    "lora on the head too": LoRA(rank=3, alpha=6.0, targets=("q_proj", "down_proj", "lm_head")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS)
def test_adapters_are_scored_and_trained(settings: LoRA, layout: str) -> None:
    """The head is frozen here: its gradient by the hidden states is made in the forward pass."""
    model = with_lora(naive.model("qwen2"), settings, 1)
    found, told = scorer_of(model, ROWS, profile(layout))  # fresh adapters, as in a run: they say nothing yet
    assert (found.path.name, told) == (layout, [])
    naive.moved(model, size=0.3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    expected = expected_of(model, ROWS)
    assert all(float(grad.abs().max()) > 0 for grad in expected.gradient.values())
    assert_right(found, ROWS, expected)
    with without_adapters(model), torch.no_grad():
        bare = found(found.batch(ROWS))[0]
        assert torch.equal(bare, found(found.batch(ROWS))[0])
    plain = torch.cat(naive.scored(naive.model("qwen2"), ROWS))
    assert float((bare - plain).abs().max()) < NATS < float((expected.totals - plain).abs().max())


@pytest.mark.parametrize("settings", [ADAPTERS["rslora"], ADAPTERS["dora"]], ids=["rslora", "dora"])
def test_what_is_saved_is_what_was_scored(tiny: Tiny, tmp_path: Path, settings: LoRA) -> None:
    from training.models import load_model

    model = naive.moved(with_lora(naive.drawn(load_model(tiny.base)), settings, 1), size=0.3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    found, _ = scorer_of(model, ROWS, profile())
    with torch.no_grad():
        before = found(found.batch(ROWS))[0]
        save_model(found.release(), load_tokenizer(tiny.base), tmp_path / "merged")
        again, _ = scorer_of(load_model(tmp_path / "merged").eval(), ROWS, profile())
        after = again(again.batch(ROWS))[0]
    assert float((before - after).abs().max()) < 10 * NATS  # merging rounds once more


# ------------------------------------------------------------------------------------------------ memory and precision


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_activations_that_are_computed_again_give_the_same_gradient(layout: str, adapted: bool) -> None:
    from training.parallel import Parallel
    from training.processes import World

    found = []
    for asked in (False, True):
        model = naive.model("mistral, a window of 11")
        model = with_lora(model, LoRA(rank=2, dropout=0.3), 1) if adapted else model
        chosen = profile(layout, activation_checkpointing=asked)
        made, told = scorer_of(model, ROWS, chosen)
        assert told == []
        Parallel(made, chosen, World()).model.train()
        torch.manual_seed(4)
        totals, _ = made(made.batch(ROWS))
        mixed(totals).backward()
        found.append(naive.gradient(model))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "pure-bfloat16"])
def test_bfloat16_is_as_close_as_its_matrices_allow(dtype: Any, layout: str) -> None:
    """Close to float32 and the same in all layouts; a float32 log-softmax: sums are no multiples of a bfloat16 step."""
    model = naive.drawn(naive.model("llama"), factor=0.7)
    expected = torch.cat(naive.scored(model, ROWS))
    model = model.to(torch.bfloat16) if dtype == "pure-bfloat16" else model
    found, told = scorer_of(model, ROWS, profile(layout, dtype=dtype))
    assert (found.path.name, told) == (layout, [])
    with scorer.judging(model, profile(layout, dtype=dtype)):
        totals, lengths = found(found.batch(ROWS))
    assert totals.dtype == torch.float32
    off = (totals - expected).abs() / lengths.sqrt()
    assert 1e-4 < float(off.max()) < 0.1
    assert not torch.equal(totals, totals.bfloat16().float())


# ------------------------------------------------------------------------------------------------ the choice


def test_the_paths_are_tried_from_the_asked_layout_down() -> None:
    def names(**given: Any) -> list[tuple[str, bool, str]]:
        return [(path.name, path.share, path.attention) for path in paths(profile(**given))]

    groups, segments = "alignmill_by_groups", "alignmill_by_segments"
    assert names() == [("shared", True, groups)] * 2 + [("packed", False, groups)] * 2
    assert names(layout="packed") == [("packed", False, groups)] * 2
    assert [path.own_head for path in paths(profile())] == [False, True] * 2
    assert names(layout="padded") == []
    assert names(device="cuda") == names()  # flash attention knows half precision only
    both = [("shared", True, segments), ("shared", True, groups)]
    assert names(device="cuda", dtype="bfloat16")[:4] == both * 2


def test_what_a_row_costs_is_what_its_layout_computes() -> None:
    big, small = ROWS[5], ROWS[2]
    for share in (True, False):
        path = PackedPath("x", share, by_groups)
        assert path.tokens(small, big) + path.tokens(big, big) == path.batch([big, small], "cpu").tokens
    padded = PaddedPath("sdpa")
    rows = [ROWS[4], ROWS[5], ROWS[7]]
    longest = max(rows, key=lambda row: row.longest)
    assert sum(padded.tokens(row, longest) for row in rows) == padded.batch(rows, "cpu").tokens


def test_a_released_model_has_its_own_attention_and_generates() -> None:
    model = naive.model("llama")
    prompt = torch.tensor([[5, 6, 7, 8]])
    before = copy.deepcopy(model).generate(prompt, max_new_tokens=6, do_sample=False)
    found, _ = scorer_of(model, ROWS, profile())
    assert own_attention(model) == "alignmill_by_groups"
    assert found.release() is model and own_attention(model) == "sdpa"
    assert torch.equal(model.generate(prompt, max_new_tokens=6, do_sample=False), before)


def test_the_choice_leaves_the_model_as_it_was() -> None:
    model = naive.model("llama").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scorer_of(model, ROWS, profile())
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_row_is_enough_to_choose_by() -> None:
    for row in (ROWS[7], ROWS[0]):
        assert scorer_of(naive.model("llama"), [row], profile())[0].path.name == "shared"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_plain_text_have_a_prompt_of_one_token(layout: str) -> None:
    """Plain text and sentence pairs: all that is learnt from stands behind one BOS."""
    model = naive.model("llama")
    rows = [dataclasses.replace(row, prompt=row.prompt[:1]) for row in ROWS]
    found, _ = scorer_of(model, rows, profile(layout))
    assert_right(found, rows, expected_of(model, rows))
