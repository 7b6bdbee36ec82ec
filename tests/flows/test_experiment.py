"""The experiment file: hostile input is refused with every error at once, and identity is what the settings mean."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.experiment import Experiment, load_experiment, load_profile, load_settings
from tests.flows.tiny import settings
from training.settings import Profile
from training.strict import Refused

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((ROOT / "deployments" / "experiments").glob("*.yaml"))
PROFILES = sorted((ROOT / "deployments" / "profiles").glob("*.yaml"))

MINIMAL = """
name: small
seed: 1
model: {new: {layers: 1}}
data: {preferences: [{path: pairs.jsonl}]}
preference: {loss: {name: dpo}, epochs: 1, learning_rate: 2e-4}
registry: {model: small}
"""


def load(tmp_path: Path, text: str | bytes) -> Experiment:
    file = tmp_path / "e.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_experiment(file).experiment


def refusal(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(Refused) as caught:
        load(tmp_path, text)
    assert caught.value.exit_code == 2
    assert str(tmp_path / "e.yaml") in str(caught.value)
    return str(caught.value)


def changed(*path: str | int, value: Any) -> str:
    """The tiny experiment with one value set (or, for ..., removed), as YAML."""
    whole: Any = settings()
    here = whole
    for part in path[:-1]:
        here = here[part]
    if value is ...:
        del here[path[-1]]
    else:
        here[path[-1]] = value
    return yaml.safe_dump(whole)


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds nothing; expected are the sections name, seed, model"),
        (b"# only a comment\n", "holds nothing"),
        (b"- a\n- b\n", "holds list"),
        (b"just text", "holds str"),
        (b"42", "holds int"),
        (b"name:\tx\n\tseed: 1\n", "is no valid YAML"),
        (b"{{{{", "is no valid YAML"),
        (b"a: [1, 2", "is no valid YAML"),
        (b"a: *nowhere", "is no valid YAML"),
        (b"--- {a: 1}\n--- {b: 2}\n", "is no valid YAML"),
        (b"\x00\x01\x02", "is no valid YAML"),
        (b"\xff\xfe\x00n", "it is not UTF-8 text"),
        (bytes(range(128, 256)), "it is not UTF-8 text"),
        (b"name: !!python/object/apply:os.system ['false']\n", "is no valid YAML"),
        (b"1: x\n", "the key 1 is not text"),
        (b"? [a, b]\n: x\n", "is not text"),
        (b"name: a\nname: b\n", "the key 'name' stands twice"),
        (b"name: a\nmodel: {new: {layers: 1, layers: 2}}\n", "the key 'layers' stands twice"),
        (b"base: &b {seed: 1}\n<<: *b\nname: a\n", "an alias (*) stands for a value; write the value out"),
        (b"a: " + b"[" * 5000, "nested too deeply"),
        (b"a: &a [x, *a]\n", "write the value out"),
        (b"name: a\nseed: !!binary aGk=\n", "write plain values, without tags"),
        (b"name: a\nseed: !!int x\n", "is no valid YAML"),
        (b"seed: " + b"9" * 5000 + b"\n", "is no valid YAML"),
    ],
)
def test_what_is_no_mapping_of_settings_is_refused(content: bytes, told: str, tmp_path: Path) -> None:
    assert told in refusal(tmp_path, content)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path, told in [(tmp_path / "absent.yaml", "No such file"), (tmp_path, "Is a directory"), ("a\0b", "null byte")]:
        with pytest.raises(Refused, match=told):
            load_experiment(path)


# ------------------------------------------------------------------------------------------------ errors


def test_all_errors_come_at_once_with_path_found_and_allowed(tmp_path: Path) -> None:
    text = """
