"""Which folders are models, and what a folder that we write holds."""

import io
import json
import pickletools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import naive
from tests.training.tiny import LORA, TEXTS, Tiny, weights
from training.digest import Manifest
from training.models import base_model, check_local, load_model, load_tokenizer, new_model, save_model, with_lora
from training.settings import LoRA, ModelSettings, NewModel, Profile
from training.strict import Refused


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny.base, tmp_path / "model"))


def drop(*patterns: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return change


def pickle_instead(folder: Path) -> None:
    drop("*.safetensors")(folder)
    torch.save({"weight": torch.zeros(2)}, folder / "pytorch_model.bin")


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (shutil.rmtree, "is no folder; name a folder with config.json and *.safetensors, or a hub id"),
    "empty": (drop("*"), "holds no config.json; found nothing"),
    "no config": (drop("config.json"), "holds no config.json; found "),
    "no weights": (drop("*.safetensors"), "holds no *.safetensors (found "),
    "pickle only": (pickle_instead, "because a pickle can run code: convert with save_pretrained"),
    "no tokenizer": (drop("tokenizer*"), "holds no tokenizer files; found "),
}


def test_a_whole_folder_is_accepted(folder: Path) -> None:
    check_local(folder)


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD)
def test_a_folder_without_a_loadable_model_is_refused(
    folder: Path, change: Callable[[Path], None], message: str
) -> None:
    change(folder)
    with pytest.raises(Refused) as raised:
        check_local(folder)
    assert str(raised.value).startswith(f"model.base: {folder} ") and message in str(raised.value)


def test_a_truncated_weights_file_is_refused(folder: Path) -> None:
    data = weights(folder)
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(Refused, match="does not load"):
        load_model(folder)


def test_a_pickle_is_not_loaded_even_where_it_is_all_there_is(folder: Path) -> None:
    pickle_instead(folder)
    with pytest.raises(Refused, match="does not load"):
        load_model(folder)


def test_weights_that_do_not_belong_to_the_config_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(Refused, match=r"lacks weights for model\.layers\.2\..* do not belong together"):
        load_model(folder)


def test_a_broken_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(Refused, match=r"the tokenizer in .* does not load"):
        load_tokenizer(folder)


# ------------------------------------------------------------------------------------------------ what we write


ADAPTERS = {
    "full": None,
    "lora": LORA,
    "rslora": LORA.model_copy(update={"rslora": True}),
    "dora": LORA.model_copy(update={"dora": True}),
}


@pytest.fixture(params=ADAPTERS.values(), ids=ADAPTERS)
def written(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Path:
    """A folder as a training step leaves it: loaded from one place, written to another."""
    model: Any = with_lora(load_model(folder), request.param, 1)
    save_model(model, load_tokenizer(folder), tmp_path / "written")
    return tmp_path / "written"


def test_a_written_folder_loads_again_with_the_same_weights(written: Path, folder: Path) -> None:
    # Fresh adapters are zero, so a merge changes nothing; dora divides by a norm and multiplies by it again.
    check_local(written)
    before, after = load_model(folder).state_dict(), load_model(written).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.allclose(value, after[key], rtol=1e-6, atol=1e-8) for key, value in before.items())
    assert load_tokenizer(written).chat_template == load_tokenizer(folder).chat_template


def test_a_written_folder_holds_no_pickle(written: Path) -> None:
    for path in written.iterdir():
        assert path.suffix in {".safetensors", ".json", ".jinja"}
        data = path.read_bytes()
        assert not data.startswith((b"PK", b"\x80"))
        with pytest.raises(Exception):  # noqa: B017 - any error says that it is no pickle
            pickletools.dis(data, out=io.StringIO())


def test_a_written_folder_holds_no_path_of_this_machine(written: Path, tmp_path: Path) -> None:
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    for path in written.iterdir():
        data = path.read_bytes()
        for needle in (str(tmp_path), "/tmp/", "/home/", str(Path.home())):
            assert needle.encode() not in data, f"{path.name} holds {needle}"


