"""A random Llama of 30,000 parameters with a byte-level tokenizer, made offline, and a folder of small benchmarks."""

import json
import os
from pathlib import Path

import pytest

for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(_name, "1")

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_policy(folder: Path, seed: int, layers: int = 1, width: int = 16, vocabulary: int = 300) -> Path:
    """Write a random policy of ``seed``; all policies share one tokenizer, whose end of text is ``<|end|>``."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the quick brown fox", "the lazy dog says hello"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=max(vocabulary, len(fast)),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("policies")
    return {"policy": make_policy(root / "policy", 1), "champion": make_policy(root / "champion", 2)}


@pytest.fixture
def include(tmp_path: Path) -> Path:
    """Three benchmarks: ``pairs`` (multiple choice), ``echo`` (generation, own judge), ``prose`` (perplexity)."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    rows = [{"prompt": f"question {i}", "good": f" yes {i}", "bad": f" no {i}"} for i in range(12)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "_base").write_text(
        "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: pairs.jsonl\ntest_split: test\n"
        "doc_to_text: '{{prompt}}'\n"
    )
    (folder / "pairs.yaml").write_text(
        "include: _base\ntask: pairs\noutput_type: multiple_choice\ndoc_to_choice: '{{[good, bad]}}'\n"
        "doc_to_target: 0\ntarget_delimiter: ''\nmetric_list:\n  - metric: acc\n    aggregation: mean\n"
        "    higher_is_better: true\n"
    )
    (folder / "echo.yaml").write_text(
        "include: _base\ntask: echo\noutput_type: generate_until\ndoc_to_target: '{{good}}'\n"
        "process_results: !function judge.longer\ngeneration_kwargs:\n  until: ['\\n']\n  max_gen_toks: 8\n"
        "  do_sample: false\nmetric_list:\n  - metric: long\n    aggregation: mean\n    higher_is_better: true\n"
    )
    (folder / "judge.py").write_text(
        'def longer(item, answers):\n    return {"long": float(len(answers[0]) > len(item["good"]))}\n'
    )
    (folder / "prose.yaml").write_text(
        "include: _base\ntask: prose\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        "doc_to_target: '{{prompt}}'\n"
        "metric_list:\n  - metric: word_perplexity\n  - metric: byte_perplexity\n  - metric: bits_per_byte\n"
    )
    return folder
