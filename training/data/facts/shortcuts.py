"""What a policy could learn instead of the preference: length, who wrote it, the first word. Facts of each row.

What is compared is the row's best completion with its worst. A row of one labelled completion has a chosen one or a rejected
one, as its label says.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from training.data.facts.base import Batch
from training.data.facts.words import words_of
from training.data.records import Completion, merit

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Shortcuts:
    """Columns. NaN or the hash 0 where there is none.

    ``chosen_longer`` (1 where the chosen text has more characters, 0 where fewer, NaN where as many);
    ``chosen_model``, ``rejected_model``, ``chosen_first``, ``rejected_first`` (hashes of the model and of the first word);
    ``chosen_grade``, ``rejected_grade`` (score, negated rank, or label as 1 and 0).
    """

    name: str = "shortcuts"
    columns: tuple[str, ...] = (
        "chosen_longer",
        "chosen_model",
        "rejected_model",
        "chosen_first",
        "rejected_first",
        "chosen_grade",
        "rejected_grade",
    )
    key: str = ""

    def __call__(self, batch: Batch) -> "dict[str, np.ndarray[Any, Any]]":
        import numpy as np

        count = len(batch)
        found = {name: np.zeros(count, "uint64") for name in self.columns}
        for name in ("chosen_longer", "chosen_grade", "rejected_grade"):
            found[name] = np.full(count, np.nan)
        sides: dict[str, tuple[list[int], list[int]]] = {"chosen": ([], []), "rejected": ([], [])}
        models: dict[str, list[int]] = {"chosen": [], "rejected": []}
        grades: dict[str, list[float]] = {"chosen": [], "rejected": []}
        text = 0
        for row, record in enumerate(batch.records):
            if record is None:
                continue
            text += len(record.prompt)
            completions = record.completions
            ends = _ends(completions)
            for side, place in ends.items():
                sides[side][0].append(row)
                sides[side][1].append(text + place[0])
                models[side].append(_model(completions[place[0]].model))
                grades[side].append(place[1])
            if len(ends) == 2:
                longer = len(completions[ends["chosen"][0]].text) - len(completions[ends["rejected"][0]].text)
                found["chosen_longer"][row] = float(longer > 0) if longer else np.nan
            text += len(completions)
        content = words_of(batch)
        for side, (rows, texts) in sides.items():
            at = np.array(texts, "int64")
            some = content.counts[at] > 0
            where = np.array(rows, "int64")
            found[f"{side}_first"][where[some]] = content.hashes[content.offsets[at[some]]]
            found[f"{side}_model"][where] = np.array(models[side], "uint64")
            found[f"{side}_grade"][where] = grades[side]
        return found


def _ends(completions: Sequence[Completion]) -> dict[str, tuple[int, float]]:
    """'chosen' and 'rejected': the place and the grade of the best and of the worst completion, of several the first.

    Grades of the first graded completion's kind count. Ties have neither; one labelled completion is one of the two.
    """
    graded = [
        (place, grade) for place, completion in enumerate(completions) if (grade := merit(completion)) is not None
    ]
    if not graded:
        return {}
    kind = graded[0][1][0]
    same = [(place, grade[1]) for place, grade in graded if grade[0] == kind]
    best, worst = max(same, key=lambda item: item[1]), min(same, key=lambda item: item[1])
    if best[1] > worst[1]:
        return {"chosen": best, "rejected": worst}
    if len(completions) == 1 and kind == "label":
        return {"chosen" if best[1] else "rejected": best}
    return {}


@lru_cache(maxsize=4096)
def _model(name: str | None) -> int:
    """A hash of a model's name that is never 0; 0 for none."""
    if name is None:
        return 0
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") or 1
