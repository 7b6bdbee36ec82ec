"""The base model and every model we write: safetensors, tokenizer with a chat template, no pickle, no path inside."""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from training.settings import LoRA, ModelSettings, NewModel, Profile
from training.strict import Refused

SPECIAL = {"pad_token": "<|pad|>", "bos_token": "<|bos|>", "eos_token": "<|end|>"}
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
_MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*",
                "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*", "*.model")  # fmt: skip


def prepare_torch(profile: Profile) -> None:
    """Fix what decides bits: threads, deterministic kernels. Call once, before any tensor is made."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    # First of all, because threads inherit it: a matrix of denormals is multiplied a hundred times more slowly, and the
    # gradients of pairs that are learnt come to that.
    torch.set_flush_denormal(True)
    torch.set_num_threads(profile.threads)
    torch.use_deterministic_algorithms(True)
    if profile.device == "cuda" and not torch.cuda.is_available():
        raise Refused("the profile asks for device 'cuda' and none is at hand; use a profile with device: cpu")


def new_model(settings: NewModel, seed: int, texts: Iterable[str], output: Path) -> None:
    """Write a small random Llama and a byte-level BPE tokenizer trained on ``texts`` into ``output``.

    Raises Refused where the texts hold too little to learn a vocabulary from.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from training.data.encode import CHAT_TEMPLATE

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [*SPECIAL.values(), *ROLES]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, **SPECIAL, extra_special_tokens=ROLES, model_max_length=settings.context
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    save_model(LlamaForCausalLM(config), tokenizer, output)


