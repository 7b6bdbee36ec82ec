"""Near-duplicates: planted by edits whose true Jaccard similarity is computed, and what must not be taken for one."""

import json
import random
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import training.data.near as subject
from tests.training.data.facts.made import VOCABULARY, batch, example, near, pair, scored, sliced, text
from training.data.facts.near import FEWEST, SHINGLE, Near, minima
from training.data.near import near_duplicates
from training.data.records import Completion, Message, Record

HELPDESK = Path(__file__).parents[4] / "deployments" / "helpdesk"


def shingles(record: Record) -> set[tuple[str, ...]]:
    """The shingles of a record of ASCII text, from the definition."""
    found = set()
    for content in (*(m.content for m in record.prompt), *(c.text for c in record.completions)):
        words = re.findall("[a-z0-9]+", content.lower())
        found |= {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))} if words else set()
    return found


def jaccard(one: Record, other: Record) -> float:
    left, right = shingles(one), shingles(other)
    return len(left & right) / len(left | right)


def plain(rng: random.Random, words: int = 60) -> Record:
    return pair(text(rng, words), text(rng, words), text(rng, words))


def typo(rng: random.Random, words: list[str]) -> list[str]:
    place = rng.randrange(len(words))
    letter = rng.randrange(len(words[place]))
    return [*words[:place], words[place][:letter] + "q" + words[place][letter:], *words[place + 1 :]]


def inserted(rng: random.Random, words: list[str]) -> list[str]:
    place = rng.randrange(len(words) + 1)
    return [*words[:place], *rng.choices(VOCABULARY, k=rng.randint(1, 9)), *words[place:]]


def reordered(rng: random.Random, words: list[str]) -> list[str]:
    low, middle, high = sorted(rng.choices(range(len(words) + 1), k=3))
    return [*words[:low], *words[middle:high], *words[low:middle], *words[high:]]


def shouted(rng: random.Random, words: list[str]) -> list[str]:
    return [word.upper() + "," for word in words]


def dropped(rng: random.Random, words: list[str]) -> list[str]:
    place = rng.randrange(len(words))
    return words[:place] + words[place + 1 :]


EDITS = (typo, inserted, reordered, shouted, dropped)


def edited(rng: random.Random, record: Record, edits: int) -> Record:
    texts = [record.prompt[0].content, *(c.text for c in record.completions)]
    for _ in range(edits):
        which = rng.randrange(len(texts))
        texts[which] = " ".join(rng.choice(EDITS)(rng, texts[which].split()))
    return pair(texts[0], texts[1], texts[2])


def test_planted_near_duplicates_are_found_and_other_rows_are_not(tmp_path: Path) -> None:
    rng = random.Random(4)
    rows = [plain(rng, rng.randint(25, 90)) for _ in range(1500)]
    copies = [edited(rng, row, rng.choice([1, 1, 2, 3, 4, 8])) for row in rows]
    true = np.array([jaccard(row, copy) for row, copy in zip(rows, copies, strict=True)])
    same = np.array([row.id == copy.id for row, copy in zip(rows, copies, strict=True)])
    found = np.array(near([*rows, *copies], tmp_path))
    assert not found[: len(rows)].any()
    above, below = (true >= 0.8) & ~same, true < 0.6
    assert above.sum() > 500 and below.sum() > 100
    assert found[len(rows) :][above].mean() >= 0.985
    assert found[len(rows) :][below].mean() <= 0.01


@pytest.mark.parametrize("edit", EDITS)
def test_each_edit_alone_leaves_a_near_duplicate(tmp_path: Path, edit) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(5)
    rows = [plain(rng, 50) for _ in range(200)]
    copies = []
    for row in rows:
        chosen = " ".join(edit(rng, row.completions[0].text.split()))
        copies.append(pair(row.prompt[0].content, chosen, row.completions[1].text))
    needed = [jaccard(row, copy) >= 0.8 and row.id != copy.id for row, copy in zip(rows, copies, strict=True)]
    found = near([*rows, *copies], tmp_path)[len(rows) :]
    assert sum(needed) >= 80
    assert sum(f for f, n in zip(found, needed, strict=True) if n) >= 0.98 * sum(needed)


def test_clusters_are_those_of_all_pairs_compared(tmp_path: Path) -> None:
    # An oracle in O(n^2): every two rows by the true Jaccard similarity, far from the border on either side.
    rng = random.Random(6)
    rows: list[Record] = []
    for _ in range(40):
        row = plain(rng, 60)
        rows += [row, *(edited(rng, row, 1) for _ in range(rng.choice([0, 0, 1, 3, 12])))]
    rng.shuffle(rows)
    first = list(range(len(rows)))
    for i, j in combinations(range(len(rows)), 2):
        if jaccard(rows[i], rows[j]) >= 0.7:
            low, high = sorted((first[i], first[j]))
            first = [low if cluster == high else cluster for cluster in first]
    assert near(rows, tmp_path) == [rows[cluster].id != row.id for row, cluster in zip(rows, first, strict=True)]


