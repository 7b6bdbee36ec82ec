"""Validation: what is kept, what is refused and how, and that Great Expectations counts as we do."""

import json
import math
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.training.data.test_profile import pair
from training.data.expectations import check, validate
from training.data.profile import Context
from training.data.rules import rules
from training.data.settings import Holdout, RuleSetting, Source, ValidationSettings
from training.data.snapshot import write_snapshot
from training.data.split import load_pairs, load_sft, read_selection, sft_from_preferences
from training.strict import Refused

OWN = Holdout(sources=(Source(path="holdout.jsonl"),))
SETTINGS = ValidationSettings(max_quarantined=0.9, max_characters=60)
PREFERENCES: list[Any] = [
    pair("one", "good", "bad"),
    "{broken, call 555-1234 or mail jane.doe@example.org",
    pair("", "good", "bad"),
    pair("two 12345", "", ""),
    pair("one", "good", "bad"),
    pair("three", "x", "y"),
    pair("three", "y", "x"),
    pair("held", "good", "bad"),
    pair("long" * 20, "good", "bad"),
    pair("four", "good\x07", "bad"),
    pair([{"role": "user", "content": "a"}] * 2, "good", "bad"),
    pair("five", "same", "same"),
    pair("six", "good", "bad"),
]
SFT = [{"prompt": "one", "completion": "good"}, {"prompt": "held", "completion": "good"}]
# By hand: rows 1 (broken), 2 (empty prompt), 3 (empty, identical), 4 (duplicate), 5 and 6 (contradiction),
# 7 (held out), 9 (control character), 10 (roles), 11 (identical) are put aside; 0, 8 (a warning) and 12 stay.
COUNTS = dict.fromkeys((rule.name for rule in rules(SETTINGS)), 0) | {
    "unreadable": 1,
    "empty_prompt": 1,
    "empty_completion": 1,
    "wrong_roles": 1,
    "identical_completions": 2,
    "control_characters": 1,
    "too_long": 1,
    "duplicate": 1,
    "contradiction": 2,
    "in_holdout": 1,
}


def stored(folder: Path, **parts: list[Any]) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    for part, rows in parts.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        write_snapshot([Source(path=f"{part}.jsonl")], folder, folder / part)
    return {part: folder / part for part in parts}


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Any, Path]:
    folder = tmp_path_factory.mktemp("validated")
    parts = stored(folder, preferences=PREFERENCES, sft=SFT, holdout=[pair("held", "good", "bad")])

    def nobody(*_: object, **__: object) -> None:
        raise AssertionError("validation called the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", nobody)
        return parts, validate(parts, SETTINGS, OWN, folder / "out"), folder / "out"


def test_every_row_is_kept_or_quarantined(validated: Any) -> None:
    parts, report, out = validated
    assert report.parts["preferences"].rules == COUNTS
    assert (report.parts["preferences"].rows, report.parts["preferences"].kept) == (13, 3)
    assert (report.parts["sft"].kept, report.parts["sft"].quarantined) == (1, 1)
    assert (report.rows, report.kept, report.quarantined) == (16, 5, 11)
    assert report.warnings[0].startswith(
        "preferences: too_long: 1 of 13 rows, 7.69%, first at preferences.jsonl:9. Prompt and longest completion"
    )
    assert json.loads((out / "report/report.json").read_text()) == json.loads(json.dumps(report.as_json()))
    for part in report.parts.values():
        assert part.rows == part.kept + part.quarantined and part.kept == part.kept_train + part.kept_holdout
    judged = report.as_json()["parts"]["preferences"]["judged"]
    assert judged["contradiction"] == {"action": "quarantine", "count": 2, "share": 2 / 13, "at_most": 1.0}
    assert judged["too_long"] == {"action": "warn", "count": 1, "share": 1 / 13, "at_most": 0.0}
    assert report == check(parts, SETTINGS, OWN)


def test_what_is_kept_is_what_the_trainer_reads(validated: Any) -> None:
    parts, _, out = validated
    chosen = out / "preferences/selection.parquet"
    assert [(item.part, item.row, item.split) for item in read_selection(chosen)] == [
        ("preferences", 0, "train"),
        ("preferences", 8, "train"),
        ("preferences", 12, "train"),
        ("holdout", 0, "holdout"),
    ]
    assert [pair.prompt[0].content for pair in load_pairs(parts, chosen)] == ["one", "long" * 20, "six"]
    assert [pair.prompt[0].content for pair in load_pairs(parts, chosen, "holdout")] == ["held"]
    assert [example.prompt[0].content for example in load_sft(parts, out / "sft/selection.parquet")] == ["one"]
    assert len(sft_from_preferences(parts, chosen)) == 3


