"""The FLOP floor: what a step needs at least, by hand, and what is counted of a model."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from training.data.encode import Encoded
from training.metrics import Sizes, floor_flops, measured_peak, model_sizes
from training.models import with_lora
from training.settings import LoRA, Profile

# A prompt of 4 and completions of 3 and 2 tokens, whose last ones are never fed: 4 + 2 + 1 = 7 tokens through the body,
# 5 predicted ones through the head.
ROW = Encoded("r", (1, 2, 3, 4), ((5, 6, 7), (5, 7)), grades=(1.0, 0.0), kind="score")


def llama(**more: bool) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, **more,
        )
    )  # fmt: skip


def test_the_floor_by_hand() -> None:
    """6 (100 7 + 10 5) = 4,500 trained; 4/6 of it where the weights are frozen; 2/6 only scored."""
    assert floor_flops([ROW], Sizes(100, 10)) == 4500.0
    assert floor_flops([ROW, ROW], Sizes(100, 10)) == 9000.0
    assert floor_flops([ROW], Sizes(100, 10, frozen=True)) == 3000.0
    assert floor_flops([ROW], Sizes(100, 10), trained=False) == 1500.0
    assert floor_flops([], Sizes(100, 10)) == 0.0


def test_the_sizes_of_a_llama_by_hand() -> None:
    """2 layers of 4 8^2 + 3 8 16 = 640; the head 50 8, which is also the table where they are tied; norms count nothing."""
    assert model_sizes(llama(tie_word_embeddings=True)) == Sizes(2 * 640, 400)
    assert model_sizes(llama(tie_word_embeddings=False)) == Sizes(2 * 640, 400)


def test_adapters_count_nothing_and_freeze_the_rest() -> None:
    model = with_lora(llama(), LoRA(rank=2), 1)
    assert model_sizes(model) == Sizes(2 * 640, 400, frozen=True)


def test_position_tables_are_looked_up_and_not_multiplied() -> None:
    """GPT-2: per layer 12 H^2 = 768 with H = 8."""
    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=8, n_layer=2, n_head=2)
    assert model_sizes(GPT2LMHeadModel(config)) == Sizes(2 * 768, 400)


def test_measuring_touches_nothing_that_decides_bits() -> None:
    before = torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    assert measured_peak(Profile(), 0.01) > 1e6
    assert measured_peak(Profile(dtype="bfloat16"), 0.01) > 1e6
    after = torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
