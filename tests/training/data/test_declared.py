"""What is declared of a row: its own columns before its source, in one spelling, or a reason."""

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.records import Provenance
from training.data.settings import Source
from training.data.sources import Line, Unreadable, read
from training.strict import Refused

ROW = {"text": "a"}
FULL = {
    "licence": "MIT",
    "subject": "someone",
    "consent": "given",
    "legal_basis": "6(1)(a)",
    "purpose": "training",
    "expires": "2030-01-31",
    "collected_at": "2024-01-31T10:00:00Z",
}


def lines(folder: Path, *rows: dict[str, Any], **declared: str) -> list[Line]:
    (folder / "d").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read(Source(path="d", **declared), folder).lines)  # type: ignore[arg-type]


def test_a_row_says_it_itself_or_its_source_does(tmp_path: Path) -> None:
    (bare, whole) = lines(tmp_path, ROW, {**ROW, **FULL})
    assert bare.provenance == Provenance("d", 1) and whole.provenance == Provenance("d", 2, **FULL)
    assert bare.provenance.payload() == {"source": "d", "line": 1, "licence": None}
    assert lines(tmp_path, ROW, **FULL)[0].provenance == Provenance("d", 1, **FULL)
    others = {"licence": "CC0-1.0", "expires": "2020-01-01", "subject": "another"}
    (line, null) = lines(
        tmp_path, {**ROW, **others}, {**ROW, **dict.fromkeys(FULL), "purpose": "", "expires": " "}, **FULL
    )
    assert line.provenance == Provenance("d", 1, **{**FULL, **others})
    assert null.provenance == Provenance("d", 2, **FULL)


def test_consent_may_be_true_or_false(tmp_path: Path) -> None:
    found = lines(tmp_path, {**ROW, "consent": True}, {**ROW, "consent": False}, ROW, consent="given")
    assert [line.provenance.consent for line in found] == ["true", "false", "given"]


def test_license_is_licence(tmp_path: Path) -> None:
    found = lines(tmp_path, {**ROW, "license": "MIT"}, {**ROW, "license": "MIT", "licence": "MIT"})
    assert [line.provenance.licence for line in found] == ["MIT", "MIT"]
    (bad, _) = lines(tmp_path, {**ROW, "license": "MIT", "licence": "Apache-2.0"}, ROW)
    assert isinstance(bad.content, Unreadable) and bad.content.reason == "'licence' and 'license' differ"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("2030-01-31", "2030-01-31"),
        (" 20300131 ", "2030-01-31"),
        ("2030-01-31T12:00:00Z", "2030-01-31T12:00:00Z"),
        ("2030-01-31 12:00", "2030-01-31T12:00:00Z"),
        ("2030-01-31T01:00:00+02:00", "2030-01-30T23:00:00Z"),
        ("2030-01-31T12:00:00.5Z", "2030-01-31T12:00:00.500000Z"),
    ],
)
def test_a_date_or_time_has_one_spelling(tmp_path: Path, value: str, kept: str) -> None:
    assert lines(tmp_path, {**ROW, "expires": value})[0].provenance.expires == kept
    assert lines(tmp_path, ROW, collected_at=value)[0].provenance.collected_at == kept


def test_dates_and_numbers_of_parquet_are_taken(tmp_path: Path) -> None:
    times = {"expires": [date(2030, 1, 31)], "collected_at": [datetime(2024, 1, 31, 12, tzinfo=UTC)], "subject": [7]}
    pq.write_table(pa.table({"text": ["a"], **times}), tmp_path / "d")
    (line,) = read(Source(path="d"), tmp_path).lines
    assert line.provenance == Provenance("d", 1, subject="7", expires="2030-01-31", collected_at="2024-01-31T12:00:00Z")


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("licence", 1, "'licence' is a number, not text"),
        ("license", ["MIT"], "'license' is a list, not text"),
        ("subject", True, "'subject' is true or false, not text"),
        ("subject", {"id": 1}, "'subject' is an object"),
        ("purpose", "\ud800", "half a surrogate"),
        ("expires", 2030, "'expires' is a number, not an ISO 8601"),
        ("expires", "soon", "'expires' is no ISO 8601"),
        ("expires", "2030-02-30", "'expires' is no ISO 8601"),
        ("expires", "31.01.2030", "'expires' is no ISO 8601"),
        ("collected_at", "0001-01-01T00:00:00+12:00", "'collected_at' is no ISO 8601"),
        ("collected_at", "2030-01-31T25:00", "'collected_at' is no ISO 8601"),
    ],
)
def test_a_wrong_type_makes_the_line_unreadable_with_its_reason(
    tmp_path: Path, column: str, value: Any, reason: str
) -> None:
    (bad, good) = lines(tmp_path, {**ROW, column: value}, ROW, purpose="p")
    assert isinstance(bad.content, Unreadable) and reason in bad.content.reason
    assert bad.provenance == Provenance("d", 1, purpose="p") and not isinstance(good.content, Unreadable)


def test_a_source_that_declares_no_date_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="d: 'expires' is no ISO 8601 date"):
        lines(tmp_path, ROW, expires="next year")


def test_columns_of_other_names_are_renamed(tmp_path: Path) -> None:
    (tmp_path / "d").write_text(json.dumps({**ROW, "lic": "MIT", "who": "s"}))
    source = Source(path="d", columns={"licence": "lic", "subject": "who"})
    (line,) = read(source, tmp_path).lines
    assert line.provenance == Provenance("d", 1, "MIT", "s")
