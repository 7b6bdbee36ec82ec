"""What is declared of a row: licence, subject, consent and so on, by its own columns or else by its source.

Dates and times are kept in one spelling: ``YYYY-MM-DD``, or ``YYYY-MM-DDTHH:MM:SSZ`` (UTC; a time without a zone is
taken as UTC; fractions of a second stay where there are some).
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from training.data.records import Provenance
from training.data.settings import Source
from training.data.values import kind
from training.strict import Refused

# A row's column → the field of Provenance.
FIELDS = {
    "licence": "licence",
    "license": "licence",
    **{name: name for name in ("subject", "consent", "legal_basis", "purpose", "expires", "collected_at")},
}
_ORDER = ("licence", "subject", "consent", "legal_basis", "purpose", "expires", "collected_at")
_DATES = frozenset({"expires", "collected_at"})


def defaults(source: Source) -> tuple[str | None, ...]:
    """What the source declares, in the order of Provenance. Raises Refused where a date is none."""
    found = []
    for name in _ORDER:
        value = getattr(source, name)
        try:
            found.append(None if value is None else _value(name, value))
        except ValueError as error:
            raise Refused(f"{source.name}: {error}. Correct it in the experiment's source") from None
    return tuple(found)


def provenance(name: str, line: int, declared: tuple[str | None, ...], row: Mapping[str, Any]) -> Provenance:
    """Where a row stands and what is declared of it; what the row says itself wins.

    Raises ValueError where a column is of a wrong type. Law: a row without these columns has the source's defaults.
    """
    if FIELDS.keys().isdisjoint(row):
        return Provenance(name, line, *declared)
    own: dict[str, str] = {}
    for column, field in FIELDS.items():
        value = row.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        text = _value(column, value)
        if own.setdefault(field, text) != text:
            raise ValueError("'licence' and 'license' differ")
    return Provenance(name, line, **{**dict(zip(_ORDER, declared, strict=True)), **own})


def _value(name: str, value: Any) -> str:
    if name in _DATES:
        return _moment(name, value)
    if name == "consent" and isinstance(value, bool):
        return "true" if value else "false"
    if name == "subject" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # people are often numbered
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is {kind(value)}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"'{name}' holds half a surrogate pair, which is no character") from None
    return value


def _moment(name: str, value: Any) -> str:
    try:
        if isinstance(value, str):
            value = value.strip()
            value = date.fromisoformat(value) if len(value) <= 10 else datetime.fromisoformat(value)
        if isinstance(value, datetime):
            utc = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
            return utc.replace(tzinfo=None).isoformat() + "Z"
        if isinstance(value, date):
            return value.isoformat()
    except (ValueError, OverflowError):
        raise ValueError(f"'{name}' is no ISO 8601 date or time (2026-01-31, 2026-01-31T12:00:00Z)") from None
    raise ValueError(f"'{name}' is {kind(value)}, not an ISO 8601 date or time as text")
