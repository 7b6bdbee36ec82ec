"""``alignmill init``: the file it writes loads, passes the preflight and fits the data; the rest is refused."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main
from flows.experiment import load_experiment
from flows.init import experiment_name, write_experiment
from tasks.preflight import preflight
from training.strict import Refused

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="shared/data is not here")


def write_pairs(path: Path, rows: int = 60, **extra: Any) -> Path:
    lines = (
        {"prompt": f"Question {i}?", "chosen": f"Yes, it is {i}.", "rejected": f"No {i}.", **extra} for i in range(rows)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def written(tmp_path: Path, data: Path, **options: Any) -> Any:
    target = tmp_path / "made.yaml"
    write_experiment(str(data), str(target), **options)
    loaded = load_experiment(target)
    e = loaded.experiment
    preflight(loaded.root, e.model, e.data, e.benchmarks, e.gate)
    return e


def test_the_file_loads_and_passes_the_preflight(tmp_path: Path) -> None:
    e = written(tmp_path, write_pairs(tmp_path / "pairs.jsonl"))
    assert (e.name, e.registry.model, e.data.preferences[0].path) == ("pairs", "pairs", "pairs.jsonl")
    assert e.model.new is not None and e.sft is not None and e.gate.improve and e.gate.guards and e.gate.floors
    assert e.sft.max_tokens == e.preference.max_tokens == 32  # 'Question 59?' and its answer are some twenty tokens


def test_every_setting_has_a_comment_on_its_line_and_the_file_is_40_to_70_lines(tmp_path: Path) -> None:
    write_experiment(str(write_pairs(tmp_path / "pairs.jsonl")), str(tmp_path / "e.yaml"))
    lines = (tmp_path / "e.yaml").read_text().splitlines()
    assert 40 <= len(lines) <= 70
    assert max(map(len, lines)) <= 120
    silent = [line for line in lines if re.match(r" *\w+: \S", line) and "#" not in line]
    # What the name says already.
    assert [line.split(":")[0].strip() for line in silent] == ["name", "layers", "heads"]


@pytest.mark.parametrize(
    ("grades", "loss", "others", "second"),
    [
        ([{"rank": 1}, {"rank": 2}], "dpo", "orpo", "ipo"),
        ([{"score": 0.9}, {"score": 0.2}, {"score": 0.5}], "dpo", "odpo", "listwise"),
        ([{"label": True}, {"label": False}], "kto", "ipo", "dpo"),
    ],
    ids=["ranks", "scores", "labels"],
)
def test_the_loss_fits_the_grades_and_the_comparison_loads_when_it_is_uncommented(
    grades: list[dict[str, Any]], loss: str, others: str, second: str, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"Question {i}?", "completions": [{"text": f"Answer {i} {n}", **g} for n, g in enumerate(grades)]}
        for i in range(60)
    ]
    data = tmp_path / "graded.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    e = written(tmp_path, data)
    assert e.preference.loss.name == loss and e.compare == ()
    text = (tmp_path / "made.yaml").read_text()
    assert others in next(line for line in text.splitlines() if "# or one of:" in line)
    start, end = text.index("# compare:"), text.index("benchmarks:")
    uncommented = "".join(line.removeprefix("# ").removeprefix("#") for line in text[start:end].splitlines(True))
    (tmp_path / "made.yaml").write_text(text[:start] + uncommented + text[end:])
    e = load_experiment(tmp_path / "made.yaml").experiment
    assert list(e.candidates()) == [loss, second]
    assert e.candidates()[loss] == e.preference  # what a run has trained is not trained again


def test_labelled_rows_without_a_pair_are_for_kto(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}?", "completion": f"Answer {i}", "label": i % 3 > 0} for i in range(60)]
    data = tmp_path / "labelled.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    e = written(tmp_path, data)
    assert e.preference.loss.name == "kto"
    assert [rule.metric for rule in e.gate.floors] == ["holdout/desirable_auc"]
    text = (tmp_path / "made.yaml").read_text()
    assert "form 'labelled', 40 good and 20 bad." in text and "# or one of: none: the other losses need" in text


def test_a_folder_of_files_is_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    for i in range(3):
        write_pairs(tmp_path / "pairs" / f"{i}.jsonl", 30)
    assert written(tmp_path, tmp_path / "pairs").data.preferences[0].path == "pairs"


def test_a_tiny_file_holds_more_out(tmp_path: Path) -> None:
    assert written(tmp_path, write_pairs(tmp_path / "tiny.jsonl", 30)).data.holdout.share == 0.5
    (tmp_path / "made.yaml").unlink()
    assert written(tmp_path, write_pairs(tmp_path / "large.jsonl", 1000)).data.holdout.share == 0.1


def test_steps_are_capped(tmp_path: Path) -> None:
    e = written(tmp_path, write_pairs(tmp_path / "many.jsonl", 4500))
    assert e.sft.steps == 400 and e.preference.steps == 200 and e.preference.epochs is None


def test_the_path_is_relative_to_the_experiment_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "experiments").mkdir()
    write_pairs(tmp_path / "data" / "a: b #c 'ü'.jsonl")
    monkeypatch.chdir(tmp_path)
    value = write_experiment("data/a: b #c 'ü'.jsonl", "experiments/x.yaml")
    assert value["file"] == "experiments/x.yaml"
    e = load_experiment("experiments/x.yaml").experiment
    assert e.data.preferences[0].path == "../data/a: b #c 'ü'.jsonl"
    assert e.name == "a-b-c"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Pairs.jsonl", "pairs"),
        ("My Pairs (v2).jsonl.gz", "my-pairs-v2"),
        ("2024.csv", "2024"),
        ("true.csv", "true"),
        ("__x__.json", "x"),
        (".hidden", "hidden"),
        ("日本.jsonl", "experiment"),
        ("a" * 99 + ".jsonl", "a" * 64),
    ],
)
def test_the_name_comes_from_the_file(file: str, name: str, tmp_path: Path) -> None:
    assert experiment_name(Path(file)) == name
    assert written(tmp_path, write_pairs(tmp_path / file)).name == name


def test_an_existing_file_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl")
    target = tmp_path / "e.yaml"
    target.write_text("mine")
    assert main(["init", str(data), "-o", str(target)]) == 2
    assert target.read_text() == "mine"
    assert "not overwritten" in (told := capsys.readouterr().err) and "--output" in told
    dangling = tmp_path / "link.yaml"
    dangling.symlink_to(tmp_path / "nowhere.yaml")
    with pytest.raises(Refused, match="not overwritten"):
        write_experiment(str(data), str(dangling))
    with pytest.raises(Refused, match="is a folder; name the file"):
        write_experiment(str(data), str(tmp_path))
    with pytest.raises(Refused, match="no folder; make it first"):
        write_experiment(str(data), str(tmp_path / "absent" / "e.yaml"))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [{"prompt": "a", "completion": "b"}] * 30,
            "'completion' has one completion a prompt.*preference data are needed",
        ),
        ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}], "data.sft"),
        (
            [{"prompt": "a", "completions": [{"text": "b", "score": 1}, {"text": "c", "score": 1}]}],
            "grade at least two",
        ),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "1 prompt.* too few"),
        ([{"question": "a", "answer": "b"}], "no known form in the columns"),
        ([], "the file is empty"),
        ([{"prompt": "a", "completion": "b", "label": 1}] * 30, "label some rows true and some false"),
        ([{"sentence_good": "a", "sentence_bad": "b"}] * 30, "1 prompt.* too few"),
        ([{"instruction": "a", "output": "b"}] * 30, "'instruction' has one completion a prompt"),
        ([{"text": "a"}] * 30, "data.sft"),
    ],
)
def test_data_without_preferences_are_refused(rows: list[Any], told: str, tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(Refused, match=told):
        write_experiment(str(data), str(tmp_path / "e.yaml"))
    assert not (tmp_path / "e.yaml").exists()


def test_what_is_no_data_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "binary").write_bytes(bytes(64))
    for data, told in [("absent.jsonl", "no such file"), ("", "UTF-8"), ("binary", "UTF-8")]:
        assert main(["init", str(tmp_path / data), "-o", str(tmp_path / "e.yaml")]) == 2
        assert told in capsys.readouterr().err


def test_a_base_folder_gets_lower_rates_and_a_lora_suggestion(tmp_path: Path) -> None:
    data, base = write_pairs(tmp_path / "pairs.jsonl"), tmp_path / "base model"
    with pytest.raises(Refused, match=r"--base: .* is no folder"):
        write_experiment(str(data), str(tmp_path / "e.yaml"), str(base))
    base.mkdir()
    with pytest.raises(Refused, match=r"holds no config\.json"):
        write_experiment(str(data), str(tmp_path / "e.yaml"), str(base))
    (base / "config.json").write_text(json.dumps({"max_position_embeddings": 24, "vocab_size": 9}))
    (base / "tokenizer_config.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (base / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    e = written(tmp_path, data, base=str(base))
    assert e.model.base == "base model" and e.model.new is None and e.sft.lora is None
    assert e.sft.learning_rate == 1e-5 and e.preference.learning_rate == 1e-6 and e.preference.replay == 0
    assert e.sft.max_tokens == 16  # the largest power of two within 24
    assert (tmp_path / "made.yaml").read_text().count("# lora: {rank: 16, alpha: 32.0}") == 2


def test_unreadable_rows_and_gzip_do_not_matter(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl")
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(b"garbage\n" + data.read_bytes() + b"{\n"))
    assert written(tmp_path, packed).name == "packed"


def test_the_command_prints_the_next_move(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl")
    assert main(["init", str(data), "-o", str(tmp_path / "e.yaml")]) == 0
    assert f"next: alignmill check {tmp_path / 'e.yaml'}" in capsys.readouterr().out
    assert main(["init", str(data), "-o", str(tmp_path / "f.yaml"), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["form"], value["rows"], value["pairs"], value["all_rows"]) == ("pairs", 60, 60, True)


@needs_real_data
@pytest.mark.parametrize("name", ["hh_harmless_base", "gsm8k_graded", "alpaca_eval_graded"])
def test_real_preference_data(name: str, tmp_path: Path) -> None:
    e = written(tmp_path, REAL / f"{name}.jsonl.gz")
    assert e.name == name and e.preference.max_tokens == 512


@needs_real_data
def test_real_sft_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="preference data are needed"):
        write_experiment(str(REAL / "gsm8k_train.jsonl.gz"), str(tmp_path / "e.yaml"))


@needs_real_data
def test_sentence_pairs_without_a_prompt_stand_for_themselves(tmp_path: Path) -> None:
    e = written(tmp_path, REAL / "blimp")
    assert (e.name, e.preference.loss.name, e.data.holdout.share) == ("blimp", "dpo", 0.1)
