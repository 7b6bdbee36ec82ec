"""``alignmill compare``: several losses from one warm start, one table; nothing is trained twice and nothing promoted."""

import copy
import csv
import json
import random
import sqlite3
import struct
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.cli import main
from flows.experiment import load_experiment
from tasks.comparison import CandidateFailed, Comparison, NoneTrained, Policies, train_candidates
from tasks.console import parts
from tasks.jobs import JobFailed
from tests.flows.tiny import Tiny, alignmill, ran, settings
from training.strict import Refused

DPO, IPO, ODPO = ({"name": "dpo", "beta": 0.1}, {"name": "ipo", "tau": 0.5}, {"name": "odpo"})


def candidate(loss: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The preference section with another loss."""
    return {**copy.deepcopy(settings()["preference"]), "loss": dict(loss), **more}


def with_compare(tiny: Tiny, *candidates: dict[str, Any]) -> Tiny:
    tiny.set({**settings(), "compare": list(candidates)})
    return tiny


@dataclass
class Compared(Tiny):
    """An experiment that is compared where the other tests run it."""

    losses: str = ""

    @property
    def arguments(self) -> list[str]:
        return ["compare", *super().arguments[1:], *(["--losses", self.losses] if self.losses else [])]


# ------------------------------------------------------------------------------------------------ the command


def test_a_comparison_trains_what_is_new_and_goes_on_after_a_kill(copied: Tiny) -> None:
    """After a run: its policy is the candidate with the same settings; ipo finds the reference; odpo has no scores."""
    with_compare(copied, candidate(DPO), candidate(IPO), candidate(ODPO))
    tiny = Compared(copied.folder, copied.home)
    delay = random.Random(5).uniform(0, 0.1)
    assert tiny.run_until(lambda line: "preference ipo: checkpoint" in line, delay)
    outcome = tiny.run()
    assert ran(outcome) == ["preference", "benchmarks"]
    assert [step["candidate"] for step in outcome["steps"] if step["step"] == "preference"] == ["dpo", "ipo"]
    assert outcome["models"] == ["warm_start", "dpo", "ipo"] and list(outcome["refused"]) == ["odpo"]
    assert "it needs a score" in outcome["refused"]["odpo"] and outcome["failed"] == {}
    assert len(set(outcome["weights"].values())) == 3
    margin = outcome["scores"]["holdout/margin"]
    assert margin["dpo"]["value"] > margin["warm_start"]["value"] and margin["ipo"]["stderr"] > 0
    assert {"tiny_choice/acc", "holdout/preference_accuracy", "holdout/chosen_logps"} <= set(outcome["scores"])
    ipo = outcome["training"]["ipo"]
    assert ipo["steps"] == 33 and ipo["reference_computed"] == 0 and ipo["reference_cached"] == 132
    assert ipo["final_loss"] > 0 and ipo["seconds"] > 0 and ipo["tokens_per_second"] > 0
    assert ipo["settings"]["loss"] == {"name": "ipo", "tau": 0.5, "average": True} and "label" not in ipo["settings"]

    _reports_agree(outcome)
    _in_mlflow_once(tiny.home, outcome)

    tiny.losses = "ipo"
    told = alignmill(*[word for word in tiny.arguments if word != "--json"], home=tiny.home)
    assert told.returncode == 0, told.stderr
    assert "preference ipo: cached" in told.stderr and "preference dpo" not in told.stderr
    assert "done in" not in told.stderr.replace(
        "benchmarks: done in", ""
    )  # asked for other models, all answers are there
    lines = told.stdout.splitlines()
    assert lines[0].split() == ["metric", "warm", "start", "ipo"]
    assert any(line.startswith("holdout/margin ") and "±" in line for line in lines)


def _reports_agree(outcome: dict[str, Any]) -> None:
    reports = {form: Path(path) for form, path in outcome["reports"].items()}
    assert json.loads(reports["json"].read_text()) == outcome
    rows = {row["metric"]: row for row in csv.DictReader(reports["csv"].read_text().splitlines())}
    assert float(rows["holdout/margin"]["ipo"]) == outcome["scores"]["holdout/margin"]["ipo"]["value"]
    assert float(rows["holdout/margin"]["ipo stderr"]) == outcome["scores"]["holdout/margin"]["ipo"]["stderr"]
    assert rows["training/steps"]["warm_start"] == "" and rows["training/steps"]["dpo"] == "33"
    assert struct.unpack(">I", reports["png"].read_bytes()[16:20]) == (900,)


def _in_mlflow_once(home: Path, outcome: dict[str, Any]) -> None:
    """The killed comparison went on in its own MLflow run; the step's curve is whole; no version was made."""
    with sqlite3.connect(home / "mlflow.db") as database:
        runs = database.execute(
            "SELECT r.name, r.status, r.run_uuid FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid"
            " WHERE t.key = 'alignmill.flow' AND t.value = 'compare'"
        ).fetchall()
        assert [(name.split()[:2], status) for name, status, _ in runs] == [(["compare", "tiny"], "FINISHED")]
        assert runs[0][2] == outcome["mlflow_run_id"]
        steps = database.execute(
            "SELECT m.step, count(*) FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid"
            " WHERE r.name = 'preference ipo' AND m.key = 'rewards/margins' GROUP BY m.step ORDER BY m.step"
        ).fetchall()
        assert steps == [(step, 1) for step in range(1, 34)]
        logged = dict(
            database.execute("SELECT key, value FROM metrics WHERE run_uuid = ?", [outcome["mlflow_run_id"]]).fetchall()
        )
        assert logged["ipo/holdout/margin"] == outcome["scores"]["holdout/margin"]["ipo"]["value"]
        assert database.execute("SELECT count(*) FROM model_versions").fetchone() == (1,)
        uri = dict(
            database.execute("SELECT name, artifact_uri FROM runs WHERE name LIKE '%ipo' OR name LIKE 'compare%'")
        )
    names = {
        name.split()[0]: {path.name for path in Path(place.removeprefix("file://")).rglob("*.*")}
        for name, place in uri.items()
    }
    assert names["preference"] >= {"preference.png"}
    assert names["compare"] >= {
        "tiny-compare.json",
        "tiny-compare.csv",
        "tiny-compare.png",
        "comparison.md",
        "experiment.yaml",
    }


def test_where_no_candidate_can_be_trained_the_comparison_is_refused(copied: Tiny) -> None:
    tiny = with_compare(copied, candidate(ODPO))
    done = alignmill(*Compared(tiny.folder, tiny.home).arguments, home=tiny.home)
    assert done.returncode == 2, done.stderr
    told = json.loads(done.stdout)["error"]
    assert told.startswith("no candidate could be trained") and "odpo: it needs a score for each completion" in told


def test_what_is_wrong_with_the_list_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = Tiny.write(tmp_path)
    monkeypatch.setenv("ALIGNMILL_HOME", str(tiny.home))
    assert main(["compare", str(tiny.file)]) == 2
    assert "no 'compare' list" in (told := capsys.readouterr().err) and "compare: [{loss:" in told
    with_compare(tiny, candidate(DPO), candidate(IPO, label="ipo-short", epochs=1))
    assert main(["compare", str(tiny.file), "--losses", "dpo, ipo-shrt"]) == 2
    assert "no candidate 'ipo-shrt'; did you mean 'ipo-short'? Allowed: dpo, ipo-short" in capsys.readouterr().err
    assert not tiny.home.exists()


def test_the_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["compare", "--help"])
    assert (
        "example: alignmill compare deployments/experiments/helpdesk.yaml --losses dpo,ipo" in capsys.readouterr().out
    )