def check_local(folder: Path) -> None:
    """Refuse a folder that holds no loadable model, before any time is spent. Raises Refused."""
    if not folder.is_dir():
        raise Refused(
            f"model.base: {folder} is no folder; name a folder with config.json and *.safetensors, or a hub id"
        )
    if not (folder / "config.json").is_file():
        raise Refused(f"model.base: {folder} holds no config.json; found {_names(folder)}")
    if not list(folder.glob("*.safetensors")):
        raise Refused(
            f"model.base: {folder} holds no *.safetensors (found {_names(folder)}); only safetensors are loaded, "
            "because a pickle can run code: convert with save_pretrained"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise Refused(f"model.base: {folder} holds no tokenizer files; found {_names(folder)}")


def _names(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "") or "nothing"


def base_model(
    settings: ModelSettings, seed: int, root: Path, texts: Callable[[], Iterable[str]], output: Path
) -> None:
    """Write the base model's files into ``output``: made here, linked from a folder, or fetched from the hub.

    Raises Refused where it cannot be had or does not load.
    """
    if settings.new is not None:
        new_model(settings.new, seed, texts(), output)
        return
    output.mkdir(parents=True)
    for name, path in model_files(find_base(settings, root)).items():
        link_or_copy(path, output / name)
    load_model(output)
    load_tokenizer(output)


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a model folder that are used, by name; links (as in the hub's cache) are followed."""
    return {path.name: path.resolve() for pattern in _MODEL_FILES for path in sorted(folder.glob(pattern))}


def local_folder(settings: ModelSettings, root: Path) -> Path | None:
    """The folder that ``base`` names, or None where it is a hub id. A hub id always comes with ``revision``."""
    assert settings.base is not None
    return None if settings.revision is not None else (root / settings.base)


def find_base(settings: ModelSettings, root: Path) -> Path:
    """The base model's folder: the named one, or the hub snapshot at the commit. Raises Refused."""
    folder = local_folder(settings, root)
    if folder is not None:
        if not folder.exists():
            raise Refused(
                f"model.base: {folder} does not exist; name a folder with config.json and *.safetensors, or give "
                "'revision' (the 40-character commit) where it is a hub id"
            )
        check_local(folder)
        return folder
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(str(settings.base), revision=settings.revision, allow_patterns=list(_MODEL_FILES))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise Refused(
            f"model.base: {settings.base} at {settings.revision} cannot be fetched ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); check the id and commit, the network and HF_HUB_OFFLINE, or use a folder"
        ) from error
    check_local(Path(found))
    return Path(found)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system allows one: no second copy of large weights."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def load_model(folder: Path, profile: Profile | None = None, lora: LoRA | None = None) -> Any:
    """A causal language model from safetensors, on the profile's device. Raises Refused.

    Weights are float32, or bfloat16 where the profile says ``pure-bfloat16``; 4-bit where ``lora.bits`` says so. They are read
    file by file into their place: no second copy is held.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = "cuda" if profile is not None and profile.device == "cuda" else "cpu"
    dtype = torch.bfloat16 if profile is not None and profile.dtype == "pure-bfloat16" else torch.float32
    quantised = lora is not None and lora.bits is not None
    extra = {"quantization_config": _four_bit(dtype, profile), "device_map": {"": device}} if quantised else {}
    try:
        load: Any = AutoModelForCausalLM.from_pretrained
        model, facts = load(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True, **extra
        )
    except Exception as error:
        raise Refused(
            f"the model in {folder} does not load ({type(error).__name__}: {str(error).splitlines()[0][:300]}); it needs "
            "whole *.safetensors files and the config.json of a causal language model that transformers knows"
        ) from error
    missing = sorted(facts["missing_keys"]) + sorted(str(key) for key in facts.get("mismatched_keys", ()))
    if missing:
        raise Refused(
            f"the model in {folder} lacks weights for {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}: they would "
            "be random; its config.json and its *.safetensors do not belong together"
        )
    return model if quantised else model.to(device)


def _four_bit(dtype: Any, profile: Profile | None) -> Any:
    """4-bit NormalFloat with doubly quantised constants (arXiv 2305.14314). Raises Refused without bitsandbytes."""
    import importlib.util

    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise Refused("lora.bits: 4 needs bitsandbytes, which is not installed: pip install 'alignmill[quantised]'")
    compute = torch.bfloat16 if profile is not None and profile.dtype != "float32" else dtype
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer beside a model, with a padding token. Raises Refused."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise Refused(
            f"the tokenizer in {folder} does not load ({type(error).__name__}: {str(error)[:300]})"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def with_lora(model: Any, settings: LoRA | None, seed: int) -> Any:
    """The model itself, or it with fresh adapters (their initial weights come from the seed). Raises Refused."""
    if settings is None:
        return model
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # a float is fine, peft only divides it
        lora_dropout=settings.dropout,
        target_modules=targets,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        task_type="CAUSAL_LM",
    )
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tied = None not in ends and ends[0].weight is ends[1].weight
    try:
        adapted: Any = get_peft_model(model, config)
    except ValueError as error:
        raise Refused(f"lora.targets {settings.targets!r} do not fit this model: {error}") from error
    plain = adapted.get_base_model()
    ends = (plain.get_input_embeddings(), plain.get_output_embeddings())
    if tied and any("lora_" in name for end in ends for name, _ in end.named_parameters()):
        raise Refused(
            f"lora.targets {settings.targets!r} reach the embeddings or the output head, which are one matrix in this model: "
            "adapters of one, merged, would change the other; leave both out, or use 'all-linear'"
        )
    return adapted


def on_whole_weights(model: Any, settings: LoRA | None, folder: Path) -> Any:
    """Adapters that were trained on 4-bit weights, put on the weights that these were made of: what is merged loses
    nothing to quantisation. Any other model is returned as it is."""
    if settings is None or settings.bits is None:
        return model
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    adapters = get_peft_model_state_dict(model)
    whole = with_lora(load_model(folder), settings, 0)
    set_peft_model_state_dict(whole, adapters)
    return whole


def save_model(model: Any, tokenizer: Any, output: Path) -> None:
    """Write merged weights, settings and tokenizer into ``output``, all or nothing."""
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    partial = output.with_name(f".partial-{output.name}")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(output)


def token_facts(model: Any) -> dict[str, int]:
    """Parameters in all, and those that are trained."""
    parameters = list(model.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
    }
