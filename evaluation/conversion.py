"""lm-eval's results as scores, per-item values and generations; no NumPy number leaves this file."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from evaluation.scores import ItemScore, Score, mean_score


def convert(
    benchmark: str, task: Any, results: Mapping[str, Any]
) -> tuple[list[Score], dict[str, list[ItemScore]], list[dict[str, Any]]]:
    """(scores, items by metric name, generations) of one lm-eval task.

    A metric is called as lm-eval's table calls it: ``metric``, or ``metric,filter`` where the task has several filters.
    Items exist for a metric whose score is the mean of them, and for perplexities (see ``linearised``); the others
    (F1, Matthews correlation) have a score alone, without a standard error.
    """
    samples: Sequence[Mapping[str, Any]] = results["samples"][benchmark]
    by_filter: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        by_filter.setdefault(sample["filter"], []).append(sample)
    values = results["results"][benchmark]
    scores: list[Score] = []
    items: dict[str, list[ItemScore]] = {}
    for filter_name, rows in by_filter.items():
        ids = _item_ids(rows)
        for metric in dict.fromkeys(name for row in rows for name in row["metrics"]):
            value = float(values[f"{metric},{filter_name}"])
            name = f"{metric},{filter_name}" if len(by_filter) > 1 else metric
            better = bool(task.higher_is_better().get(metric, True))
            aggregation = getattr(task.aggregation().get(metric), "__name__", "mean")
            parts = linearised(aggregation, [row[metric] for row in rows], value)
            if parts is None:
                scores.append(Score(benchmark, name, value, None, len(rows), better))
                continue
            table = [ItemScore(item, part) for item, part in zip(ids, parts, strict=True)]
            scores.append(mean_score(benchmark, name, table, better, value))
            items[scores[-1].name] = table
    return scores, items, _generations(benchmark, task, next(iter(by_filter.values())))


def linearised(aggregation: str, raw: Sequence[Any], value: float) -> list[float] | None:
    """One number per item whose mean is ``value``, or None where the metric has no such parts.

    mean:                 the items themselves.
    bits_per_byte:        v_i = -l_i / ln 2 · n / Σw          (l_i: nats of text i, w_i: its bytes)
    weighted_perplexity:  v_i = P · (1 - n·l_i / Σw - ln P)   with P = exp(-Σl / Σw)
    perplexity:           the same with w_i = 1.

    The last two are the delta method: P is smooth in Σl, so differences of v_i between two models measured on the same
    texts have the right mean exactly and the right variance to first order.
    """
    n = len(raw)
    if aggregation == "perplexity" and all(isinstance(x, Real) for x in raw):
        raw = [(x, 1) for x in raw]
    if aggregation in ("perplexity", "weighted_perplexity", "bits_per_byte"):
        weight = math.fsum(float(w) for _, w in raw)
        nats = [-float(loglikelihood) * n / weight for loglikelihood, _ in raw]
        if aggregation == "bits_per_byte":
            return [x / math.log(2) for x in nats]
        return [value * (1 + x - math.log(value)) for x in nats] if math.isfinite(value) and value > 0 else None
    if not all(isinstance(x, Real) or type(x).__name__ == "bool_" for x in raw):
        return None
    parts = [float(x) for x in raw]
    mean = math.fsum(parts) / n
    return parts if not math.isfinite(value) or math.isclose(mean, value, rel_tol=1e-9, abs_tol=1e-12) else None


def _item_ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """lm-eval's SHA-256 of each document; a document that stands twice gets ``-2``, ``-3`` in order."""
    seen: Counter[str] = Counter()
    ids = []
    for row in rows:
        seen[row["doc_hash"]] += 1
        again = seen[row["doc_hash"]]
        ids.append(row["doc_hash"] if again == 1 else f"{row['doc_hash']}-{again}")
    return ids


def _generations(benchmark: str, task: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if task.OUTPUT_TYPE != "generate_until":
        return []
    return [
        {"benchmark": benchmark, "item": item, "prompt": str(row["arguments"][0][0]), "text": str(row["resps"][0][0])}
        for item, row in zip(_item_ids(rows), rows, strict=True)
    ]
