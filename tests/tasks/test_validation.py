"""The validation step: what it is keyed by, and what a snapshot is compared with."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.run import Context as Run
from tasks.validation import any_expiry, last_histograms, prepare, remember, tokenizer_files
from tasks.workspace import Workspace
from training.data.settings import DataSettings, Source, ValidationSettings
from training.data.snapshot import write_snapshot
from training.digest import Digest, digest_bytes
from training.settings import ModelSettings, NewModel, Profile

A, B, C = ({"preferences": digest_bytes(name)} for name in (b"a", b"b", b"c"))


def test_a_first_snapshot_is_compared_with_none_and_each_later_one_with_the_one_before(tmp_path: Path) -> None:
    assert last_histograms(tmp_path, "e", A) is None
    for roots, number in ((A, 1), (B, 2), (C, 3)):
        remember(tmp_path, "e", roots, {"preferences": {"rows": number}})
    assert [last_histograms(tmp_path, "e", roots) for roots in (A, B, C)] == [
        None,
        {"preferences": {"rows": 1}},
        {"preferences": {"rows": 2}},
    ]
    new = {"preferences": digest_bytes(b"new")}
    assert last_histograms(tmp_path, "e", new) == {"preferences": {"rows": 3}}
    assert last_histograms(tmp_path, "other", new) is None


def test_what_a_snapshot_is_compared_with_never_changes(tmp_path: Path) -> None:
    for roots in (A, B, A, C, B):
        remember(tmp_path, "e", roots, {"preferences": {"rows": len((tmp_path / "history").name)}})
    lines = (tmp_path / "history" / "e.jsonl").read_text().splitlines()
    assert [json.loads(line)["roots"] for line in lines] == [{"preferences": str(r["preferences"])} for r in (A, B, C)]
    assert last_histograms(tmp_path, "e", A) is None


def test_a_torn_line_of_the_history_is_left_out(tmp_path: Path) -> None:
    remember(tmp_path, "e", A, {"preferences": {"rows": 1}})
    with open(tmp_path / "history" / "e.jsonl", "a") as file:
        file.write('{"roots": {"pref')
    assert last_histograms(tmp_path, "e", B) == {"preferences": {"rows": 1}}


# ------------------------------------------------------------------------------------------------ the key


def pairs(folder: Path, **more: Any) -> dict[str, Path]:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", **more}
    folder.mkdir()
    (folder / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    write_snapshot([Source(path="pairs.jsonl")], folder, folder / "snapshot")
    return {"preferences": folder / "snapshot"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run("e", digest_bytes(b"e"), 1, tmp_path, Profile(), Workspace.at(tmp_path / "home"))


def key(run: Run, parts: dict[str, Path], texts: Path | None = None, model: ModelSettings | None = None) -> Digest:
    data = DataSettings(preferences=(Source(path="pairs.jsonl"),))
    model = model or ModelSettings(new=NewModel())
    return prepare(run, ValidationSettings(), data, parts, A, texts, model, {"preferences": 64}).step.key


def test_the_key_changes_with_what_is_read_and_with_nothing_else(run: Run, tmp_path: Path) -> None:
    parts = pairs(tmp_path / "data")
    first = key(run, parts)
    assert key(Run("e", run.digest, 2, tmp_path, Profile(threads=7), run.workspace), parts) == first
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"benchmark": "b", "item": 0, "text": "t"}\n')
    with_texts = key(run, parts, texts)
    texts.write_text('{"benchmark": "b", "item": 0, "text": "u"}\n')
    run.workspace.home.mkdir()
    seen = {first, with_texts, key(run, parts, texts)}
    (run.workspace.home / "erased.jsonl").write_text('{"subject": "s"}\n')
    seen.add(key(run, parts))
    remember(run.workspace.home, "e", B, {"preferences": {"rows": 1}})
    seen.add(key(run, parts))
    assert len(seen) == 5


def test_the_day_counts_only_where_a_consent_expires(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import datetime

    import tasks.validation as validation

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2099, 1, 1, tzinfo=tz)

    plain, expiring = pairs(tmp_path / "plain"), pairs(tmp_path / "expiring", expires="2030-01-01", subject="s")
    assert (any_expiry(plain), any_expiry(expiring)) == (False, True)
    before = key(run, plain), key(run, expiring)
    monkeypatch.setattr(validation, "datetime", Tomorrow)
    after = key(run, plain), key(run, expiring)
    assert before[0] == after[0] and before[1] != after[1]


def test_tokens_are_counted_where_the_base_is_a_folder(run: Run, tmp_path: Path) -> None:
    base = ModelSettings(base="model")
    (tmp_path / "model").mkdir()
    assert tokenizer_files(base, tmp_path) == [] == tokenizer_files(ModelSettings(new=NewModel()), tmp_path)
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    (tmp_path / "model" / "config.json").write_text("{}")
    parts = pairs(tmp_path / "data")
    first = key(run, parts, model=base)
    assert first != key(run, parts)
    (tmp_path / "model" / "tokenizer.json").write_text('{"a": 1}')
    assert key(run, parts, model=base) != first