def test_the_quarantine_names_every_record_once_with_all_its_rules(validated: Any) -> None:
    _, report, out = validated
    rows = pq.read_table(out / "report/quarantine.parquet").to_pylist()
    assert len(rows) == report.quarantined == 11
    by_line = {(row["part"], row["line"]): row for row in rows}
    assert by_line["preferences", 4]["rules"] == "empty_completion, identical_completions"
    assert by_line["preferences", 4]["excerpt"] == "two #####"
    assert by_line["preferences", 2]["excerpt"] == "{broken, call <phone> or mail <e-mail>"
    assert "JSON" in by_line["preferences", 2]["reason"]
    assert by_line["sft", 2]["rules"] == "in_holdout"


def test_data_docs_open_from_a_file_and_call_nobody(validated: Any) -> None:
    pages = list((validated[2] / "docs").rglob("*.html"))
    assert len(pages) == 3
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<script|<link|<img|url\(", text)
        for target in re.findall(r'(?:src|href)="([^"#]+)"', text):
            assert (page.parent / target).is_file(), f"{page.name} points to {target}"
    result = (validated[2] / "docs" / "result.html").read_text(encoding="utf-8")
    assert "preferences: No other record of the same prompt prefers" in result
    assert "2 of 13 rows break it (15.4%)" in result
    for page in pages:
        text = re.sub("<[^>]*>", "", page.read_text(encoding="utf-8"))
        assert "jane.doe" not in text and "six" not in text


def test_selections_and_quarantine_have_the_same_bytes_again(
    tmp_path: Path, validated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.data.profile._FEW", 0)
    monkeypatch.setattr("training.data.quarantine._FEW", 0)
    parts, _, out = validated
    validate(parts, SETTINGS, OWN, tmp_path, Context(processes=2, cache=tmp_path / "cache"))
    for name in (
        "preferences/selection.parquet",
        "sft/selection.parquet",
        "report/quarantine.parquet",
        "report/report.json",
    ):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_what_is_kept_of_the_quarantine_changes_no_byte_and_damage_is_found(validated: Any, tmp_path: Path) -> None:
    parts, _, out = validated
    plain = (out / "report/quarantine.parquet").read_bytes()

    def again(settings: ValidationSettings = SETTINGS) -> bytes:
        where = tmp_path / "again"
        shutil.rmtree(where, ignore_errors=True)
        validate(parts, settings, OWN, where, Context(cache=tmp_path / "cache"))
        return (where / "report/quarantine.parquet").read_bytes()

    assert again() == plain  # made
    assert again() == plain  # kept
    kept = sorted((tmp_path / "cache").rglob("quarantine-*.parquet"))
    assert kept
    for path in kept:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert again() == plain
    shutil.rmtree(tmp_path / "cache")
    assert again() == plain
    assert again(SETTINGS.model_copy(update={"duplicate": RuleSetting.model_validate("warn")})) != plain


def refusal(folder: Path, settings: ValidationSettings, where: Holdout = OWN, **parts: list[Any]) -> str:
    if where.sources:
        parts.setdefault("holdout", [pair("held", "good", "bad")])
    with pytest.raises(Refused) as error:
        check(stored(folder, **parts), settings, where).raise_if_refused()
    return str(error.value)


def rule(**settings: Any) -> ValidationSettings:
    return ValidationSettings.model_validate(settings)


def test_a_stop_rule_names_itself_the_count_the_place_and_the_next_move(tmp_path: Path) -> None:
    rows = [pair("a", "x", "y"), pair("b", "", "y"), pair("c", "", "y")]
    said = refusal(tmp_path, rule(empty_completion="stop", max_quarantined=1), preferences=rows)
    assert said == (
        "preferences: empty_completion: 2 of 3 rows, 66.7%, first at preferences.jsonl:2. Every completion says something. "
        "Correct them, or set validation.empty_completion to 'quarantine'"
    )


@pytest.mark.parametrize("action", ["stop", "quarantine", "warn"])
def test_a_threshold_is_a_share_of_the_part_and_is_itself_allowed(tmp_path: Path, action: str) -> None:
    """2 of 8 rows are a quarter: 0.25 lets them pass, 0.24 doesn't."""
    rows = [pair(letter, "x", "y") for letter in "abcdef"] + [pair("g", "", "y"), pair("h", " ", "y")]
    parts = stored(tmp_path, preferences=rows, holdout=[pair("held", "good", "bad")])
    just = check(parts, rule(empty_completion={"action": action, "at_most": 0.25}, max_quarantined=1), OWN)
    assert (just.refusals, just.warnings) == ((), ())
    assert just.parts["preferences"].quarantined == (0 if action == "warn" else 2)
    over = check(parts, rule(empty_completion={"action": action, "at_most": 0.24}, max_quarantined=1), OWN)
    (said,) = over.warnings if action == "warn" else over.refusals
    assert "2 of 8 rows, 25% (at most 24% is allowed), first at preferences.jsonl:7." in said
    assert (over.refusals == ()) == (action == "warn")


def test_too_many_faulty_rows_are_refused_and_the_limit_itself_is_not(tmp_path: Path) -> None:
    rows = [pair(letter, "x", "y") for letter in "abcd"] + ["{"]  # 1 of 5 = 0.2
    parts = stored(tmp_path, preferences=rows, holdout=[pair("held", "good", "bad")])
    assert check(parts, ValidationSettings(max_quarantined=0.2), OWN).refusals == ()
    (said,) = check(parts, ValidationSettings(max_quarantined=0.19), OWN).refusals
    assert said.startswith("preferences: 1 of 5 rows are faulty (20%; at most 19% is allowed): unreadable 1.")


def test_rows_with_held_out_prompts_are_put_aside_without_being_faults(tmp_path: Path) -> None:
    rows = [pair("a", "x", "y"), pair("held", "x", "y")]
    parts = stored(tmp_path, preferences=rows, holdout=[pair("held", "good", "bad")])
    report = check(parts, ValidationSettings(max_quarantined=0), OWN)
    assert report.refusals == () and report.parts["preferences"].quarantined == 1


def test_too_few_pairs_are_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, ValidationSettings(min_records=2), preferences=[pair("a", "x", "y")])
    assert said.startswith(
        "preferences: 1 pair(s) and labelled completion(s) to train on; at least 2 (validation.min_records)"
    )


def test_empty_sets_are_refused_all_at_once(tmp_path: Path) -> None:
    settings = ValidationSettings(max_quarantined=1)
    sft = [{"prompt": "a", "completion": ""}]
    empty = [pair("a", "x", "x")]
    said = refusal(tmp_path, settings, preferences=empty, sft=sft, holdout=[pair("b", "x", "x")])
    assert [line.split(":")[0] for line in said.splitlines()] == ["sft", "preferences", "holdout"]


def test_a_share_that_holds_nothing_out_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, ValidationSettings(), Holdout(share=1e-9), preferences=[pair("a", "x", "y")])
    assert (
        "holdout: neither a pair nor labelled completions of both labels are held out (share 1e-09 of the prompts)."
        in said
    )


