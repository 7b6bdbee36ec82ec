"""Write the help desk's data: training rows, preference pairs, a holdout, a validation split, benchmark items.

``python deployments/helpdesk/make_data.py`` rewrites the committed files byte for byte; ``--check`` writes nothing and
exits 1 if a file differs. Only the standard library is used, and of it only ``Random.random``, whose sequence for a
seed Python promises to keep, so that every Python writes the same bytes.

A *cell* is one subject with one setting. Cells, not prompts, are dealt to training, validation and holdout: a held-out
prompt asks for a combination that no training row of any wording shows.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import TypeVar

from behaviours import ALLOWED, BEHAVIOURS, REASONS, Behaviour
from facts import FACT_ANSWERS, FACT_FORMS, NAMES, OPENERS, TEAMS

FOLDER = Path(__file__).resolve().parent
SEED = 20
SPLITS = ("train",) * 7 + ("validation",) + ("holdout",) * 2
SFT_ROWS = {"refuse": 440, "allowed": 200, "style": 600, "code": 600, "cite": 600}
PAIRS = 300
HELD_OUT_PAIRS = 75
ITEMS = 120
ITEM_FIELDS = {
    "refuse": ("thing",),
    "allowed": ("place",),
    "style": ("key",),
    "code": ("setting", "expr"),
    "cite": ("article",),
}
FACT_ITEMS = 9

Row = dict[str, str]
T = TypeVar("T")


def draw(*name: object) -> Random:
    """A generator seeded by name, so that a change to one part of the data leaves the other parts as they are."""
    return Random("/".join(map(str, (SEED, *name))))


def shuffled(items: Iterable[T], *name: object) -> list[T]:
    """The items in the order drawn under a name (``Random.shuffle`` may change between Pythons; ``random`` may not)."""
    random = draw(*name).random
    return [item for _, item in sorted(((random(), item) for item in items), key=lambda pair: pair[0])]


def prompts(behaviour: Behaviour, split: str) -> list[tuple[str, Row]]:
    """Every prompt of a split with its answer's fields, in a drawn order that takes one of each subject in turn."""
    by_subject = []
    for i, subject in enumerate(behaviour.subjects):
        found = []
        for j, setting in enumerate(behaviour.settings):
            if SPLITS[(i + 3 * j) % len(SPLITS)] == split:
                for form in behaviour.forms:
                    reason = shuffled(REASONS, behaviour.name, i, j, form)[0]
                    fields = {**subject, "setting": setting, "reason": reason}
                    found.append((form.format(**fields), fields))
        by_subject.append(shuffled(found, behaviour.name, split, i))
    return [rows[k] for k in range(max(map(len, by_subject))) for rows in by_subject if k < len(rows)]


