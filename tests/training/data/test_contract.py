"""The contract: Great Expectations counts each segment on its own, the counts are added up, and they are ours."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.data.test_expectations import OWN, PREFERENCES, SETTINGS, SFT, stored
from tests.training.data.test_profile import pair
from training.data import contract as judged
from training.data.contract import Counts, contract
from training.data.docs import merged
from training.data.expectations import Report, judge
from training.data.profile import Context, Profile, profile
from training.data.rules import rules
from training.data.settings import ValidationSettings


def found(folder: Path, settings: ValidationSettings = SETTINGS, cache: Path | None = None) -> tuple[Profile, Report]:
    parts = {part: folder / part for part in ("preferences", "sft", "holdout")}
    made = profile(parts, settings, OWN, Context(cache=cache))
    return made, judge(made, settings, OWN)


def ours(report: Report) -> dict[tuple[str, str], int]:
    return {(part, rule): count for part, told in report.parts.items() for rule, count in told.rules.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    stored(folder, preferences=PREFERENCES, sft=SFT, holdout=[pair("held", "good", "bad")])
    return folder


@pytest.mark.parametrize(
    "settings",
    [SETTINGS, ValidationSettings(max_characters=5, max_repeated_lines=0.0), ValidationSettings(max_characters=10**6)],
    ids=["usual", "strict", "lax"],
)
def test_great_expectations_and_the_profile_agree(folder: Path, tmp_path: Path, settings: ValidationSettings) -> None:
    made, report = found(folder, settings)
    assert contract(made, settings, report, tmp_path / "docs") == ours(report)


def test_counts_of_segments_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three files are three segments: 2 + 0 + 1 rows without a completion, of 2 + 3 + 2."""
    from training.data.settings import Source
    from training.data.snapshot import write_snapshot

    texts = [["", " "], ["a", "b", "c"], ["d", ""]]
    sizes: list[int] = []
    plain = judged._judged
    for number, chosen in enumerate(texts):
        lines = [json.dumps(pair(f"p{number} {i}", text, "other")) for i, text in enumerate(chosen)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines))
    write_snapshot([Source(path=f"{number}.jsonl") for number in range(3)], tmp_path, tmp_path / "preferences")
    stored(tmp_path, sft=SFT, holdout=[pair("held", "good", "bad")])
    made, report = found(tmp_path)
    assert len([segment for segment in made.segments if segment.part == "preferences"]) == 3
    counted = contract(made, SETTINGS, report, tmp_path / "docs")
    assert counted == ours(report) and counted["preferences", "empty_completion"] == 3
    monkeypatch.setattr(judged, "SEGMENT", 4)
    monkeypatch.setattr(judged, "_judged", lambda *given: sizes.append(len(given[0]["email"])) or plain(*given))
    assert contract(made, SETTINGS, report, tmp_path / "docs") == counted and sizes == [2, 3, 2, 2, 1]
    monkeypatch.setattr(judged, "SEGMENT", 5)
    sizes.clear()
    assert contract(made, SETTINGS, report, tmp_path / "docs") == counted and sizes == [5, 2, 2, 1]
    page = (tmp_path / "docs/result.html").read_text()
    assert "3 of 7 rows break it (42.9%)" in page


def test_a_part_that_counts_otherwise_is_noticed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.data import expectations

    def wrong(columns: Any, asked: Any) -> dict[str, Counts]:
        return {rule.name: Counts(7, 0, 7) for rule in asked}

    monkeypatch.setattr(judged, "_judged", wrong)
    parts = {part: folder / part for part in ("preferences", "sft", "holdout")}
    with pytest.raises(RuntimeError, match="count differently"):
        expectations.validate(parts, SETTINGS, OWN, tmp_path / "out")


def test_counts_are_kept_until_facts_or_bounds_change(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    plain = judged._judged
    monkeypatch.setattr(judged, "_judged", lambda *given: calls.append(1) or plain(*given))
    for settings, asked in (
        (SETTINGS, 3),
        (SETTINGS, 0),
        (ValidationSettings(max_characters=61, max_quarantined=0.9), 3),
    ):
        made, report = found(folder, settings, tmp_path / "cache")
        calls.clear()
        assert contract(made, settings, report, tmp_path / "docs") == ours(report)
        assert len(calls) == asked


def test_kept_counts_that_were_changed_are_not_believed(folder: Path, tmp_path: Path) -> None:
    made, report = found(folder, cache=tmp_path / "cache")
    contract(made, SETTINGS, report, tmp_path / "docs")
    for number, path in enumerate(sorted((tmp_path / "cache" / "contract").iterdir())):
        path.write_bytes([b"", path.read_bytes().replace(b"1", b"2"), b'{"counts": {}}'][number])
    assert contract(made, SETTINGS, report, tmp_path / "docs") == ours(report)


def test_the_merged_result_says_what_stops_and_what_does_not(folder: Path) -> None:
    settings = ValidationSettings.model_validate(
        {
            "max_quarantined": 0.9,
            "max_characters": 60,
            "duplicate": {"action": "quarantine", "at_most": 0.01},
            "contradiction": "stop",
        }
    )
    made, report = found(folder, settings)
    counted = {key: Counts(made.parts[key[0]].stop - made.parts[key[0]].start, 0, n) for key, n in ours(report).items()}
    result, suite = merged(counted, settings, report)
    told = {
        (item.expectation_config.meta["part"], item.expectation_config.meta["rule"]): item
        for item in result.results
        if "rule" in item.expectation_config.meta
    }
    assert set(told) == {(part, rule.name) for part in report.parts for rule in rules(settings)}
    broken = {rule for (part, rule), item in told.items() if part == "preferences" and not item.success}
    assert broken == {"duplicate", "contradiction", "too_long"}  # quarantine within its threshold is as agreed
    assert told["preferences", "contradiction"].result["unexpected_count"] == 2
    assert told["preferences", "contradiction"].result["unexpected_percent"] == pytest.approx(100 * 2 / 13)
    assert told["preferences", "duplicate"].expectation_config.severity == "warning"
    assert not result.success and len(suite.expectations) == len(result.results)
    assert result.statistics["unsuccessful_expectations"] == sum(not item.success for item in result.results)


def test_limits_and_measures_are_expectations_too(folder: Path, tmp_path: Path) -> None:
    settings = ValidationSettings(max_quarantined=0.1, max_characters=60, min_records=100)
    made, report = found(folder, settings)
    contract(made, settings, report, tmp_path / "docs")
    page = (tmp_path / "docs/result.html").read_text()
    for sentence in ("At most 10% of the rows are faulty", "At least 100 pairs or labelled completions are left"):
        assert sentence in page
    index = (tmp_path / "docs/index.html").read_text()
    assert "The run is stopped" in index and "No other record of the same prompt prefers" in index
