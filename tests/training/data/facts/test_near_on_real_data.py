"""Near-duplicates on public data: none where there are none, and planted ones. Prints and stores no text."""

import random
from pathlib import Path

import numpy as np
import pytest

from tests.training.data.facts.made import near
from tests.training.data.facts.test_near import jaccard
from training.data.records import Completion, Message, Record
from training.data.settings import Source
from training.data.sources import read

DATA = Path(__file__).resolve().parents[4].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real data are not there")
SETS = {"hh_harmless_base": "preferences", "gsm8k_graded": "preferences", "gsm8k_train": "sft"}


def records(name: str) -> list[Record]:
    lines = read(Source(path=f"{name}.jsonl.gz"), DATA).lines
    return [line.content for line in lines if isinstance(line.content, Record)]


def edited(rng: random.Random, record: Record) -> Record:
    """A few words misspelt, doubled, dropped, in capitals, or a courtesy added."""
    texts = [*(m.content for m in record.prompt), *(c.text for c in record.completions)]
    for _ in range(rng.choice([1, 1, 2, 3])):
        which = rng.choices(range(len(texts)), [len(content) + 1 for content in texts])[0]
        words = texts[which].split() or ["x"]
        at = rng.randrange(len(words))
        words[at] = rng.choice([words[at] + "s", f"{words[at]} {words[at]}", "", words[at].upper() + "!"])
        texts[which] = " ".join([*words, *(["Many thanks for that."] if rng.random() < 0.2 else [])])
    turns = zip(record.prompt, texts, strict=False)
    answers = zip(record.completions, texts[len(record.prompt) :], strict=True)
    return Record(
        tuple(Message(message.role, content) for message, content in turns),
        tuple(Completion(content, c.score, c.rank, c.label, c.model) for c, content in answers),
    )


@pytest.mark.parametrize("name", SETS)
def test_planted_near_duplicates_are_found_among_real_rows(name: str, tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = records(name)[:3000]
    some = rng.sample(rows, 400)
    copies = [edited(rng, row) for row in some]
    found = np.array(near([*rows, *copies], tmp_path, part=SETS[name]))
    assert found[: len(rows)].sum() == 0
    true = np.array([jaccard(row, copy) for row, copy in zip(some, copies, strict=True)])
    wanted = (true >= 0.8) & np.array([row.id != copy.id for row, copy in zip(some, copies, strict=True)])
    recall = found[len(rows) :][wanted].mean()
    print(f"{name}: {wanted.sum()} planted, {recall:.1%} found")
    assert wanted.sum() > 150 and recall >= 0.97
