"""Generations on held-out prompts and the signs of collapse, on texts small enough to read."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.samples import Sample, generate, judge, repetitive, run
from evaluation.scores import Results, read_generations
from evaluation.settings import Refused


def sample(item: str, text: str = "fine", finished: bool = True, ids: tuple[int, ...] = (1, 2, 3)) -> Sample:
    return Sample(item, f"prompt {item}", text, ids, finished)


def shares(samples: list[Sample]) -> dict[str, float]:
    return {score.metric: score.value for score in judge(samples)[0]}


def test_healthy_short_answers_show_no_sign() -> None:
    found = shares([sample(str(i), f"answer {i}") for i in range(4)])
    assert found == {"empty": 0, "repetitive": 0, "unfinished": 0, "identical": 0}


def test_each_sign_is_a_share_of_the_samples() -> None:
    loop = tuple([7, 8] * 20)
    found = shares(
        [sample("a", " \n"), sample("b", "x", finished=False, ids=loop), sample("c", "x "), sample("d", "y")]
    )
    assert found == {"empty": 1 / 4, "repetitive": 1 / 4, "unfinished": 1 / 4, "identical": 2 / 4}


def test_one_prompt_asked_often_is_not_one_answer_to_many_prompts() -> None:
    same = [Sample(str(i), "the same prompt", "the same text", (1,), True) for i in range(5)]
    assert shares(same)["identical"] == 0
    assert shares([*same, sample("other", "the same text")])["identical"] == 1


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], False),
        ([5] * 15, False),  # too short to tell
        ([5] * 16, True),  # 13 four-grams, 1 distinct: 1 - 1/13 > 1/2
        (list(range(100)), False),
        ([1, 2, 3, 4, 5, 6, 7, 8] * 3, True),  # 21 four-grams, 8 distinct: 1 - 8/21 = 0.62
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 2, False),  # said twice: 17 four-grams, 10 distinct: 0.41
        ([*range(100), *[7, 8, 9, 6] * 8], True),  # a long good start, then a cycle of 4 in the last 32
        ([*range(100), *[7, 8, 9, 6] * 4], False),
    ],
)
def test_going_round_in_circles_is_told_from_the_token_ids(ids: list[int], expected: bool) -> None:
    assert repetitive(ids) is expected


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"id": f"r{i}", "messages": [{"role": "user", "content": "hello " * i + "fox"}]} for i in range(7)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_job(policies: dict[str, Path], path: Path, out: Path, **samples: int) -> dict[str, Any]:
    return {
        "inputs": {label: str(path) for label, path in policies.items()},
        "outputs": {label: str(out / label) for label in policies},
        "prompts": str(path),
        "settings": {"batch_size": 3, "samples": samples},
        "seed": 1,
        "profile": {"device": "cpu", "dtype": "float32", "threads": 1},
    }


def test_every_model_answers_the_same_prompts(policies: dict[str, Path], prompts: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    run(make_job(policies, prompts, tmp_path / "out", prompts=5, max_new_tokens=6), events.append)
    rows = read_generations(tmp_path / "out" / "policy")
    assert [row["id"] for row in rows] == ["r0", "r1", "r2", "r3", "r4"]
    assert set(rows[0]) == {"id", "text", "tokens", "finished"}
    assert all(row["finished"] or row["tokens"] == 6 for row in rows)
    found = Results.read([tmp_path / "out" / "champion"])
    assert set(found.scores) == {"samples/empty", "samples/repetitive", "samples/unfinished", "samples/identical"}
    assert not any(score.higher_is_better for score in found.scores.values())
    before = len(events)
    run(make_job(policies, prompts, tmp_path / "out", prompts=5), events.append)
    assert len(events) == before + 1  # both are there already


def test_batches_and_padding_do_not_change_a_text(policies: dict[str, Path], prompts: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(policies["policy"], dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(policies["policy"])
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    together = generate(model, tokenizer, rows, 8, 7)
    alone = [generate(model, tokenizer, [row], 8, 1)[0] for row in rows]
    assert together == alone


def test_a_tokenizer_without_template_or_padding_still_generates(policies: dict[str, Path], prompts: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(policies["policy"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(policies["policy"])
    tokenizer.chat_template = None
    tokenizer.pad_token = None
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    assert len(generate(model, tokenizer, rows, 4, 4)) == 7


def test_missing_or_empty_prompts_are_refused(policies: dict[str, Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for path, message in ((empty, "is empty"), (tmp_path / "gone.jsonl", "does not exist")):
        with pytest.raises(Refused, match=message):
            run(make_job(policies, path, tmp_path / "out"), lambda event: None)
