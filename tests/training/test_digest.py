"""Canonical JSON against RFC 8785's own examples; digests; manifests find every change."""

import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.digest import Digest, Manifest, canonical_json, digest_bytes, digest_file

# RFC 8785, appendix B: the bits of an IEEE double and its text.
NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("bits, text", NUMBERS.items())
def test_numbers_are_written_as_in_rfc_8785_appendix_b(bits: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_json(number).decode() == text


@pytest.mark.parametrize("bits", ["7fffffffffffffff", "7ff0000000000000", "fff0000000000000"])
def test_nan_and_infinity_are_refused(bits: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    with pytest.raises(ValueError, match="no JSON number"):
        canonical_json(number)


def test_keys_are_sorted_by_utf_16_code_units_as_in_rfc_8785_section_3_2_3() -> None:
    value = {
        "\u20ac": "Euro Sign",
        "\r": "Carriage Return",
        "\ufb33": "Hebrew Letter Dalet With Dagesh",
        "1": "One",
        "\U0001f600": "Emoji: Grinning Face",
        "\u0080": "Control",
        "\u00f6": "Latin Small Letter O With Diaeresis",
    }
    assert canonical_json(value).decode() == (
        '{"\\r":"Carriage Return","1":"One","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis",'
        '"\u20ac":"Euro Sign","\U0001f600":"Emoji: Grinning Face","\ufb33":"Hebrew Letter Dalet With Dagesh"}'
    )


def test_strings_and_literals_are_written_as_in_rfc_8785_section_3_2_2() -> None:
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    assert canonical_json(value).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


@given(JSON)
def test_canonical_json_reads_back_as_the_same_value_and_writes_the_same_bytes(value: object) -> None:
    written = canonical_json(value)
    assert json.loads(written, parse_int=float) == value  # RFC 8785 knows doubles only
    assert canonical_json(json.loads(written)) == written


def test_a_large_float_reads_back_as_an_integer_that_is_written_the_same() -> None:
    # A setting of 1e18 stands in a manifest as 1000000000000000000, which json.loads gives back as an int.
    assert canonical_json(10**18) == canonical_json(1e18) == b"1000000000000000000"


@pytest.mark.parametrize(
    "value", [2**53 + 1, 2**60, 10**400, {1: 2}, {"a": object()}, "\ud800", b"bytes", {"\udc00": 1}]
)
def test_what_has_no_canonical_json_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        canonical_json(value)


@given(st.binary())
def test_a_digest_is_read_back_from_its_text(data: bytes) -> None:
    digest = digest_bytes(data)
    assert Digest.parse(str(digest)) == digest


def test_the_digest_of_nothing_is_the_known_one() -> None:
    assert str(digest_bytes(b"")) == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("text", ["", "abc", "md5:" + "0" * 64, "sha256:" + "0" * 63, "sha256:" + "A" * 64, "sha256:"])
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Digest.parse(text)


# ------------------------------------------------------------------------------------------------ manifests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "artifact"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "a.bin").write_bytes(bytes(range(7)))
    (root / "deep" / "b.txt").write_bytes(b"text")
    (root / "deep" / "er" / "c").write_bytes(b"")
    return root


def test_a_manifest_lists_files_by_path_with_size_and_digest(folder: Path) -> None:
    manifest = Manifest.of(folder)
    assert [(entry.path, entry.size) for entry in manifest.files] == [("a.bin", 7), ("deep/b.txt", 4), ("deep/er/c", 0)]
    assert manifest.size == 7 + 4 + 0
    assert manifest.files[1].digest == digest_bytes(b"text") == digest_file(folder / "deep" / "b.txt")
    assert Manifest.from_json(manifest.as_json()) == manifest


def test_a_manifest_finds_every_flipped_byte(folder: Path) -> None:
    before = Manifest.of(folder).digest
    for i in range(7):
        data = bytearray(range(7))
        data[i] ^= 1
        (folder / "a.bin").write_bytes(data)
        assert Manifest.of(folder).digest != before
    (folder / "a.bin").write_bytes(bytes(range(7)))
    assert Manifest.of(folder).digest == before


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a.bin").rename(root / "A.bin"),
        lambda root: (root / "deep" / "b.txt").rename(root / "b.txt"),
        lambda root: (root / "new").write_bytes(b""),
        lambda root: (root / "deep" / "er" / "c").unlink(),
        lambda root: (root / "deep" / "er" / "c").write_bytes(b"\0"),
    ],
    ids=["renamed", "moved", "added", "removed", "grown"],
)
def test_a_manifest_finds_a_change_of_files(folder: Path, change: object) -> None:
    before = Manifest.of(folder).digest
    change(folder)  # type: ignore[operator]
    assert Manifest.of(folder).digest != before


@pytest.mark.parametrize("target", ["a.bin", "deep", "nowhere"])
def test_a_link_inside_is_refused(folder: Path, target: str) -> None:
    (folder / "link").symlink_to(folder / target)
    with pytest.raises(ValueError, match="link or a special file"):
        Manifest.of(folder)


def test_a_special_file_inside_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(ValueError, match="link or a special file"):
        Manifest.of(folder)


def test_a_missing_folder_has_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Manifest.of(tmp_path / "nowhere")
