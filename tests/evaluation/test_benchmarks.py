"""lm-eval through our job: its own scores, whole folders only, the same bytes twice."""

import math
from pathlib import Path
from typing import Any

import pytest

from evaluation.benchmarks import run
from evaluation.conversion import linearised
from evaluation.scores import Results, read_generations
from evaluation.settings import Refused

NAMES = ("pairs", "echo", "prose")
BLIMP = Path(__file__).resolve().parents[3] / "shared" / "data" / "blimp"


def make_job(policies: dict[str, Path], include: Path, out: Path, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    return {
        "inputs": {label: str(path) for label, path in policies.items()},
        "pairs": [
            {"model": label, "benchmark": name, "output": str(out / label / name)}
            for label in policies
            for name in names
        ],
        "include": str(include),
        "settings": {"names": list(names), "batch_size": 5},
        "seed": 3,
        "profile": {"device": "cpu", "dtype": "float32", "threads": 1},
    }


def test_the_scores_are_those_of_lm_eval(
    policies: dict[str, Path], include: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make_job(policies, include, tmp_path / "out"), lambda event: None)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(include)  # lm-eval reads relative data files from where one stands
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    expected = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(policies["policy"]), "dtype": "float32"},
        tasks=list(NAMES),
        batch_size=5,
        device="cpu",
        apply_chat_template=True,
        bootstrap_iters=2,
        task_manager=TaskManager(include_defaults=False, include_path=str(include)),
    )["results"]
    found = Results.read(tmp_path / "out" / "policy" / name for name in NAMES)
    assert set(found.scores) == {
        "pairs/acc",
        "echo/long",
        "prose/word_perplexity",
        "prose/byte_perplexity",
        "prose/bits_per_byte",
    }
    for name, score in found.scores.items():
        benchmark, _, metric = name.partition("/")
        assert score.value == float(expected[benchmark][f"{metric},none"])
        assert score.n == 12
        assert math.fsum(found.items[name].values()) / 12 == pytest.approx(score.value)
    assert found.scores["pairs/acc"].stderr == pytest.approx(expected["pairs"]["acc_stderr,none"])
    assert not found.scores["prose/word_perplexity"].higher_is_better


def test_a_second_run_gives_the_same_bytes_and_models_share_their_items(
    policies: dict[str, Path], include: Path, tmp_path: Path
) -> None:
    for out in ("a", "b"):
        run(make_job(policies, include, tmp_path / out), lambda event: None)
    first = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert len(first) == 2 * (3 * 2 + 1)
    assert first == {p.relative_to(tmp_path / "b"): p.read_bytes() for p in (tmp_path / "b").rglob("*") if p.is_file()}
    policy, champion = (Results.read([tmp_path / "a" / label / "echo"]) for label in policies)
    assert policy.items["echo/long"].keys() == champion.items["echo/long"].keys()
    rows = read_generations(tmp_path / "a" / "policy" / "echo")
    assert {row["item"] for row in rows} == policy.items["echo/long"].keys()
    assert rows[0]["prompt"] == "<|user|>question 0<|end|><|assistant|>"


def test_finished_pairs_are_skipped_and_a_stop_leaves_whole_folders_only(
    policies: dict[str, Path], include: Path, tmp_path: Path
) -> None:
    job = make_job(policies, include, tmp_path / "out", ("pairs",))

    class Stop(Exception):
        pass

    def stop(event: dict[str, Any]) -> None:
        if event["type"] == "metrics":
            raise Stop

    with pytest.raises(Stop):
        run(job, stop)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["policy"]
    events: list[dict[str, Any]] = []
    run(job, events.append)
    assert [e["message"] for e in events if e["type"] == "progress"] == ["champion: pairs", "benchmarks finished"]
    assert [e["done"] for e in events if e["type"] == "progress"] == [1, 2]
    assert set(events[1]["metrics"]) == {"champion/pairs/acc"}
    run(job | {"inputs": {}}, events.append)  # nothing to do: no model is even looked for


def test_a_wrong_name_or_model_is_refused_before_anything_runs(
    policies: dict[str, Path], include: Path, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="Did you mean"):
        run(make_job(policies, include, tmp_path / "out", ("pairs", "ecko")), lambda event: None)
    with pytest.raises(Refused, match="does not exist"):
        run(make_job({"policy": tmp_path / "gone"}, include, tmp_path / "out"), lambda event: None)
    assert not (tmp_path / "out").exists()


def test_perplexities_have_parts_whose_mean_is_the_score() -> None:
    # l = -2 and -4 nats over 1 and 3 words: P = e^(6/4); parts P(1 + 2*2/4 - 1.5) = P/2 and P(1 + 2*4/4 - 1.5) = 3P/2.
    p = math.exp(1.5)
    assert linearised("weighted_perplexity", [(-2.0, 1), (-4.0, 3)], p) == pytest.approx([p / 2, 3 * p / 2])
    assert linearised("bits_per_byte", [(-2.0, 1), (-4.0, 3)], 0.0) == pytest.approx([1 / math.log(2), 2 / math.log(2)])
    assert linearised("mean", [True, False], 0.5) == [1.0, 0.0]
    assert linearised("f1_score", [(1, 0), (1, 1)], 0.5) is None


@pytest.mark.skipif(not BLIMP.is_dir(), reason="the development data is absent")
def test_a_real_benchmark_runs_from_a_local_gzip(policies: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    (folder / "blimp.yaml").write_text(
        "task: local_blimp\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: "
        f"{BLIMP}/anaphor_number_agreement.jsonl.gz\ntest_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: ''\ndoc_to_target: 0\ndoc_to_choice: '{{[sentence_good, sentence_bad]}}'\n"
        "target_delimiter: ''\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    job = make_job({"policy": policies["policy"]}, folder, tmp_path / "out", ("local_blimp",))
    job["settings"] |= {"limit": 40, "chat_template": False, "batch_size": 40}
    run(job, lambda event: None)
    score = Results.read([tmp_path / "out" / "policy" / "local_blimp"]).scores["local_blimp/acc"]
    # Token counts decide for a random policy; singular "herself" is shorter than "themselves".
    assert score.n == 40 and score.value > 0.5