def test_a_refusal_leaves_the_report_and_no_selection(tmp_path: Path) -> None:
    parts = stored(tmp_path, preferences=["{", pair("a", "x", "y")], holdout=[pair("held", "x", "y")])
    with pytest.raises(Refused, match="1 of 2 rows are faulty"):
        validate(parts, ValidationSettings(), OWN, tmp_path / "out")
    assert json.loads((tmp_path / "out/report/report.json").read_text())["refusals"]
    assert (tmp_path / "out/docs/index.html").is_file()
    assert not list((tmp_path / "out").rglob("selection.parquet"))


# ------------------------------------------------------------------------------------------------ ratings


def label(prompt: str, text: str, good: bool) -> dict[str, Any]:
    return {"prompt": prompt, "completion": text, "label": good}


LABELS = [label(f"question {i}", f"answer {i}", i % 2 == 0) for i in range(40)]


def test_data_of_single_labelled_completions_are_learnt_from(tmp_path: Path) -> None:
    held = [label("held a", "one", True), label("held b", "two", False)]
    parts = stored(tmp_path, preferences=LABELS, holdout=held)
    report = validate(parts, ValidationSettings(min_records=40), OWN, tmp_path / "out")
    part = report.parts["preferences"]
    assert (part.kept, part.pairs_train, part.rated_train) == (40, 0, 40)
    (warning,) = report.warnings
    assert "holdout/desirable_auc" in warning
    assert len(read_selection(tmp_path / "out/preferences/selection.parquet")) == 42
    said = check(parts, ValidationSettings(min_records=41), OWN).refusals
    assert said[0].startswith("preferences: 40 pair(s) and labelled completion(s) to train on; at least 41")


