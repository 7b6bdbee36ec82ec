"""Policy: licences as people write them, consent, and what was erased."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests.training.data.facts.made import batch, pair
from training.data.facts.licences import BUILT_IN, allows, normalised
from training.data.facts.policy import Policy, licences_for
from training.data.records import Provenance
from training.data.settings import ValidationSettings
from training.strict import Refused

TODAY = "2026-11-21"


def judged(policy: Policy, broken: bool = False, id_: str | None = None, **declared: Any) -> dict[str, float]:
    rows = batch([None if broken else pair("q", "a", "b")], where=[Provenance("a.jsonl", 1, **declared)])
    if id_ is not None:
        rows = type(rows)(rows.part, 2, [id_], rows.records, rows.provenance, rows.reasons, rows.raw)
    return {name: values[0].item() for name, values in policy(rows).items()}


def erasing(folder: Path, *items: Any) -> Policy:
    path = folder / "erased.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return Policy(None, TODAY, hashlib.sha256(path.read_bytes()).hexdigest(), str(path))


@pytest.mark.parametrize(
    ("written", "spdx"),
    [
        ("CC BY-NC 4.0", "CC-BY-NC-4.0"),
        ("cc-by-nc-4.0", "CC-BY-NC-4.0"),
        ("CC BY NC 4.0", "CC-BY-NC-4.0"),
        (" CC_BY_NC_4.0 ", "CC-BY-NC-4.0"),
        ("https://creativecommons.org/licenses/by-nc/4.0/", "CC-BY-NC-4.0"),
        ("http://creativecommons.org/licenses/by-nc/4.0/deed.de", "CC-BY-NC-4.0"),
        ("Creative Commons Attribution-NonCommercial 4.0 International License", "CC-BY-NC-4.0"),
        ("Creative Commons Attribution Share Alike 4.0", "CC-BY-SA-4.0"),
        ("Creative Commons Zero v1.0 Universal", "CC0-1.0"),
        ("CC0", "CC0-1.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("MIT License", "MIT"),
        ("the mit licence", "MIT"),
        ("Apache License, Version 2.0", "APACHE-2.0"),
        ("apache 2.0", "APACHE-2.0"),
        ("BSD 3-Clause License", "BSD-3-CLAUSE"),
        ("odc-by", "ODC-BY-1.0"),
        ("https://spdx.org/licenses/MIT.html", "MIT"),
        ("LicenseRef-Our own", "LICENSEREF-OUR OWN"),
    ],
)
def test_licences_are_known_however_they_are_written(written: str, spdx: str) -> None:
    assert normalised(written) == spdx == normalised(spdx)


@pytest.mark.parametrize(
    ("licence", "commercial", "research"),
    [
        ("MIT", True, True),
        ("CC BY 4.0", True, True),
        ("CC BY-NC 4.0", False, True),
        ("CC-BY-NC-SA-3.0", False, True),
        ("CC-BY-ND-4.0", False, False),
        ("CC-BY-NC-ND-4.0", False, False),
        ("GPL-3.0-only", False, False),
        ("MIT (non-commercial use only)", False, False),
        ("proprietary", False, False),
        ("other", False, False),
        ("unknown", False, False),
        ("", False, False),
        (" ", False, False),
        (None, False, False),
        ("MIT OR GPL-3.0-only", True, True),
        ("MIT AND GPL-3.0-only", False, False),
        ("MIT AND CC-BY-NC-4.0", False, True),
        ("GPL-3.0-only OR MIT AND CC-BY-NC-4.0", False, True),
        ("(GPL-3.0-only OR MIT) AND CC0-1.0", True, True),
        ("Apache-2.0 WITH LLVM-exception", True, True),
        ("MIT AND", False, False),
        ("MIT OR", False, False),
        ("((MIT) OR", False, False),
        ("AND", False, False),
        ("MIT, CC-BY-NC-4.0", False, False),
    ],
)
def test_a_use_allows_what_its_list_says(licence: str | None, commercial: bool, research: bool) -> None:
    for use, allowed in (("commercial", commercial), ("research", research)):
        policy = Policy(licences_for(ValidationSettings(use=use)), TODAY)
        assert judged(policy, licence=licence)["licence_refused"] == (not allowed)
        assert allows(BUILT_IN[use], licence) == allowed


def test_without_a_use_no_licence_is_refused() -> None:
    assert licences_for(ValidationSettings()) is None
    assert judged(Policy(None, TODAY))["licence_refused"] == 0


def test_lists_of_the_experiment_take_the_place_of_the_built_in_ones() -> None:
    lists = {"commercial": ("CC BY-NC 4.0", "cc-by-nc-4.0"), "ours": ("LicenseRef-Ours",), "none": ()}
    assert licences_for(ValidationSettings(use="commercial", licences=lists)) == ("CC-BY-NC-4.0",)
    ours = Policy(licences_for(ValidationSettings(use="ours", licences=lists)), TODAY)
    assert judged(ours, licence="licenseref-ours")["licence_refused"] == 0
    assert judged(ours, licence="MIT")["licence_refused"] == 1
    nothing = Policy(licences_for(ValidationSettings(use="none", licences=lists)), TODAY)
    assert judged(nothing, licence="MIT")["licence_refused"] == 1
    with pytest.raises(Refused, match=r"'comercial', which has no list .* commercial, none, ours, research"):
        licences_for(ValidationSettings(use="comercial", licences=lists))


@pytest.mark.parametrize(
    ("declared", "missing"),
    [
        ({}, False),
        ({"subject": " "}, False),
        ({"subject": "S-1"}, True),
        ({"subject": "S-1", "consent": "yes"}, True),
        ({"subject": "S-1", "legal_basis": "contract"}, True),
        ({"subject": "S-1", "consent": "form 7, 2025-01-01", "legal_basis": "Art. 6(1)(a)"}, False),
        ({"subject": "S-1", "consent": "No", "legal_basis": "Art. 6(1)(a)"}, True),
        ({"subject": "S-1", "consent": "withdrawn", "legal_basis": "Art. 6(1)(a)"}, True),
        ({"subject": "S-1", "consent": "yes", "legal_basis": " not_given "}, True),
        ({"consent": "no"}, False),
    ],
)
def test_a_named_subject_needs_consent_and_a_legal_basis(declared: dict[str, str], missing: bool) -> None:
    assert judged(Policy(None, TODAY), **declared)["no_consent"] == missing


@pytest.mark.parametrize(
    ("expires", "over"),
    [
        (None, False),
        ("", False),
        ("2026-11-21", False),
        ("2026-11-20", True),
        ("2026-11-22", False),
        ("20261120", True),
        ("2026-11-20T23:59:59Z", True),
        ("2026-11-20T23:30:00-02:00", False),
        ("2026-11-21T00:30:00+02:00", True),
        ("2030-01-01T00:00:00", False),
        ("next year", True),
        ("31.12.2030", True),
        ("2026-02-30", True),
        ("0001-01-01T00:00:00+14:00", True),
        ("9999-12-31T23:59:59-14:00", False),
    ],
)
def test_consent_is_over_after_its_last_day(expires: str | None, over: bool) -> None:
    assert judged(Policy(None, TODAY), expires=expires)["consent_expired"] == over


def test_what_was_erased_does_not_come_back(tmp_path: Path) -> None:
    gone = pair("q", "a", "b").id
    policy = erasing(tmp_path, {"subject": "S-1"}, {"id": f"sha256:{'ab' * 32}"}, {"id": "CD" * 32, "subject": "S-2"})
    assert judged(policy)["erased"] == 0
    assert judged(policy, subject="S-1")["erased"] == judged(policy, subject="S-2")["erased"] == 1
    assert judged(policy, subject="S-3")["erased"] == 0
    assert judged(policy, id_="ab" * 32)["erased"] == judged(policy, id_="cd" * 32)["erased"] == 1
    assert judged(erasing(tmp_path, {"id": gone}))["erased"] == 1


def test_a_line_that_is_no_record_is_judged_by_what_was_erased_alone(tmp_path: Path) -> None:
    policy = erasing(tmp_path, {"subject": "S-1"}, {"id": "0" * 64})
    facts = judged(policy, broken=True, subject="S-9")
    assert facts["erased"] == 1 and all(
        math.isnan(facts[n]) for n in ("licence_refused", "no_consent", "consent_expired")
    )


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"id": 3}', '{"subject": null}', ""])
def test_a_broken_list_of_what_was_erased_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "erased.jsonl"
    path.write_text('{"id": "x"}\n' + line + "\n")
    with pytest.raises(Refused, match=re.escape(f"{path}:2")):
        judged(Policy(None, TODAY, hashlib.sha256(path.read_bytes()).hexdigest(), str(path)))


def test_another_list_of_what_was_erased_is_refused(tmp_path: Path) -> None:
    policy = erasing(tmp_path, {"id": "x"})
    (tmp_path / "erased.jsonl").write_text('{"id": "other"}\n')
    with pytest.raises(Refused, match="changed since"):
        judged(policy)
    (tmp_path / "erased.jsonl").unlink()
    with pytest.raises(Refused, match="cannot be read"):
        judged(erasing(tmp_path, {"id": "y"}).__class__(None, TODAY, "0" * 64, str(tmp_path / "none")))


def test_every_row_has_its_own_facts(tmp_path: Path) -> None:
    where = [Provenance("a", i, licence=("MIT", None)[i % 2], subject=("S-1", "S-2", None)[i % 3]) for i in range(12)]
    facts = Policy(("MIT",), TODAY)(batch([pair(f"q{i}", "a", "b") for i in range(12)], where=where))
    assert facts["licence_refused"].tolist() == [0, 1] * 6
    assert facts["no_consent"].tolist() == [1, 1, 0] * 4
    assert Policy(("MIT",), TODAY).key != Policy(("MIT",), "2026-11-22").key != Policy(None, "2026-11-22").key
