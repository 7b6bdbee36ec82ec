"""Whether a row may be used at all: its licence, the consent of who is named, and what was erased and must not come back.

Only ids and provenance are read; a batch may come without records.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.facts.base import Batch
from training.data.facts.licences import BUILT_IN, allows, normalised
from training.data.records import Provenance
from training.data.settings import ValidationSettings
from training.digest import digest_file
from training.strict import Refused

if TYPE_CHECKING:
    import numpy as np

COLUMNS = ("licence_refused", "no_consent", "consent_expired", "erased")
# What says that there is none, whatever stands there.
_NOT_GIVEN = frozenset(
    (
        *("", "no", "none", "null", "false", "0", "n/a", "na", "nan", "unknown", "missing", "pending", "-"),
        *("not given", "denied", "refused", "declined", "withdrawn", "revoked", "expired", "opt-out", "objected"),
    )
)


@dataclass(frozen=True)
class Policy:
    """Columns, each 0 or 1, of every line (lines that are no record too: only ``erased`` is not null for them).

    ``licence_refused``: the licence is not among ``licences`` (None: there is no list); an undeclared one is refused.
    ``no_consent``: a subject is named and consent or legal basis is missing (both are needed), or says no.
    ``consent_expired``: ``expires`` is before ``today`` (an ISO date), or is no ISO 8601 date or time.
    ``erased``: the row's id, or its subject, stands in ``erased_file`` (JSON Lines of {id} or {subject}), whose SHA-256 in
    hex is ``erased_digest``. Raises Refused on a file that is broken or another one.
    """

    licences: tuple[str, ...] | None
    today: str
    erased_digest: str = ""
    erased_file: str | None = field(default=None)
    name: str = "policy"
    columns: tuple[str, ...] = COLUMNS

    @property
    def key(self) -> str:
        return repr((self.licences, self.today, self.erased_digest))

    def __call__(self, batch: Batch) -> "dict[str, np.ndarray[Any, Any]]":
        import numpy as np

        erased = _erased(self.erased_file, self.erased_digest) if self.erased_file is not None else Erased()
        today = date.fromisoformat(self.today)
        judged: dict[tuple[str | None, ...], tuple[float, ...]] = {}
        rows = []
        for id_, where, reason in zip(batch.ids, batch.provenance, batch.reasons, strict=True):
            declared = (where.licence, where.subject, where.consent, where.legal_basis, where.expires)
            facts = judged.get(declared)
            if facts is None:
                facts = judged[declared] = (*self._declared(where, today), float(where.subject in erased.subjects))
            gone = float(facts[3] or id_ in erased.ids)
            rows.append((*facts[:3], gone) if reason is None else (np.nan, np.nan, np.nan, gone))
        table = np.array(rows, "float64").reshape(-1, len(COLUMNS))
        return {name: np.ascontiguousarray(table[:, place]) for place, name in enumerate(COLUMNS)}

    def _declared(self, where: Provenance, today: date) -> tuple[float, float, float]:
        refused = self.licences is not None and not allows(self.licences, where.licence)
        consent = _given(where.consent) and _given(where.legal_basis)
        return float(refused), float(_named(where.subject) and not consent), float(_expired(where.expires, today))


def licences_for(settings: ValidationSettings) -> tuple[str, ...] | None:
    """The licences that ``settings.use`` allows: those of ``settings.licences``, else the built-in ones; None without a use.

    Raises Refused for a use that has no list.
    """
    if settings.use is None:
        return None
    lists: Mapping[str, tuple[str, ...]] = {**BUILT_IN, **settings.licences}
    if settings.use not in lists:
        raise Refused(
            f"validation.use is '{settings.use}', which has no list of licences. Known uses: {', '.join(sorted(lists))}. "
            f"Name one of these, or give a list under validation.licences.{settings.use}"
        )
    return tuple(dict.fromkeys(normalised(licence) for licence in lists[settings.use]))


@dataclass(frozen=True)
class Erased:
    """What was erased: ids of records and names of subjects."""

    ids: frozenset[str] = frozenset()
    subjects: frozenset[str | None] = frozenset()


@lru_cache(maxsize=2)
def _erased(path: str, digest: str) -> Erased:
    import orjson

    try:
        found = digest_file(Path(path)).value
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise Refused(f"{path}: the list of what was erased cannot be read ({error.strerror})") from None
    if found != digest.removeprefix("sha256:"):
        raise Refused(f"{path}: the list of what was erased has the digest {found}, not {digest}: it was changed since")
    ids, subjects = set(), set()
    for number, line in enumerate(lines, start=1):
        try:
            item = orjson.loads(line)
        except orjson.JSONDecodeError:
            item = None
        if not isinstance(item, dict) or not any(isinstance(item.get(name), str) for name in ("id", "subject")):
            raise Refused(f'{path}:{number}: needed is a JSON object {{"id": …}} or {{"subject": …}}, each as text')
        ids |= {item["id"].removeprefix("sha256:").lower()} if isinstance(item.get("id"), str) else set()
        subjects |= {item["subject"]} if isinstance(item.get("subject"), str) else set()
    return Erased(frozenset(ids), frozenset(subjects))


def _named(text: str | None) -> bool:
    return text is not None and text.strip() != ""


def _given(text: str | None) -> bool:
    return text is not None and re.sub(r"[\s_]+", " ", text).strip().casefold() not in _NOT_GIVEN


def _expired(expires: str | None, today: date) -> bool:
    """Whether the last day of the consent is over. A time counts by its date in UTC."""
    if expires is None or not expires.strip():
        return False
    try:
        moment = datetime.fromisoformat(expires.strip())
    except ValueError:
        return True
    if moment.tzinfo is None:
        return moment.date() < today
    return moment < datetime.combine(today, time(), UTC)
