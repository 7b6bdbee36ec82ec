"""The texts of benchmark items: the question, and the question with its right answers, as lm-eval reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation.settings import Refused
from evaluation.texts import run, write_benchmark_texts

CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "target_delimiter": "",
}


def benchmark(folder: Path, name: str, items: list[dict[str, Any]], **settings: Any) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    whole = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **settings,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole))


def texts(folder: Path, *names: str) -> list[tuple[str, int, str]]:
    counts = write_benchmark_texts(names, folder, folder / "out.jsonl")
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert counts == {name: len({line["item"] for line in lines if line["benchmark"] == name}) for name in names}
    return [(line["benchmark"], line["item"], line["text"]) for line in lines]


def test_the_gold_choice_follows_the_question_and_the_others_do_not(tmp_path: Path) -> None:
    items = [{"q": "Two and two?", "choices": ["five", "four"], "answer": 1}]
    benchmark(tmp_path, "sums", items, **CHOICE)
    assert texts(tmp_path, "sums") == [("sums", 0, "Two and two?"), ("sums", 0, "Two and two? four")]


def test_pairs_of_sentences_have_no_question(tmp_path: Path) -> None:
    items = [{"good": "Cats sleep.", "bad": "Cats sleeps."}]
    settings = {**CHOICE, "doc_to_text": "", "doc_to_choice": "{{[good, bad]}}", "doc_to_target": 0}
    benchmark(tmp_path, "grammar", items, **settings)
    assert texts(tmp_path, "grammar") == [("grammar", 0, "Cats sleep.")]


def test_generated_answers_are_their_targets_and_several_are_several_lines(tmp_path: Path) -> None:
    items = [{"q": "Name a river.", "a": ["Rhine", "Rhône"]}, {"q": "And a lake?", "a": ["Como"]}]
    settings = {
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "a",
        "generation_kwargs": {"until": ["\n"]},
    }
    settings["metric_list"] = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    benchmark(tmp_path, "names", items, **settings)
    found = texts(tmp_path, "names")
    assert found[:3] == [
        ("names", 0, "Name a river."),
        ("names", 0, "Name a river. Rhine"),
        ("names", 0, "Name a river. Rhône"),
    ]
    assert found[3:] == [("names", 1, "And a lake?"), ("names", 1, "And a lake? Como")]


def test_what_is_only_rolled_over_is_its_text(tmp_path: Path) -> None:
    settings = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{page}}"}
    settings["metric_list"] = [
        {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
    ]
    benchmark(tmp_path, "pages", [{"page": "Once upon a time."}], **settings)
    assert texts(tmp_path, "pages") == [("pages", 0, "Once upon a time.")]


def test_the_job_writes_a_folder_whole_and_tells_the_counts(tmp_path: Path) -> None:
    benchmark(tmp_path, "sums", [{"q": f"{i}?", "choices": ["no", "yes"], "answer": 1} for i in range(3)], **CHOICE)
    events: list[dict[str, Any]] = []
    job = {"names": ["sums"], "include": str(tmp_path), "output": str(tmp_path / "texts")}
    run(job, events.append)
    assert events == [{"type": "facts", "facts": {"items": {"sums": 3}}}]
    assert len((tmp_path / "texts" / "texts.jsonl").read_text().splitlines()) == 6
    with pytest.raises(Refused, match="not known"):
        run(job | {"names": ["summs"], "output": str(tmp_path / "other")}, events.append)
    assert not (tmp_path / "other").exists()