@pytest.mark.parametrize("held", [[True, True], [False]])
def test_held_out_ratings_of_one_label_judge_nothing(tmp_path: Path, held: list[bool]) -> None:
    rows = [label(f"held {i}", f"text {i}", good) for i, good in enumerate(held)]
    said = refusal(tmp_path, ValidationSettings(), preferences=LABELS, holdout=rows)
    assert said.startswith("holdout: neither a pair nor labelled completions of both labels are held out")


def test_a_pair_and_a_rating_each_count(tmp_path: Path) -> None:
    """Of labels of one prompt that are unlike the pair counts and not both labels."""
    both = {"prompt": "p", "completions": [{"text": "a", "label": True}, {"text": "b", "label": False}]}
    alone = {"prompt": "q", "completions": [{"text": "c", "label": True}]}
    report = check(
        stored(tmp_path, preferences=[both, alone], holdout=[pair("held", "x", "y")]), ValidationSettings(), OWN
    )
    part = report.parts["preferences"]
    assert (part.pairs_train, part.rated_train, report.learnt) == (1, 1, 2)


def test_labels_that_are_nearly_all_alike_are_told(tmp_path: Path) -> None:
    rows = [label(f"question {i}", f"answer {i}", i != 0) for i in range(40)]
    held = [label("held a", "one", True), label("held b", "two", False)]
    report = check(stored(tmp_path, preferences=rows, holdout=held), ValidationSettings(), OWN)
    assert any(w.startswith("preferences: label_balance: 0.025 (allowed: at least 0.1).") for w in report.warnings)


# ------------------------------------------------------------------------------------------------ the whole set


def test_a_measure_that_says_stop_stops(tmp_path: Path) -> None:
    rows = [pair(f"question {i}", f"a much longer answer to {i}", f"no {i}") for i in range(40)]
    parts = stored(tmp_path, preferences=rows, holdout=[pair("held", "good", "bad")])
    assert any("longer_chosen: 1 (allowed: at most 0.9)" in warning for warning in check(parts, rule(), OWN).warnings)
    said = check(parts, rule(longer_chosen="stop"), OWN).refusals
    assert len(said) == 1 and said[0].startswith("preferences: longer_chosen: 1 (allowed: at most 0.9).")
    assert check(parts, rule(max_shortcut=1.0), OWN).warnings == ()


def test_what_has_moved_since_the_last_snapshot_is_told(tmp_path: Path) -> None:
    def rows(count: int, times: int) -> list[Any]:
        made = [(f"{word} reply to {i} " * times, f"{word} words on {i} " * times)
                for i, word in zip(range(count), "some other new old fair" * count, strict=False)]  # fmt: skip
        return [pair(f"question {i}", *(texts if i % 2 else texts[::-1])) for i, texts in enumerate(made)]

    def drifts(name: str, data: list[Any], last: Any) -> tuple[dict[str, float], tuple[str, ...]]:
        parts = stored(tmp_path / name, preferences=data, holdout=[pair("held", "good", "bad")])
        report = check(parts, ValidationSettings(), OWN, Context(last=last))
        found = {
            item.name: item.value for item in report.measures if item.name.startswith("drift") and item.of != "holdout"
        }
        return found, tuple(warning for warning in report.warnings if "drift" in warning)

    parts = stored(tmp_path / "first", preferences=rows(60, 1), holdout=[pair("held", "good", "bad")])
    first = check(parts, ValidationSettings(), OWN)
    assert not any(item.name.startswith("drift") for item in first.measures)
    last = json.loads(json.dumps(first.histograms))
    found, warnings = drifts("same", rows(60, 1), last)
    assert (
        set(found) >= {"drift_rows", "drift_length", "drift_source"} and set(found.values()) == {0.0} and not warnings
    )
    found, warnings = drifts("longer", rows(60, 9), last)
    assert found["drift_length"] > 1 and any(w.startswith("preferences: drift_length:") for w in warnings)
    found, warnings = drifts("fewer", rows(20, 1), last)
    assert found["drift_rows"] == pytest.approx(math.log(3))
    assert any(w.startswith("preferences: drift_rows: 1.1 (allowed: at most 0.25)") for w in warnings)