# ------------------------------------------------------------------------------------------------ the list


def test_a_candidate_that_says_what_the_preference_section_says_is_that_section(tmp_path: Path) -> None:
    tiny = with_compare(Tiny.write(tmp_path), candidate(DPO, label="as-above"), candidate(IPO))
    e = load_experiment(tiny.file).experiment
    assert list(e.candidates()) == ["as-above", "ipo"] and list(e.candidates(["ipo", "ipo"])) == ["ipo"]
    same = e.candidates()["as-above"]
    assert same == e.preference and same.model_dump(mode="json") == e.preference.model_dump(mode="json")


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (candidate({"name": "dpo", "beta": 0.5}), "compare: 2 candidates are called 'dpo'; give each a 'label'"),
        (candidate(IPO, label="dpo"), "compare: 2 candidates are called 'dpo'"),
        (candidate(IPO, label="warm_start"), "compare.1: the label 'warm_start' is taken"),
        (candidate(IPO, label="a b"), 'compare.1.label: found "a b"'),
        (candidate({"name": "ipo", "beta": 0.1}), "compare.1.loss.beta: unknown key; did you mean 'tau'?"),
        ({"loss": IPO}, "compare.1.learning_rate: missing"),
    ],
)
def test_a_faulty_list_is_refused(second: dict[str, Any], told: str, tmp_path: Path) -> None:
    tiny = with_compare(Tiny.write(tmp_path), candidate(DPO), second)
    with pytest.raises(Refused) as refusal:
        load_experiment(tiny.file)
    assert told in str(refusal.value) and "1 error" in str(refusal.value)