def test_two_new_models_of_one_seed_are_the_same_bytes_and_another_seed_is_not(tmp_path: Path) -> None:
    settings = NewModel(layers=1, hidden=16, heads=2, vocabulary=300, context=32)
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        new_model(settings, seed, iter(TEXTS), tmp_path / name)
        found.append(Manifest.of(tmp_path / name))
    assert found[0] == found[1]
    assert {f.path for f in found[0].files if f not in found[2].files} == {"model.safetensors"}  # not the tokenizer


def test_a_new_model_has_the_size_that_the_settings_say(tiny: Tiny) -> None:
    config = load_model(tiny.base).config
    assert (config.num_hidden_layers, config.hidden_size, config.max_position_embeddings) == (2, 16, 128)
    assert config.vocab_size == len(load_tokenizer(tiny.base)) <= 300
    assert config.eos_token_id == load_tokenizer(tiny.base).eos_token_id


# ------------------------------------------------------------------------------------------------ base


def test_a_base_folder_is_taken_file_by_file_without_what_is_no_model(folder: Path, tmp_path: Path) -> None:
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "notes.txt").write_text("private")
    base_model(ModelSettings(base="model"), 1, tmp_path, list, tmp_path / "out")
    taken = {path.name for path in (tmp_path / "out").iterdir()}
    assert taken == {path.name for path in folder.iterdir()} - {"training_args.bin", "notes.txt"}
    assert weights(tmp_path / "out") == weights(folder)


def test_a_base_that_does_not_exist_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=re.escape(f"model.base: {tmp_path / 'nowhere'} does not exist")) as raised:
        base_model(ModelSettings(base="nowhere"), 1, tmp_path, list, tmp_path / "out")
    assert "name a folder" in str(raised.value) and "'revision'" in str(raised.value)


def test_a_hub_id_that_cannot_be_fetched_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    settings = ModelSettings(base="nobody/nothing", revision="0" * 40)
    with pytest.raises(Refused, match=r"model\.base: nobody/nothing at 0{40} cannot be fetched \("):
        base_model(settings, 1, tmp_path, list, tmp_path / "out")


# ------------------------------------------------------------------------------------------------ adapters


def test_the_scale_of_adapters_is_what_the_settings_say(tiny: Tiny) -> None:
    """alpha / rank, and alpha / sqrt(rank) for rslora; drawn from the seed alone."""

    def scaling(**given: Any) -> set[float]:
        model = with_lora(load_model(tiny.base), LoRA(rank=4, alpha=6.0, **given), 1)
        return {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")}

    assert scaling() == {1.5} and scaling(rslora=True) == {3.0}

    def drawn(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(99 + seed)
        model = with_lora(load_model(tiny.base), LORA, seed)
        return [value for name, value in model.named_parameters() if "lora_A" in name]

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in zip(first, again, other, strict=True))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("targets", [("lm_head",), ("q_proj", "lm_head"), ("embed_tokens",)])
def test_adapters_on_one_end_of_a_tied_matrix_are_refused(tiny: Tiny, targets: tuple[str, ...]) -> None:
    """Merged they would change the other end too: what is saved would not be what was trained."""
    with pytest.raises(Refused, match=r"lora\.targets .* which are one matrix in this model"):
        with_lora(load_model(tiny.base), LoRA(targets=targets), 1)


def test_adapters_on_a_head_of_its_own_are_merged_into_it(tmp_path: Path, tiny: Tiny) -> None:
    rows = naive.rows()
    model = with_lora(naive.model("qwen2"), LoRA(rank=2, targets=("q_proj", "lm_head")), 1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.2)
    before = torch.cat(naive.scored(model, rows))
    save_model(model, load_tokenizer(tiny.base), tmp_path / "merged")
    after = torch.cat(naive.scored(load_model(tmp_path / "merged"), rows))
    assert float((before - after).abs().max()) < 1e-3
    assert float((after - torch.cat(naive.scored(naive.model("qwen2"), rows))).abs().max()) > 1


@pytest.mark.parametrize(
    "dtype, expected",
    [("float32", torch.float32), ("bfloat16", torch.float32), ("pure-bfloat16", torch.bfloat16)],
)
def test_weights_are_loaded_in_the_dtype_of_the_profile(tiny: Tiny, dtype: Any, expected: torch.dtype) -> None:
    model = load_model(tiny.base, Profile(dtype=dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
