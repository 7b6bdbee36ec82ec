"""Held-out pairs as scores: does the model find the chosen completion more likely, and how likely at all."""

from collections.abc import Iterable, Mapping
from typing import Any

from evaluation.scores import ItemScore, Score, mean_score

BENCHMARK = "holdout"
METRICS = ("preference_accuracy", "chosen_logps", "margin")


def judge(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Score], dict[str, list[ItemScore]]]:
    """Scores from ``rows`` of {record, chosen, rejected, chosen_length, rejected_length} (nats and tokens).

    preference_accuracy: chosen above rejected in summed log-probability, a tie counts one half. chosen_logps: mean
    nats per token of the chosen completion. margin: nats between the two sums. A record with several pairs gives an
    item per pair.
    """
    items: dict[str, list[ItemScore]] = {f"{BENCHMARK}/{metric}": [] for metric in METRICS}
    seen: dict[str, int] = {}
    for row in rows:
        seen[row["record"]] = seen.get(row["record"], 0) + 1
        item = f"{row['record']}#{seen[row['record']]}"
        difference = row["chosen"] - row["rejected"]
        values = (
            1.0 if difference > 0 else 0.5 if difference == 0 else 0.0,
            row["chosen"] / row["chosen_length"],
            difference,
        )
        for metric, value in zip(METRICS, values, strict=True):
            items[f"{BENCHMARK}/{metric}"].append(ItemScore(item, value))
    return [mean_score(BENCHMARK, metric, items[f"{BENCHMARK}/{metric}"], True) for metric in METRICS], items