def test_benchmark_items_in_training_text_are_counted_and_put_aside(tmp_path: Path) -> None:
    question = (
        "Which of the seven rivers of the northern valley freezes first when the winter comes early to the hills?"
    )
    texts = [{"benchmark": "rivers", "item": i, "text": f"{question.replace('seven', word)} The {word} one."}
             for i, word in enumerate(("red", "green", "blue", "grey"))]  # fmt: skip
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    rows = [pair("a", "x", "y"), pair(question.replace("seven", "red"), "The red one.", "No idea.")]
    held = [pair(question.replace("seven", "blue"), "The blue one.", "No idea.")]  # nobody learns from it
    parts = stored(tmp_path, preferences=rows, holdout=held)
    report = check(parts, ValidationSettings(max_quarantined=1), OWN, Context(benchmarks=tmp_path / "texts.jsonl"))
    assert report.benchmarks is not None and report.benchmarks["rivers"]["items"] == 4
    assert report.benchmarks["rivers"]["exact"] == 1
    assert (report.parts["preferences"].rules["contaminated"], report.parts["holdout"].rules["contaminated"]) == (1, 0)
    assert any(warning.startswith("rivers: contamination: ") for warning in report.warnings)


def test_a_policy_is_applied(tmp_path: Path) -> None:
    rows = [
        pair("a", "x", "y") | {"licence": "MIT"},
        pair("b", "x", "y") | {"licence": "CC-BY-NC-4.0"},
        pair("c", "x", "y") | {"licence": "MIT", "subject": "s1"},
        pair("d", "x", "y") | {"licence": "MIT", "subject": "s2", "consent": "yes", "legal_basis": "consent"},
        pair("e", "x", "y")
        | {"licence": "MIT", "subject": "s3", "consent": "yes", "legal_basis": "consent", "expires": "2026-01-31"},
    ]
    settings = rule(use="shop", licences={"shop": ("MIT",)}, licence="quarantine", max_quarantined=1)
    parts = stored(tmp_path, preferences=rows, holdout=[pair("held", "good", "bad") | {"licence": "MIT"}])
    (tmp_path / "erased.jsonl").write_text('{"subject": "s2"}\n')
    context = Context(erased=tmp_path / "erased.jsonl", today="2026-02-01")
    found = check(parts, settings, OWN, context).parts["preferences"].rules
    assert {name: found[name] for name in ("licence", "no_consent", "consent_expired", "erased")} == {
        "licence": 1, "no_consent": 1, "consent_expired": 1, "erased": 1,
    }  # fmt: skip
    earlier = check(parts, settings, OWN, Context(today="2026-01-31"))
    assert earlier.parts["preferences"].rules["consent_expired"] == 0


def test_findings_are_masked_everywhere(tmp_path: Path) -> None:
    mail, card, key = "jane.doe@example.org", "4111 1111 1111 1111", "AKIAIOSFODNN7EXAMPLE"
    rows = [pair("a", "x", "y"), pair(f"Write to {mail}", "x", "y"), pair(f"Pay with {card}", "x", "y")]
    rows += [pair(f"Use {key} there", "x", "y")]
    parts = stored(tmp_path, preferences=rows, holdout=[pair("held", "good", "bad")])
    report = validate(parts, ValidationSettings(max_quarantined=1), OWN, tmp_path / "out")
    assert [report.parts["preferences"].rules[name] for name in ("email", "card", "api_key")] == [1, 1, 1]
    told = json.dumps(report.as_json()) + str(pq.read_table(tmp_path / "out/report/quarantine.parquet").to_pylist())
    told += "".join(page.read_text() for page in (tmp_path / "out/docs").iterdir())
    for secret in (mail, "jane", card, "1111", key, "IOSFODNN7"):
        assert secret not in told
