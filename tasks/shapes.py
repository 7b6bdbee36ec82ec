"""A model's sizes, before it is loaded or even made: from its settings, or from the headers of its files. No torch."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.settings import LoRA, NewModel
from training.strict import Refused

_NO_LINEAR = ("embed", "wte", "wpe", "lm_head")


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes. ``matrices``: (module name, inputs, outputs) of each linear layer but the output head.

    ``lookup``: parameters of an input table that no matrix product reads (0 where it is tied to the head).
    """

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    context: int | None
    lookup: int
    matrices: tuple[tuple[str, int, int], ...]


def new_shape(settings: NewModel, vocabulary: int | None = None) -> Shape:
    """The Llama of ``training.models.new_model``; ``vocabulary`` where the text was too little for the one asked for.

    parameters = V H (tied) + layers (4 H^2 + 3 H I + 2 H) + H, I = floor(8 H / 3) rounded down to a multiple of 8.
    """
    hidden, inner = settings.hidden, settings.hidden * 8 // 3 // 8 * 8
    words = settings.vocabulary if vocabulary is None else vocabulary
    layer = [(f"self_attn.{name}_proj", hidden, hidden) for name in "qkvo"]
    layer += [("mlp.gate_proj", hidden, inner), ("mlp.up_proj", hidden, inner), ("mlp.down_proj", inner, hidden)]
    matrices = tuple((f"layers.{i}.{name}", a, b) for i in range(settings.layers) for name, a, b in layer)
    total = words * hidden + sum(a * b for _, a, b in matrices) + (2 * settings.layers + 1) * hidden
    return Shape(total, settings.layers, hidden, inner, words, settings.context, 0, matrices)


def folder_shape(folder: Path) -> Shape:
    """A local model's sizes from config.json and the headers of its safetensors; no weight is read.

    Raises Refused on a file that is cut off or has no valid header, and on a config.json that is no JSON object.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = {**config, **config.get("text_config", {})}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Refused(
            f"model.base: {folder / 'config.json'} is no JSON object of settings ({error}); save the model again with "
            "save_pretrained"
        ) from None
    tensors: dict[str, list[int]] = {}
    for path in _weights(folder):
        tensors |= _header(path)
    total = sum(math.prod(shape) for shape in tensors.values())
    flat = {name.removesuffix(".weight"): s for name, s in tensors.items() if name.endswith(".weight") and len(s) == 2}
    linear = tuple((name, s[1], s[0]) for name, s in flat.items() if not any(word in name for word in _NO_LINEAR))
    untied = any("lm_head" in name for name in flat)
    table = max((math.prod(s) for name, s in flat.items() if "embed" in name or "wte" in name), default=0)

    def size(*names: str) -> int:
        return next((int(config[name]) for name in names if isinstance(config.get(name), int)), 0)

    hidden = size("hidden_size", "n_embd", "d_model")
    return Shape(
        total,
        size("num_hidden_layers", "n_layer", "num_layers"),
        hidden,
        size("intermediate_size", "n_inner", "ffn_dim") or 4 * hidden,
        size("vocab_size"),
        size("max_position_embeddings", "n_positions") or None,
        table if untied else 0,
        linear,
    )


def _weights(folder: Path) -> list[Path]:
    """The files that transformers reads: model.safetensors, else those of the index, else all there are."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        return [folder / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Refused(f"model.base: {index} names no weights in 'weight_map'; copy the model again") from None


def _header(path: Path) -> dict[str, list[int]]:
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= size - 8:
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        whole = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if size < whole:
            raise ValueError(f"{size:,} bytes of {whole:,} are there")
        return {name: [int(n) for n in entry["shape"]] for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise Refused(
            f"model.base: {path} is no whole safetensors file ({getattr(error, 'strerror', None) or error}); "
            "copy it again"
        ) from None


def trained_parameters(shape: Shape, lora: LoRA | None) -> int:
    """All parameters, or with LoRA the sum of rank (inputs + outputs) over the adapted linear layers."""
    if lora is None:
        return shape.parameters
    chosen = [
        (a, b)
        for name, a, b in shape.matrices
        if isinstance(lora.targets, str) or any(name == t or name.endswith(f".{t}") for t in lora.targets)
    ]
    return sum(lora.rank * (a + b) for a, b in chosen)
