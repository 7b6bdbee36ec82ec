"""Merkle leaves of records: what a snapshot's identity is made of, computed a million times."""

import hashlib
import re
from functools import lru_cache
from operator import attrgetter
from typing import Any

from training.data.records import Provenance
from training.digest import canonical_json

_DECLARED = tuple(name for name in Provenance.__dataclass_fields__ if name != "line")
_declared = attrgetter(*_DECLARED)
_PLAIN = re.compile(r"[ !#-\[\]-~]*").fullmatch  # text that JSON writes as it stands


def leaf(id: str, provenance: Provenance, weight: float = 1.0) -> bytes:
    """RFC 6962 leaf hash of a record where it stands: SHA-256(0x00 || canonical JSON of {id, provenance}).

    A weight other than 1 stands there too, as ``weight``: it changes what is learnt and the id doesn't cover it.
    Raises ValueError on text that has no canonical JSON.
    """
    return hashlib.sha256(b"\0" + leaf_content(id, provenance, weight)).digest()


def leaf_content(id: str, provenance: Provenance, weight: float = 1.0) -> bytes:
    """The canonical JSON that a leaf covers.

    Law: ``leaf_content(i, p, w) == canonical_json({"id": i, "provenance": p.payload()} | ({} if w == 1 else {"weight": w}))``.
    """
    before, after = _around_line(_declared(provenance))
    name = b'"%b"' % id.encode("ascii") if _PLAIN(id) else canonical_json(id)
    grade = b"" if weight == 1.0 else b',"weight":%b' % canonical_json(weight)
    return b'{"id":%b,"provenance":{%b"line":%d%b}%b}' % (name, before, provenance.line, after, grade)


@lru_cache(maxsize=4096)
def _around_line(declared: tuple[Any, ...]) -> tuple[bytes, bytes]:
    """What stands before and after the line in a provenance's canonical JSON: the same for most rows of a file."""
    payload = Provenance(line=0, **dict(zip(_DECLARED, declared, strict=True))).payload()
    before = canonical_json({name: value for name, value in payload.items() if name < "line"})[1:-1]
    after = canonical_json({name: value for name, value in payload.items() if name > "line"})[1:-1]
    return before + b"," if before else b"", b"," + after if after else b""