@pytest.mark.parametrize("size", [1, 7, 64])
def test_how_rows_are_split_into_segments_changes_nothing(tmp_path: Path, size: int) -> None:
    rng = random.Random(7)
    rows: list[Record | None] = [plain(rng, 40) for _ in range(60)]
    rows += [edited(rng, row, 1) for row in rows if row is not None]
    rows.insert(30, None)
    whole = near(rows, tmp_path)
    assert near(rows, tmp_path, size) == whole
    assert sum(whole) > 40 and not whole[30]


def test_the_first_row_stays_and_exact_copies_are_left_to_the_rule_of_duplicates(tmp_path: Path) -> None:
    rng = random.Random(8)
    first = plain(rng)
    close = pair(first.prompt[0].content + " indeed", *(c.text for c in first.completions))
    assert near([first, close, first, close, plain(rng)], tmp_path) == [False, True, False, True, False]
    assert near([close, first, first], tmp_path) == [False, True, True]
    assert near([first, first, first], tmp_path) == [False] * 3


def test_opposite_preferences_are_no_near_duplicates(tmp_path: Path) -> None:
    rng = random.Random(9)
    one, other, third = text(rng, 60), text(rng, 60), text(rng, 60)
    # Even where the prompt is most of the row.
    for words in (10, 400):
        prompt = text(rng, words)
        assert near([pair(prompt, one, other), pair(prompt, other + " indeed", one)], tmp_path) == [False, False]
        assert near([pair(prompt, one, other), pair(prompt, one, other + " indeed")], tmp_path) == [False, True]
    graded = [scored("q " + one, **{one: 3, other: 2, third: 1}), scored("q " + one, **{one: 1, other: 2, third: 3})]
    assert near(graded, tmp_path) == [False, False]
    labelled = [
        Record((Message("user", one),), (Completion(other, label=label),))
        for label in (True, False)  # of the same text
    ]
    assert near(labelled, tmp_path) == [False, False]


def test_the_order_in_which_completions_stand_does_not_count(tmp_path: Path) -> None:
    rng = random.Random(10)
    prompt, one, other = (text(rng, 40) for _ in range(3))
    rows = [scored(prompt, **{one: 1, other: 0}), scored(prompt, **{other: 0, one: 1})]
    assert near(rows, tmp_path) == [False, True]
    # Nor does the scale of the grades, nor whether they are scores or ranks: which is the better one does.
    rows = [scored(prompt, **{one: 0.9, other: 0.2}), scored(prompt, **{one: 70, other: 30}), pair(prompt, one, other)]
    assert near(rows, tmp_path) == [False, True, True]


def test_rows_that_share_a_long_prompt_and_answer_otherwise_stay(tmp_path: Path) -> None:
    rng = random.Random(12)
    prompt = text(rng, 600)
    assert near([pair(prompt, text(rng, 20), text(rng, 20)) for _ in range(40)], tmp_path) == [False] * 40


PREAMBLES = {
    "a system prompt": lambda long, question: [("system", long), ("user", question)],
    "worked examples in one message": lambda long, question: [("user", f"{long} {question}")],
    "worked examples as turns": lambda long, question: [
        *((("user", "assistant")[i % 2], part) for i, part in enumerate(re.findall(r"(?:\S+ ){40}", long))),
        ("user", question),
    ],
}


@pytest.mark.parametrize("name", PREAMBLES)
@pytest.mark.parametrize("answer", ["yes", "i am sorry but that is something which i can not help anybody with today"])
def test_a_preamble_that_all_rows_share_makes_no_near_duplicates(tmp_path: Path, name: str, answer: str) -> None:
    rng = random.Random(13)
    long = text(rng, 400)
    turns = PREAMBLES[name]
    rows = [pair(turns(long, text(rng, 20)), answer, "no it is not") for _ in range(12)]
    assert sum(near(rows, tmp_path)) == 0
    assert jaccard(rows[0], rows[1]) > 0.8  # though they share most of their words
    close = pair(
        [*((m.role, m.content) for m in rows[0].prompt[:-1]), ("user", rows[0].prompt[-1].content + " x")],
        answer,
        "no it is not",
    )
    assert near([*rows, close], tmp_path)[-1]


def test_questions_about_one_passage_with_short_answers_stay(tmp_path: Path) -> None:
    rng = random.Random(14)
    passage = text(rng, 300)
    rows = [example(f"{passage} {text(rng, 14)}", answer) for answer in ("yes", "yes", "no")]
    assert near(rows, tmp_path, part="sft") == [False] * 3


def test_rows_of_few_words_take_no_part(tmp_path: Path) -> None:
    rng = random.Random(15)
    for words, found in ((FEWEST - 3, False), (FEWEST + 20, True)):
        prompt = text(rng, 2)
        chosen = text(rng, words - 3)
        assert near([pair(prompt, chosen, "b"), pair(prompt, chosen.upper() + "!", "b")], tmp_path) == [False, found]
    assert near([pair("", "", ""), pair(" ", "", ""), pair("…", "", "")], tmp_path) == [False] * 3


