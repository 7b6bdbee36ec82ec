"""Validation: what is kept, what is refused and how, and that Great Expectations counts as we do."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.training.data.test_profile import pair
from training.data.contract import contract
from training.data.expectations import check, excerpt, validate
from training.data.profile import profile
from training.data.snapshot import write_snapshot
from training.data.split import load_pairs, load_sft, read_selection, sft_from_preferences
from training.settings import Holdout, Refused, Source, ValidationSettings

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
COUNTS = {
    "unreadable": 1,
    "empty_prompt": 1,
    "empty_completion": 1,
    "wrong_roles": 1,
    "too_few_completions": 0,
    "no_preference": 0,
    "identical_completions": 2,
    "duplicate": 1,
    "contradiction": 2,
    "in_holdout": 1,
    "bad_characters": 1,
    "too_long": 1,
}


def stored(folder: Path, **parts: list[Any]) -> dict[str, Path]:
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
    assert report.warnings[0].startswith("too_long: 1 record(s), first at preferences.jsonl:9.")
    assert json.loads((out / "report/report.json").read_text()) == report.as_json()
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
    assert by_line["preferences", 2]["excerpt"] == "{broken, call ###-#### or mail <e-mail>"
    assert by_line["preferences", 2]["reason"].startswith("broken JSON")
    assert by_line["sft", 2]["rules"] == "in_holdout"


def test_data_docs_open_from_a_file_and_call_nobody(validated: Any) -> None:
    pages = list((validated[2] / "docs").rglob("*.html"))
    assert len(pages) == 3
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<script|<link|<img|url\(", text)
        for target in re.findall(r'(?:src|href)="([^"#]+)"', text):
            assert (page.parent / target).is_file(), f"{page.name} points to {target}"
    result = next(page.read_text(encoding="utf-8") for page in pages if "validations" in page.parts)
    assert "contradiction (quarantine): No other record of the same prompt" in result
    assert "jane.doe" not in result and "six" not in re.sub("<[^>]*>", "", result)


def test_great_expectations_and_the_profile_agree(tmp_path: Path, validated: Any) -> None:
    found = profile(validated[0], SETTINGS, OWN)
    assert contract(found, SETTINGS, tmp_path / "docs") == {
        name: int(failing.sum()) for name, failing in found.failing.items()
    }


def test_selections_and_quarantine_have_the_same_bytes_again(tmp_path: Path, validated: Any) -> None:
    parts, _, out = validated
    validate(parts, SETTINGS, OWN, tmp_path)
    for name in (
        "preferences/selection.parquet",
        "sft/selection.parquet",
        "report/quarantine.parquet",
        "report/report.json",
    ):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def refusal(folder: Path, settings: ValidationSettings, where: Holdout = OWN, **parts: list[Any]) -> str:
    if where.sources:
        parts.setdefault("holdout", [pair("held", "good", "bad")])
    with pytest.raises(Refused) as error:
        check(stored(folder, **parts), settings, where).raise_if_refused()
    return str(error.value)


def test_a_stop_rule_names_itself_the_count_the_place_and_the_next_move(tmp_path: Path) -> None:
    rows = [pair("a", "x", "y"), pair("b", "", "y"), pair("c", "", "y")]
    said = refusal(tmp_path, ValidationSettings(empty_completion="stop", max_quarantined=1), preferences=rows)
    assert said == (
        "empty_completion: 2 record(s), first at preferences.jsonl:2. Every completion says something. "
        "Correct them, or set validation.empty_completion to 'quarantine'"
    )


def test_too_many_faulty_rows_are_refused_and_the_limit_itself_is_not(tmp_path: Path) -> None:
    rows = [pair(letter, "x", "y") for letter in "abcd"] + ["{"]  # 1 of 5 = 0.2
    parts = stored(tmp_path, preferences=rows, holdout=[pair("held", "good", "bad")])
    assert check(parts, ValidationSettings(max_quarantined=0.2), OWN).refusals == ()
    (said,) = check(parts, ValidationSettings(max_quarantined=0.19), OWN).refusals
    assert said.startswith("preferences: 1 of 5 rows are faulty (20.0%; at most 19.0% are allowed): unreadable 1.")


def test_rows_with_held_out_prompts_are_put_aside_without_being_faults(tmp_path: Path) -> None:
    rows = [pair("a", "x", "y"), pair("held", "x", "y")]
    parts = stored(tmp_path, preferences=rows, holdout=[pair("held", "good", "bad")])
    report = check(parts, ValidationSettings(max_quarantined=0), OWN)
    assert report.refusals == () and report.parts["preferences"].quarantined == 1


def test_too_few_pairs_are_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, ValidationSettings(min_records=2), preferences=[pair("a", "x", "y")])
    assert said.startswith("preferences: 1 pair(s) to train on; at least 2 (validation.min_records)")


def test_empty_sets_are_refused_all_at_once(tmp_path: Path) -> None:
    settings = ValidationSettings(max_quarantined=1)
    sft = [{"prompt": "a", "completion": ""}]
    empty = [pair("a", "x", "x")]
    said = refusal(tmp_path, settings, preferences=empty, sft=sft, holdout=[pair("b", "x", "x")])
    assert [line.split(":")[0] for line in said.splitlines()] == ["sft", "preferences", "holdout"]


def test_a_share_that_holds_nothing_out_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, ValidationSettings(), Holdout(share=1e-9), preferences=[pair("a", "x", "y")])
    assert "holdout: no pair is held out (share 1e-09 of the prompts). Raise data.holdout.share" in said


def test_a_refusal_leaves_the_report_and_no_selection(tmp_path: Path) -> None:
    parts = stored(tmp_path, preferences=["{", pair("a", "x", "y")], holdout=[pair("held", "x", "y")])
    with pytest.raises(Refused, match="1 of 2 rows are faulty"):
        validate(parts, ValidationSettings(), OWN, tmp_path / "out")
    assert json.loads((tmp_path / "out/report/report.json").read_text())["refusals"]
    assert (tmp_path / "out/docs/index.html").is_file()
    assert not list((tmp_path / "out").rglob("selection.parquet"))


def test_excerpts_are_short_and_masked() -> None:
    assert excerpt("call\x00 +41 79\n now: a.b@c.d!") == "call +## ## now: <e-mail>"
    assert excerpt("x" * 100) == "x" * 79 + "…"
    assert "jane" not in excerpt("1 " * 197 + "jane.doe" + "@example.org")
    assert excerpt("٣") == "#"
