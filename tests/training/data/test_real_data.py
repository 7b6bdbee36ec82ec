"""Public data beside the checkout, where it is: every row accounted for, forms recognised without being named."""

from pathlib import Path

import pytest

from training.data.expectations import check
from training.data.snapshot import write_snapshot
from training.settings import Holdout, Source, ValidationSettings

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is absent")

# file: form, rows, rows kept, pairs, rows per broken rule. Ties of gsm8k: 121 prompts whose answers are all right or
# all wrong. hh: 4 empty answers, 4 prompts with two assistant turns in a row, 4 that share too little.
EXPECTED = [
    ("hh_harmless_base", "transcripts", 1835, 1823, 1823, {"unreadable": 4, "empty_completion": 4, "wrong_roles": 4}),
    ("gsm8k_graded", "graded", 1059, 938, 4596, {"no_preference": 121}),
    ("alpaca_eval_graded", "graded", 678, 670, 9607, {"identical_completions": 5, "bad_characters": 3}),
]


@pytest.mark.parametrize(("name", "form", "rows", "kept", "pairs", "broken"), EXPECTED)
def test_a_real_preference_file_is_read_in_full(
    tmp_path: Path, name: str, form: str, rows: int, kept: int, pairs: int, broken: dict[str, int]
) -> None:
    facts = write_snapshot([Source(path=f"{name}.jsonl.gz")], DATA, tmp_path / "snapshot")
    assert facts.sources[0].form == form and facts.rows == rows
    report = check({"preferences": tmp_path / "snapshot"}, ValidationSettings(), Holdout(share=0.1))
    part = report.parts["preferences"]
    assert report.refusals == () and part.rows == rows and part.kept == kept
    assert part.pairs_train + part.pairs_holdout == pairs
    assert {rule: count for rule, count in part.rules.items() if count} == broken
    # A tenth of the prompts, within four standard deviations.
    assert abs(part.kept_holdout - kept / 10) < 4 * (kept * 0.09) ** 0.5


def test_a_real_sft_file_is_read_in_full(tmp_path: Path) -> None:
    for name in ("gsm8k_graded", "gsm8k_train"):
        write_snapshot([Source(path=f"{name}.jsonl.gz")], DATA, tmp_path / name)
    parts = {"preferences": tmp_path / "gsm8k_graded", "sft": tmp_path / "gsm8k_train"}
    part = check(parts, ValidationSettings(), Holdout(share=0.1)).parts["sft"]
    assert (part.rows, part.kept) == (7473, 7473)