def test_templated_rows_of_the_demo_stay(tmp_path: Path) -> None:
    for part, name in (("preferences", "preferences"), ("sft", "sft"), ("holdout", "holdout")):
        lines = [json.loads(line) for line in (HELPDESK / f"{name}.jsonl").read_text().splitlines()]
        rows = [
            example(line["prompt"], line["completion"])
            if part == "sft"
            else pair(line["prompt"], line["chosen"], line["rejected"])
            for line in lines
        ]
        assert sum(near(rows, tmp_path, part=part)) <= 0.005 * len(rows)


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
def test_bands_miss_one_of_a_hundred_at_the_threshold_at_most(threshold: float) -> None:
    bands, width = Near(threshold).bands
    assert (1 - threshold**width) ** bands <= 0.011
    assert bands <= 40 and 1 <= width <= 8
    maker = Near(threshold)
    assert len(maker.columns) == len(set(maker.columns)) == bands + 9
    rng = random.Random(16)
    row = plain(rng)
    made = maker(batch([row, None, edited(rng, row, 1)]))
    assert set(made) == set(maker.columns)
    assert all(values.dtype == np.uint64 and len(values) == 3 and values[1] == 0 for values in made.values())


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_other_thresholds_find_what_is_as_near(tmp_path: Path, threshold: float) -> None:
    rng = random.Random(17)
    rows = [plain(rng, 60) for _ in range(1000)]
    copies = [edited(rng, row, rng.randint(1, 40)) for row in rows]
    maker = Near(threshold)
    every = batch([*rows, *copies])
    made = maker(every)
    ids = np.array([int(id_[:16], 16) for id_ in every.ids], "uint64")
    found = near_duplicates(lambda name: [made[name]], ids, maker, tmp_path)[1000:]
    true = np.array([jaccard(row, copy) for row, copy in zip(rows, copies, strict=True)])
    same = np.array([row.id == copy.id for row, copy in zip(rows, copies, strict=True)])
    assert found[(true >= threshold) & ~same].mean() >= 0.975
    assert found[true < threshold - 0.2].mean() <= 0.02


def test_a_band_that_a_hundred_thousand_rows_share_is_not_quadratic(tmp_path: Path) -> None:
    maker = Near(0.8)
    rows = 100_000
    one = {name: np.full(rows, number + 3, "uint64") for number, name in enumerate(maker.columns)}
    ids = np.arange(rows, dtype="uint64")
    compared = []
    same = subject.Sketches.same

    def counted(self, left, right, least):  # type: ignore[no-untyped-def]
        compared.append(len(left))
        return same(self, left, right, least)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject.Sketches, "same", counted)
        found = near_duplicates(lambda name: [one[name]], ids, maker, tmp_path)
        assert found.tolist() == [0.0] + [1.0] * (rows - 1)
        assert sum(compared) <= 5 * rows
        # The same where one band is all that they share.
        compared.clear()
        rng = np.random.default_rng(1)
        other = {n: v if n == "band_00" else rng.integers(3, 2**63, rows, "uint64") for n, v in one.items()}
        assert near_duplicates(lambda name: [other[name]], ids, maker, tmp_path).sum() == 0
        assert sum(compared) <= 5 * rows


def test_columns_of_other_rows_are_refused(tmp_path: Path) -> None:
    maker = Near(0.8)
    ids = np.zeros(3, "uint64")
    for lengths in ((2,), (4,), (2, 2)):
        with pytest.raises(ValueError, match=f"have {sum(lengths)} and {sum(lengths)} rows, the part has 3"):
            near_duplicates(lambda name, n=lengths: [np.zeros(k, "uint64") for k in n], ids, maker, tmp_path)
    with pytest.raises(ValueError, match="segments of different lengths"):
        near_duplicates(lambda name: [np.zeros(4 if name == "band_07" else 3, "uint64")], ids, maker, tmp_path)
    assert not list(tmp_path.iterdir())
    assert len(near_duplicates(lambda name: [], np.zeros(0, "uint64"), maker, tmp_path)) == 0


def test_the_key_names_what_sketches_depend_on() -> None:
    assert Near(0.8).key != Near(0.6).key
    assert "rensa 0." in Near(0.8).key


def test_minima_never_change() -> None:
    # Stored sketches of different days are compared by them.
    made = minima(np.arange(1, 8, dtype="uint64"), np.array([0, 3, 7]), 4)
    assert made.tolist() == PINNED_MINIMA


PINNED_MINIMA = [[88775189, 1047115616, 2344362984, 1878874300], [685049086, 685343823, 255376178, 3571295432]]


def test_a_batch_may_be_cut_anywhere() -> None:
    rng = random.Random(18)
    every = batch([plain(rng, 30) if i % 5 else None for i in range(40)])
    maker = Near(0.8)
    whole = maker(every)
    parts = [maker(part) for part in sliced(every, 9)]
    for name in maker.columns:
        assert np.array_equal(whole[name], np.concatenate([part[name] for part in parts]))
