"""A preference objective with known reference totals, and the names of all losses and layouts, for several tests."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, get_args

from tests.training import naive
from training.data.batches import plan
from training.data.encode import Encoded
from training.losses import Loss
from training.preference import Preference
from training.scorer import Scorer
from training.settings import PreferenceSettings, Profile

LN_2 = math.log(2)

ROWS = naive.rows()
REPLAY = [
    dataclasses.replace(row, grades=(), kind="")
    for row in naive.rows([(4, [7], []), (9, [3], []), (2, [12], [])], seed=5)
]
LOSSES = sorted(kind.model_fields["name"].default for kind in get_args(get_args(Loss)[0]))
LAYOUTS = ("shared", "packed", "padded")


def objective_of(
    settings: PreferenceSettings,
    scorer: Scorer,
    totals: dict[bytes, float],
    rows: Sequence[Encoded] = ROWS,
    **other: Any,
) -> Preference:
    order = plan(1, len(rows), settings.batch, steps=settings.steps, epochs=None)
    chosen = Profile(threads=1, layout=scorer.path.name)
    objective = Preference(settings, rows, other.pop("replay", REPLAY), order, scorer, chosen, **other)
    objective.totals = totals
    return objective
