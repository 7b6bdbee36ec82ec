"""Held-out preferences as scores: does the model find the better completion more likely, and how likely at all."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from evaluation.scores import ItemScore, Score, mean_score

BENCHMARK = "holdout"
METRICS = ("preference_accuracy", "chosen_logps", "margin", "desirable_auc")


def judge(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Score], dict[str, list[ItemScore]]]:
    """Scores from rows in nats and tokens: pairs {record, chosen, rejected, chosen_length, rejected_length} and single
    rated completions {record, nats, length, desirable}.

    preference_accuracy: chosen above rejected in summed log-probability, a tie counts one half. margin: nats between the two
    sums. chosen_logps: mean nats per token of the chosen and the desirable completions. desirable_auc: the share of undesirable
    completions below a desirable one in nats per token, a tie counts one half; its mean is the area under the ROC curve
    (Hanley and McNeil 1982), an item is a desirable completion (its placement value). A record with several pairs gives an item
    per pair. A metric that has no item is left out.
    """
    values: dict[str, list[ItemScore]] = {metric: [] for metric in METRICS}
    seen: Counter[str] = Counter()
    rated: list[tuple[str, float, bool]] = []
    for row in rows:
        seen[row["record"]] += 1
        item = f"{row['record']}#{seen[row['record']]}"
        if "desirable" in row:
            rated.append((item, row["nats"] / row["length"], row["desirable"]))
            continue
        difference = row["chosen"] - row["rejected"]
        above = 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0
        values["preference_accuracy"].append(ItemScore(item, above))
        values["chosen_logps"].append(ItemScore(item, row["chosen"] / row["chosen_length"]))
        values["margin"].append(ItemScore(item, difference))
    undesirable = sorted(nats for _, nats, desirable in rated if not desirable)
    for item, nats, desirable in rated:
        if desirable:
            values["chosen_logps"].append(ItemScore(item, nats))
            if undesirable:
                below = bisect_left(undesirable, nats) + bisect_right(undesirable, nats)
                values["desirable_auc"].append(ItemScore(item, below / (2 * len(undesirable))))
    items = {f"{BENCHMARK}/{metric}": found for metric, found in values.items() if found}
    return [mean_score(BENCHMARK, metric, found, True) for metric, found in values.items() if found], items