name: Small One
sed: 1
model: {new: {layer: 2, heads: 0}}
data: {preferences: []}
sft: {steps: 1, epochs: 2, learning_rate: fast}
preference: {loss: {name: dpoo}, epochs: 1, learning_rate: 0, schedule: cosin}
gate: {floors: [{metric: accuracy, minimum: 0.5}]}
registry: {model: small}
"""
    told = refusal(tmp_path, text).splitlines()
    assert told[0].endswith(f"{len(told) - 1} errors")
    for start, part in [
        ("name", 'found "Small One"'),
        ("seed", "missing; it is required"),
        ("sed", "unknown key; did you mean 'seed'? Allowed: name, seed, model"),
        ("model.new.layer", "unknown key; did you mean 'layers'?"),
        ("model.new.heads", "found 0; input should be greater than or equal to 1"),
        ("data.preferences", "found []"),
        ("sft.learning_rate", 'found "fast"; input should be a valid number'),
        ("preference.loss.name", "did you mean 'dpo'?"),
        ("preference.learning_rate", "found 0; input should be greater than 0"),
        ("preference.schedule", "did you mean 'cosine'?"),
        ("gate.floors.0.metric", 'found "accuracy"'),
    ]:
        assert [line for line in told if line.strip().startswith(f"{start}: ") and part in line], (start, told)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("sft", "epochs"), 2, "sft: give either 'steps' or 'epochs'"),
        (("model", "base"), "folder", "model: give either 'base'"),
        (("model", "revision"), "main", 'model.revision: found "main"'),
        (("model", "new", "hidden"), 30, "model.new: hidden (30) must be a multiple of 2 x heads"),
        (("data", "holdout"), {"share": 0.1, "sources": [{"path": "x"}]}, "data.holdout: give either 'share'"),
        (("data", "holdout", "share"), 1, "data.holdout.share: found 1; input should be less than 1"),
        (("data", "preferences", 0, "pth"), "x", "data.preferences.0.pth: unknown key; did you mean 'path'?"),
        (("validation", "duplicate"), "quarantin", "did you mean 'quarantine'?"),
        (("gate", "collapse_off_reason"), ..., "gate: collapse: null turns the collapse guard off"),
        (("seed",), 1.5, "seed: found 1.5"),
        (("seed",), True, "seed: found true"),
        (("seed",), -1, "seed: found -1"),
        (("seed",), 2**31, "seed: found 2147483648"),
        (("seed",), None, "seed: found null"),
        (("sft", "learning_rate"), float("nan"), "sft.learning_rate: found NaN"),
        (("sft", "learning_rate"), float("inf"), "sft.learning_rate: found Infinity"),
        (("preference", "loss", "beta"), float("-inf"), "preference.loss.beta: found -Infinity"),
        (("gate", "floors", 0, "minimum"), float("nan"), "gate.floors.0.minimum: found NaN"),
        (("sft", "steps"), "40", 'sft.steps: found "40"'),
        (("sft",), [], "sft: found []"),
        (("name",), "x" * 65, "name: found"),
        (("registry", "model"), "a/b", 'registry.model: found "a/b"'),
    ],
)
def test_one_wrong_value_is_one_line(path: tuple[Any, ...], value: Any, told: str, tmp_path: Path) -> None:
    lines = refusal(tmp_path, changed(*path, value=value)).splitlines()
    assert lines[0].endswith("1 error") and len(lines) == 2
    assert told in lines[1]


EVERY_LOSS = (
    "dpo, robust, hinge, ipo, dpop, odpo, apo_zero, apo_down, cpo, simpo, orpo, kto, rrhf, listwise"  # as in the union
)


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ({"name": "dpoo"}, f"preference.loss.name: found \"dpoo\"; did you mean 'dpo'? Allowed: {EVERY_LOSS}"),
        ({"name": "Apo-zero"}, "preference.loss.name: found \"Apo-zero\"; did you mean 'apo_zero'? Allowed: dpo, robust"),
        ({"name": 3}, f"preference.loss.name: found 3. Allowed: {EVERY_LOSS}"),
        ({"name": None}, "preference.loss.name: found null. Allowed: dpo, robust"),
        ({"name": ["dpo"]}, 'preference.loss.name: found ["dpo"]'),
        ({}, f"preference.loss.name: missing; it is required. Allowed: {EVERY_LOSS}"),
        ({"beta": 0.1}, "preference.loss.name: missing; it is required. Allowed: dpo, robust"),
        ("dpo", 'preference.loss: found "dpo"; input should be an object'),
        ({"name": "ipo", "beta": 0.1}, "preference.loss.beta: unknown key; did you mean 'tau'? Allowed: name, tau, average"),
        ({"name": "dpo", "robust": 1}, "preference.loss.robust: unknown key. Allowed: name, beta, label_smoothing"),
        ({"name": "orpo", "lambda": 1}, "preference.loss.lambda: unknown key; did you mean 'lambda_'? Allowed: name, lambda_"),
        ({"name": "kto", "beta": "x"}, 'preference.loss.beta: found "x"; input should be a valid number'),
        ({"name": "odpo", "f": "lag"}, "preference.loss.f: found \"lag\"; input should be 'log' or 'identity'; did you mean"),
        ({"name": "robust", "label_smoothing": 0.5}, "preference.loss.label_smoothing: found 0.5; input should be less than 0.5"),
    ],
)  # fmt: skip
def test_a_loss_is_told_by_its_name_and_knows_its_own_keys_only(loss: Any, told: str, tmp_path: Path) -> None:
    lines = refusal(tmp_path, changed("preference", "loss", value=loss)).splitlines()
    assert lines[0].endswith("1 error") and len(lines) == 2
    assert lines[1].strip().startswith(told)


def test_every_error_of_a_loss_comes_at_once(tmp_path: Path) -> None:
    told = refusal(tmp_path, changed("preference", "loss", value={"name": "simpo", "beta": 0, "gama": 1})).splitlines()
    assert [line.strip().split(":")[0] for line in told[1:]] == ["preference.loss.beta", "preference.loss.gama"]
    assert told[2].endswith("did you mean 'gamma'? Allowed: name, beta, gamma")


@pytest.mark.parametrize("name", EVERY_LOSS.split(", "))
def test_every_loss_can_be_asked_for_by_its_name_alone(name: str, tmp_path: Path) -> None:
    loss = load(tmp_path, changed("preference", "loss", value={"name": name})).preference.loss
    assert loss.name == name
    assert load(tmp_path, changed("preference", "loss", value=loss.model_dump())).preference.loss == loss


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, changed("name", value="x" * 100_000))) < 1000


# ------------------------------------------------------------------------------------------------ scalars


def test_4e_3_is_a_number(tmp_path: Path) -> None:
    for text, value in [("4e-3", 0.004), ("2E-4", 0.0002), (".5", 0.5), ("1e0", 1.0), ("1", 1.0)]:
        e = load(tmp_path, MINIMAL.replace("2e-4", text))
        assert e.preference.learning_rate == value


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "2024-01-31", "12:30:00", "0x1f", "0o17", "007", "null0"])
def test_words_that_yaml_1_1_would_convert_are_text(word: str, tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL.replace("pairs.jsonl", word)).data.preferences[0].path == word


def test_quotes_make_text(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL.replace("name: small", 'name: "2024"')).name == "2024"
    assert "name: found 2024" in refusal(tmp_path, MINIMAL.replace("name: small", "name: 2024"))
    assert "seed" in refusal(tmp_path, MINIMAL.replace("seed: 1", 'seed: "1"'))


# ------------------------------------------------------------------------------------------------ identity


def test_comments_key_order_and_written_out_defaults_do_not_change_the_digest(tmp_path: Path) -> None:
    plain = load(tmp_path, MINIMAL)
    turned = dict(reversed(yaml.safe_load(MINIMAL.replace("2e-4", "0.0002")).items()))
    assert load(tmp_path, "# a comment\n" + MINIMAL.replace("seed: 1", "seed: 1   # why")).digest == plain.digest
    assert load(tmp_path, yaml.safe_dump(turned, sort_keys=False)).digest == plain.digest
    assert load(tmp_path, json.dumps(turned)).digest == plain.digest
    assert load(tmp_path, yaml.safe_dump(plain.model_dump(mode="json"))).digest == plain.digest
    assert load(tmp_path, plain.canonical).canonical == plain.canonical
    assert load(tmp_path, MINIMAL.replace("2e-4", "2.0E-04")).digest == plain.digest
    assert load(tmp_path, MINIMAL.replace("\n", "\r\n")).digest == plain.digest


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [leaf for i, inner in enumerate(value) for leaf in leaves(inner, (*path, i))]
    return [path]


def test_any_changed_value_changes_the_digest(tmp_path: Path) -> None:
    plain = load(tmp_path, changed("seed", value=3))
    whole = plain.model_dump(mode="json")
    other: dict[Any, Any] = {
        "stop": "quarantine",
        "quarantine": "stop",
        "warn": "stop",
        "cosine": "linear",
        "sft": None,
    }
    tried = 0
    for path in leaves(whole):
        altered = copy.deepcopy(whole)
        here = altered
        for part in path[:-1]:
            here = here[part]
        old = here[path[-1]]
        if isinstance(old, bool):
            here[path[-1]] = not old
        elif isinstance(old, int | float):
            share = path[-1] == "at_most" or 0.8 < old < 1  # one that may not be more than 1
            here[path[-1]] = old - 0.125 if share and old else old * 2 if 0 < old * 2 <= 1 or old >= 1 else old + 0.125
        elif isinstance(old, str):
            here[path[-1]] = other.get(old, f"{old}x")
        elif isinstance(old, list) and old and isinstance(old[0], float):
            here[path[-1]] = [old[0] / 2, *old[1:]]
        else:
            continue  # nothing there that could be changed alone
        try:
            assert load(tmp_path, json.dumps(altered)).digest != plain.digest, path
            tried += 1
        except Refused:
            assert path[-1] in ("name", "heads"), path  # no such loss; heads must divide the width
    assert tried >= 60


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    e = load(tmp_path, MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        e.seed = 2  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------ shipped files


def test_there_are_shipped_files() -> None:
    assert EXPERIMENTS and PROFILES


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_shipped_experiment_is_valid(path: Path) -> None:
    loaded = load_experiment(path)
    assert loaded.root == path.parent and len(loaded.experiment.digest.value) == 64


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_shipped_profile_is_valid(path: Path) -> None:
    assert load_profile(path.stem) == load_profile(path) == load_settings(Profile, path)


def test_an_unknown_profile_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"'labtop' is no file and no shipped profile; did you mean 'laptop'.*one-gpu"):
        load_profile("labtop")
    with pytest.raises(Refused, match="No such file"):
        load_profile(tmp_path / "absent.yaml")
    (tmp_path / "p.yaml").write_text("devices: cpu\nthreads: 0\n")
    with pytest.raises(Refused, match=r"(?s)2 errors.*devices: unknown key; did you mean 'device'.*|threads: found 0"):
        load_profile(tmp_path / "p.yaml")
    assert load_profile(None) == load_profile("laptop")
