"""Public data beside the checkout, where it is: every row accounted for, forms recognised without being named."""

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.expectations import check
from training.data.records import Record, pairs
from training.data.settings import Holdout, Source, ValidationSettings
from training.data.snapshot import write_snapshot
from training.data.sources import read

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is absent")

# Each set: form, rows, records, pairs. hh: of 4 rows the two transcripts share no prompt, and 4 more end in the same answer
# (pairs count what differs). gsm8k: ties, and prompts whose answers are all right or all wrong, give no pair.
SETS = {
    "hh_harmless_base.jsonl.gz": ("transcripts", 1835, 1831),
    "gsm8k_graded.jsonl.gz": ("graded", 1059, 1059),
    "alpaca_eval_graded.jsonl.gz": ("graded", 678, 678),
    "gsm8k_train.jsonl.gz": ("completion", 7473, 7473),
    "blimp": ("sentences", 4000, 4000),
}


@pytest.mark.parametrize("name", SETS)
def test_a_real_set_is_read_with_no_form_named(name: str) -> None:
    form, rows, records = SETS[name]
    reading = read(Source(path=name), DATA)
    found = [isinstance(line.content, Record) for line in reading.lines]
    assert (reading.form, len(found), sum(found)) == (form, rows, records)


def objects(name: str) -> Iterator[dict[str, Any]]:
    for path in sorted((DATA / name).glob("*.gz")) if (DATA / name).is_dir() else [DATA / name]:
        with gzip.open(path) as file:
            yield from map(json.loads, file)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("container", ["jsonl", "json", "parquet", "arrow.zst"])
def test_renamed_and_with_its_columns_shuffled_it_is_the_same(tmp_path: Path, name: str, container: str) -> None:
    chance = random.Random(7)
    rows = [dict(chance.sample(list(row.items()), len(row))) for row in objects(name)]
    path = tmp_path / "renamed.txt"
    if container == "jsonl":
        path.write_text("".join(json.dumps({"number": i, **row}) + "\n" for i, row in enumerate(rows)))
    elif container == "json":
        path.write_text(json.dumps(rows))
    else:
        columns = chance.sample(list(rows[0]), len(rows[0]))
        table = pa.Table.from_pylist(rows).select(columns)
        if container == "parquet":
            pq.write_table(table, path, compression="zstd")
        else:
            with pa.CompressedOutputStream(str(path), "zstd") as out, pa.ipc.new_stream(out, table.schema) as writer:
                writer.write_table(table)
    expected, found = read(Source(path=name), DATA), read(Source(path="renamed.txt"), tmp_path)
    ids = [line.content.id for line in expected.lines if isinstance(line.content, Record)]
    assert found.form == expected.form
    assert [line.content.id for line in found.lines if isinstance(line.content, Record)] == ids


def test_ties_of_gsm8k_are_no_pair() -> None:
    records = [line.content for line in read(Source(path="gsm8k_graded.jsonl.gz"), DATA).lines]
    found = Counter(len(pairs(record)) for record in records if isinstance(record, Record))
    assert found[0] == 121 and sum(count * times for count, times in found.items()) == 4596


# What the rules about shape find. hh: 4 empty answers, 4 prompts with two assistant turns in a row. gsm8k: 121 prompts
# whose answers are all right or all wrong.
EXPECTED = [
    ("hh_harmless_base", "transcripts", 1835, {"unreadable": 4, "empty_completion": 4, "wrong_roles": 4}),
    ("gsm8k_graded", "graded", 1059, {"no_preference": 121}),
    ("alpaca_eval_graded", "graded", 678, {"identical_completions": 5}),
]


@pytest.mark.parametrize(("name", "form", "rows", "broken"), EXPECTED)
def test_what_is_wrong_in_a_real_preference_file(
    tmp_path: Path, name: str, form: str, rows: int, broken: dict[str, int]
) -> None:
    facts = write_snapshot([Source(path=f"{name}.jsonl.gz")], DATA, tmp_path / "snapshot")
    assert facts.sources[0].form == form and facts.rows == rows
    report = check({"preferences": tmp_path / "snapshot"}, ValidationSettings(), Holdout(share=0.1))
    part = report.parts["preferences"]
    assert report.refusals == () and part.rows == rows == part.kept + part.quarantined
    shape = ("unreadable", "empty_prompt", "empty_completion", "wrong_roles", "no_preference", "identical_completions")
    assert {rule: part.rules[rule] for rule in shape if part.rules[rule]} == broken
    # A tenth of the prompts, within four standard deviations.
    assert abs(part.kept_holdout - part.kept / 10) < 4 * (part.kept * 0.09) ** 0.5


def test_a_real_sft_file_is_kept_nearly_in_full(tmp_path: Path) -> None:
    for name in ("gsm8k_graded", "gsm8k_train"):
        write_snapshot([Source(path=f"{name}.jsonl.gz")], DATA, tmp_path / name)
    parts = {"preferences": tmp_path / "gsm8k_graded", "sft": tmp_path / "gsm8k_train"}
    part = check(parts, ValidationSettings(), Holdout(share=0.1)).parts["sft"]
    assert part.rows == 7473 == part.kept + part.quarantined and part.kept > 7000