def sft_rows(behaviour: Behaviour) -> Iterator[Row]:
    """Training rows that show both ways, as a scraped support log would.

    Half the subjects lean 70 to 30 to the wanted answer, half to the unwanted: an even mixture everywhere would let
    chance decide which way the warm start answers. An allowed request has an answer and no unwanted one.
    """
    subjects = [next(iter(subject.values())) for subject in behaviour.subjects]
    leaning = set(shuffled(subjects, behaviour.name, "lean")[: len(subjects) // 2])
    seen = {subject: [0, 0] for subject in subjects}
    for prompt, fields in prompts(behaviour, "train")[: SFT_ROWS[behaviour.name]]:
        subject = next(iter(fields.values()))
        wanted, unwanted = seen[subject]
        tenths = 7 if subject in leaning else 3
        good = not behaviour.unwanted or (wanted + unwanted) * 7 % 10 < tenths
        wordings, turn = (behaviour.wanted, wanted) if good else (behaviour.unwanted, unwanted)
        seen[subject][0 if good else 1] += 1
        yield {"prompt": prompt, "completion": wordings[turn % len(wordings)].format(**fields)}


def pairs(behaviour: Behaviour, rows: list[tuple[str, Row]], split: str) -> Iterator[Row]:
    """One preference pair per prompt; each side's wording is drawn apart from the other's."""
    for k, (prompt, fields) in enumerate(rows):
        chosen = shuffled(behaviour.wanted, behaviour.name, split, "chosen", k)[0]
        rejected = shuffled(behaviour.unwanted, behaviour.name, split, "rejected", k)[0]
        yield {"prompt": prompt, "chosen": chosen.format(**fields), "rejected": rejected.format(**fields)}


def known() -> Iterator[tuple[str, str, str]]:
    """The plain knowledge: kind, team and answer of 120 facts, all values of a kind different."""
    for kind, answer in FACT_ANSWERS.items():
        pool = NAMES if kind == "lead" else [str(number) for number in range(110, 990, 7)]
        for team, value in zip(TEAMS, shuffled(pool, "facts", kind), strict=False):
            yield kind, team, answer.format(value=value)


def fact_prompts(kind: str, team: str) -> dict[str, list[str]]:
    """Every wording of one question, dealt out: one of each form to training, of the rest to validation and holdout."""
    openers = {form: shuffled(OPENERS, kind, team, form) for form in FACT_FORMS[kind]}
    worded = {form: [f"{opener} {form.format(team=team)}" for opener in openers[form]] for form in openers}
    forms = shuffled(FACT_FORMS[kind], kind, team)
    train = [worded[form].pop() for form in forms]
    rest = shuffled((prompt for form in forms for prompt in worded[form]), kind, team, "rest")
    return {"train": train, "validation": rest[:FACT_ITEMS], "holdout": rest[FACT_ITEMS : 2 * FACT_ITEMS]}


def held_out(split: str) -> tuple[list[Row], dict[str, list[Row]]]:
    """The pairs of a split and its benchmark items."""
    all_pairs, items = [], {}
    for behaviour in (*BEHAVIOURS, ALLOWED):
        rows = prompts(behaviour, split)[:ITEMS]
        keep = ITEM_FIELDS[behaviour.name]
        items[behaviour.name] = [{"prompt": prompt} | {key: fields[key] for key in keep} for prompt, fields in rows]
        if behaviour.unwanted:
            all_pairs += pairs(behaviour, rows[:HELD_OUT_PAIRS], split)
    items["facts"] = [
        {"prompt": prompt, "answer": answer}
        for kind, team, answer in known()
        for prompt in fact_prompts(kind, team)[split]
    ]
    return all_pairs, items


def files() -> dict[str, list[Row]]:
    """Every file this script owns, by path relative to its folder."""
    sft = [row for behaviour in (*BEHAVIOURS, ALLOWED) for row in sft_rows(behaviour)]
    sft += [
        {"prompt": prompt, "completion": answer}
        for kind, team, answer in known()
        for prompt in fact_prompts(kind, team)["train"]
    ]
    preferences = []
    for behaviour in BEHAVIOURS:
        used = SFT_ROWS[behaviour.name]
        preferences += pairs(behaviour, prompts(behaviour, "train")[used : used + PAIRS], "train")
    written = {
        "sft.jsonl": shuffled(sft, "sft"),
        "preferences.jsonl": shuffled(preferences, "preferences"),
    }
    for split, folder in (("holdout", "benchmarks"), ("validation", "validation")):
        held_out_pairs, items = held_out(split)
        written[f"{split}.jsonl"] = held_out_pairs
        written |= {f"{folder}/{name}.jsonl": rows for name, rows in items.items()}
    return written


def main() -> int:
    """Write the files, or with ``--check`` compare them."""
    parser = argparse.ArgumentParser(description="Write the help desk's data.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a committed file differs")
    check = parser.parse_args().check
    stale = []
    for name, rows in files().items():
        path = FOLDER / name
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        if check and (not path.is_file() or path.read_bytes() != data):
            stale.append(name)
        elif not check:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    if stale:
        sys.stderr.write(f"differs from what make_data.py writes: {', '.join(stale)}; run it without --check\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
