"""Measures: numbers about the whole set, held against their bounds."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.data.drift import added, counted, drift, grades, histograms
from training.data.facts.contamination import benchmark_shares
from training.data.facts.language import LANGUAGES
from training.data.factstore import SegmentFacts
from training.data.profile import Profile, contamination, segment_columns
from training.data.rules import measure_action, measures
from training.data.settings import ValidationSettings
from training.data.shortcuts import first_token, longer_chosen, one_model_chosen

if TYPE_CHECKING:
    import numpy as np


_FAR = 1e6  # infinitely far, as a number that JSON has
_ENOUGH = 30  # rows: a share of fewer is no evidence of a shortcut


@dataclass(frozen=True)
class Measured:
    """The measure ``name`` of a part or a benchmark (``of``), and whether it is ``within`` its bounds."""

    name: str
    of: str
    value: float
    minimum: float | None
    maximum: float | None
    allowed: str
    action: str
    within: bool
    sentence: str


@dataclass(frozen=True)
class Measures:
    """All that was measured. ``benchmarks``: items and found ones of each; None where no benchmark texts were given."""

    items: tuple[Measured, ...]
    benchmarks: Mapping[str, Any] | None
    histograms: Mapping[str, Any]
    both_labels_held: bool


def measure(found: Profile, settings: ValidationSettings) -> Measures:
    """Measure the rows that training would see; contamination and drift look at all rows, put aside or not."""
    benchmarks, now = benchmark_table(found, settings), histograms_of(found)
    values: dict[str, dict[str, float]] = {
        "label_balance": dict(_label_balance(found)),
        **_shortcuts(found),
        "contamination": {name: told["share"] for name, told in (benchmarks or {}).items()},
        **_drifts(found, now),
    }
    items = []
    for asked in measures(settings):
        for of, value in values.get(asked.name, {}).items():
            low, high = asked.bounds.minimum, asked.bounds.maximum
            within = not ((low is not None and value < low) or (high is not None and value > high))
            action = measure_action(settings, asked.name)
            items.append(
                Measured(asked.name, of, float(value), low, high, str(asked.bounds), action, within, asked.sentence)
            )
    return Measures(tuple(items), benchmarks, now, _both_labels_held(found))


def benchmark_table(found: Profile, settings: ValidationSettings) -> dict[str, Any] | None:
    """Of each benchmark how many items stand in the rows that are not held out; None where no texts were given."""
    if found.context.benchmarks is None:
        return None

    def hits() -> "Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]":
        for segment, here in zip(found.segments, found.slices, strict=True):
            table = segment.table("items")
            learnt = ~found.held[here][table["row"].astype("int64")]
            yield table["item"][learnt], table["share"][learnt]

    texts = contamination(found.context.benchmarks)
    shares = benchmark_shares(texts.texts_file, texts.digest, hits(), settings.contaminated_from)
    return {
        name: {
            "items": told.items,
            "exact": told.exact,
            "found": told.overlapping,
            "share": told.share,
            "too_short": told.too_short,
        }
        for name, told in shares.items()
    }


def rated_alone(found: Profile, part: str) -> "np.ndarray[Any, Any]":
    """Labelled completions of a part's records that hold no pair: these are learnt from one by one."""
    import numpy as np

    if part == "sft":
        return np.zeros(found.parts[part].stop - found.parts[part].start)
    pairs, rated = (np.nan_to_num(found.part_column(part, name)) for name in ("pairs", "rated"))
    alone: np.ndarray[Any, Any] = np.where(pairs > 0, 0.0, rated)
    return alone


def _label_balance(found: Profile) -> Iterator[tuple[str, float]]:
    """The share of the rarer label among the labelled completions that are learnt from."""
    import numpy as np

    for part, here in found.parts.items():
        if part == "sft":
            continue
        learnt = ~found.quarantined[here] & (found.train[here] | (part == "holdout"))
        rated, desirable = (
            np.nan_to_num(found.part_column(part, name))[learnt].sum() for name in ("rated", "desirable")
        )
        if rated:
            yield part, float(min(desirable, rated - desirable) / rated)


def _both_labels_held(found: Profile) -> bool:
    import numpy as np

    rated = desirable = 0.0
    for part, here in found.parts.items():
        if part != "sft":
            held = ~found.quarantined[here] & found.held[here]
            rated += float(np.nan_to_num(found.part_column(part, "rated"))[held].sum())
            desirable += float(np.nan_to_num(found.part_column(part, "desirable"))[held].sum())
    return 0 < desirable < rated


def _shortcuts(found: Profile) -> dict[str, dict[str, float]]:
    """How far the preferences that are learnt can be told without understanding them."""
    part = "preferences"
    here = found.parts[part]
    learnt = ~found.quarantined[here] & found.train[here]

    def column(name: str) -> "np.ndarray[Any, Any]":
        values: np.ndarray[Any, Any] = found.part_column(part, name)[learnt]
        return values

    values = {
        "longer_chosen": (longer_chosen(column("chosen_longer")), _known(column("chosen_longer"))),
        "one_model_chosen": (
            one_model_chosen(column("chosen_model"), column("rejected_model")),
            int(((column("chosen_model") != 0) & (column("rejected_model") != 0)).sum()),
        ),
        "first_token": (
            first_token(column("chosen_first"), column("rejected_first"), column("id_lo")),
            int(((column("chosen_first") != 0) | (column("rejected_first") != 0)).sum()),
        ),
    }
    return {name: {part: value} for name, (value, rows) in values.items() if rows >= _ENOUGH and value == value}


def _known(values: "np.ndarray[Any, Any]") -> int:
    return int((values == values).sum())


def histograms_of(found: Profile) -> dict[str, Any]:
    """Per part what the next snapshot is compared with: counts of its records, put aside or not."""
    import numpy as np

    parts: dict[str, Any] = {}
    for segment, here in zip(found.segments, found.slices, strict=True):
        record = found.train[here] | found.held[here]
        graded = segment.has("chosen_grade")
        languages = segment.column("language")[record]
        made = histograms(
            int(record.sum()),
            segment.column("characters")[record],
            grades(segment.column("chosen_grade")[record], segment.column("rejected_grade")[record])
            if graded
            else None,
            {_kind_of_source(segment): int(record.sum())},
            counted(LANGUAGES[int(place)] for place in languages[~np.isnan(languages)]),
        )
        parts[segment.part] = added(parts[segment.part], made) if segment.part in parts else made
    return parts


def _kind_of_source(segment: SegmentFacts) -> str:
    """The file of a segment (it has but one), without its digits, so that the file of each night is of the same kind."""
    source = segment_columns(segment.segment, ("source",)).column("source")[0].as_py()
    return re.sub(r"\d+", "#", source)


def _drifts(found: Profile, now: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """How far each part has moved from the last snapshot; nothing where there is no last one, or it hadn't the part."""
    before = found.context.last or {}
    values: dict[str, dict[str, float]] = {}
    for part in now:
        if part in before:
            for name, value in drift(now[part], before[part]).items():
                values.setdefault(f"drift_{name}", {})[part] = min(value, _FAR)
    return values