# ------------------------------------------------------------------------------------------------ one that fails


def test_one_that_fails_or_is_refused_late_stops_no_other_one() -> None:
    def train(run: Any, settings: Any, warm_start: Any, data: Any, label: str) -> Any:
        if label == "late":
            raise Refused("equal after the cut")
        if label == "broken":
            raise JobFailed("loss nan")
        return f"trained {label}"

    said: list[str] = []
    run: Any = SimpleNamespace(console=SimpleNamespace(warn=said.append))
    here: Any = None
    policies = Policies(dict.fromkeys(["early", "late", "broken", "good"], here), refused={"early": "no pairs"})
    found = train_candidates(run, policies, here, here, train)
    assert found.trained == {"good": "trained good"}
    assert found.refused == {"early": "no pairs", "late": "equal after the cut"} and found.failed == {
        "broken": "loss nan"
    }
    assert said == ["late is left out: equal after the cut", "broken has failed: loss nan"]
    with pytest.raises(NoneTrained, match="late: equal after the cut") as refused:
        train_candidates(run, Policies({"late": here}), here, here, train)
    assert refused.value.exit_code == 2
    with pytest.raises(CandidateFailed, match="broken: loss nan"):
        train_candidates(run, Policies({"late": here, "broken": here}), here, here, train)


def test_what_is_not_known_is_a_dash_in_the_table_and_empty_in_the_file() -> None:
    comparison = Comparison(
        {
            "models": ["warm_start", "dpo"],
            "scores": {
                "a/b": {"dpo": {"value": 0.5, "stderr": None, "n": 1}},
                "a/c": {"dpo": {"value": None, "stderr": None}},
            },
            "training": {"dpo": {"steps": 1200, "flop_share": 0.25}},
        }
    )
    assert comparison.headings == ["metric", "warm start", "dpo"]
    assert comparison.rows == [
        ["a/b", "–", "0.500"], ["a/c", "–", "–"], ["steps", "–", "1,200"], ["share of the FLOP floor reached", "–", "25%"],
    ]  # fmt: skip
    assert comparison.csv().splitlines()[:3] == [
        "metric,warm_start,warm_start stderr,dpo,dpo stderr",
        "a/b,,,0.5,",
        "a/c,,,,",
    ]


def test_a_wide_table_comes_in_parts_that_each_begin_with_the_first_column() -> None:
    assert parts([10, 5, 5, 5], 25) == [[0, 1, 2, 3]]
    assert parts([10, 5, 5, 5], 20) == [[0, 1, 2], [0, 3]]
    assert parts([10, 50, 5], 20) == [[0, 1], [0, 2]]
    assert parts([10], 20) == [[0]]
