"""The gate: may the challenger become champion? Pure: results and settings in, a decision with its reasons out.

Every rule must pass (an intersection-union test, Berger 1982: no correction for several rules is needed, each is held
at the same alpha). What cannot be judged (a missing metric, NaN, other items) does not pass.
"""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from evaluation.paired import Test, compare
from evaluation.scores import Results, finite
from evaluation.settings import Collapse, Floor, GateSettings, Guard, Improve, Refused

CHOSEN_LOGPS = "holdout/chosen_logps"
COLLAPSE_METRICS = ("samples/empty", "samples/repetitive", "samples/unfinished", "samples/identical")


@dataclass(frozen=True)
class Row:
    """One rule's outcome. Values, ``difference`` (challenger - champion) and ``bound`` are in the metric's own unit.

    ``rule``: improve, guard, floor or collapse. ``bound``: one-sided confidence bound of the difference at the gate's
    alpha, on the side that matters. ``threshold``: the margin, floor or limit. None: not applicable or not a number.
    """

    rule: str
    metric: str
    passed: bool
    reason: str
    threshold: float
    challenger: float | None = None
    champion: float | None = None
    difference: float | None = None
    bound: float | None = None
    p_value: float | None = None
    n: int | None = None
    items_needed: int | None = None
    method: str | None = None


@dataclass(frozen=True)
class Decision:
    """Whether the challenger is accepted, rule by rule. Law: ``Decision.from_json(d.as_json()) == d``."""

    accepted: bool
    rows: tuple[Row, ...]
    reasons: tuple[str, ...]
    alpha: float

    def as_json(self) -> dict[str, Any]:
        return {
            "accepted": self.accepted,
            "alpha": self.alpha,
            "reasons": list(self.reasons),
            "rows": [asdict(row) for row in self.rows],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Decision":
        rows = tuple(Row(**row) for row in value["rows"])
        return cls(value["accepted"], rows, tuple(value["reasons"]), value["alpha"])


def decide(
    settings: GateSettings, challenger: Results, champion: Results | None, warm_start: Results | None
) -> Decision:
    """Apply every rule of ``settings``. Without a champion floors and the collapse guard alone decide.

    An empty gate accepts nothing: what no rule has judged, nobody has accepted.
    """
    rows: list[Row] = []
    reasons: list[str] = []
    comparisons: tuple[Improve | Guard, ...] = (*settings.improve, *settings.guards)
    if champion is not None:
        rows += [_comparison(rule, challenger, champion, settings.alpha) for rule in comparisons]
    elif comparisons:
        reasons.append(f"there is no champion yet: {_count(len(comparisons), 'comparison')} did not apply")
    rows += [_floor(rule, challenger) for rule in settings.floors]
    if settings.collapse is None:
        reasons.append(f"the collapse guard is off: {settings.collapse_off_reason}")
    else:
        rows += _collapse(settings.collapse, challenger, warm_start)
        if warm_start is None:
            reasons.append(f"there is no warm start to compare {CHOSEN_LOGPS} with")
    failed = [row for row in rows if not row.passed]
    if not rows:
        reasons.insert(0, "refused: no rule of the gate applied, so nothing was judged")
    elif failed:
        reasons = [row.reason for row in failed] + reasons
    else:
        reasons.insert(0, f"accepted: all {_count(len(rows), 'rule')} passed")
    return Decision(bool(rows) and not failed, tuple(rows), tuple(reasons), settings.alpha)


def check_rules(settings: GateSettings, known: Collection[str], open_benchmarks: Collection[str] = ()) -> None:
    """Before any training: every metric a rule names must be among ``known`` (``benchmark/metric``).

    Benchmarks in ``open_benchmarks`` name metrics by code, so theirs cannot be known ahead.
    Raises Refused with all unknown metrics at once.
    """
    problems = []
    named = {
        "improve": [rule.metric for rule in settings.improve],
        "guards": [rule.metric for rule in settings.guards],
        "floors": [rule.metric for rule in settings.floors],
    }
    for section, metrics in named.items():
        for i, metric in enumerate(metrics):
            if metric not in known and metric.partition("/")[0] not in open_benchmarks:
                problems.append(f"gate.{section}[{i}].metric: {_unknown(metric, known)}")
    if problems:
        raise Refused("\n".join(problems))


def _unknown(metric: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(metric, names, n=2, cutoff=0.5)
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"{metric!r} is not measured.{guess} Measured: {', '.join(names) or 'nothing'}"


def _comparison(rule: Improve | Guard, challenger: Results, champion: Results, alpha: float) -> Row:
    """improve: H0 difference <= margin; guard: H0 difference <= -margin. A metric where less is better is mirrored."""
    kind = "improve" if isinstance(rule, Improve) else "guard"
    metric = rule.metric

    def row(passed: bool, reason: str, **facts: Any) -> Row:
        return Row(kind, metric, passed, f"{kind} {metric}: {reason}", rule.margin, **(values | facts))

    values: dict[str, Any] = {}
    for who, results in (("challenger", challenger), ("champion", champion)):
        if metric not in results.scores:
            return row(False, f"not measured on the {who}; {_unknown(metric, results.scores)}")
        values[who] = finite(results.scores[metric].value)
    if values["challenger"] is None or values["champion"] is None:
        return row(False, "a score is not a finite number")
    values["difference"] = values["challenger"] - values["champion"]
    mine, theirs = challenger.items.get(metric, {}), champion.items.get(metric, {})
    if not mine or not theirs:
        return row(False, "no per-item values, so the two cannot be compared item by item")
    if mine.keys() != theirs.keys():
        only = f"{len(mine.keys() - theirs.keys())} only on the challenger, {len(theirs.keys() - mine.keys())} only on"
        return row(False, f"the items differ ({only} the champion); evaluate both on the same benchmark")
    values["n"] = len(mine)
    ids = sorted(mine)
    if not all(math.isfinite(table[item]) for item in ids for table in (mine, theirs)):
        return row(False, "an item's value is not a finite number")
    if len(ids) < 2:
        return row(False, "one item is too few; a comparison needs at least two")
    sign = 1 if challenger.scores[metric].higher_is_better else -1
    limit = rule.margin if kind == "improve" else -rule.margin
    pair = [mine[i] for i in ids], [theirs[i] for i in ids]
    # Where less is better the two change places, so that 0/1 items stay 0/1 items.
    better, worse = pair if sign > 0 else pair[::-1]
    test = compare(better, worse, limit, alpha)
    agree = all(mine[i] == theirs[i] for i in ids)
    passed = test.p_value <= alpha or (kind == "guard" and agree)
    values |= {"bound": finite(sign * test.lower), "p_value": test.p_value, "method": test.method}
    if not passed or agree:
        values["items_needed"] = test.items_needed
    return row(passed, _sentence(kind, rule.margin, test, passed, agree, alpha))


def _sentence(kind: str, margin: float, test: Test, passed: bool, agree: bool, alpha: float) -> str:
    change = f"{'better' if test.difference >= 0 else 'worse'} by {abs(test.difference):.4g} on {test.n} items"
    evidence = f"({test.method}, p = {test.p_value:.3g}, alpha = {alpha:g})"
    if agree:
        doubt = "" if kind == "improve" or test.p_value <= alpha else "; so few items could hide a fall by the margin"
        return f"the two agree on all {test.n} items{doubt} {evidence}"
    claim = "an improvement beyond" if kind == "improve" else "no fall by"
    text = f"{change}; {claim} {margin:g} is {'shown' if passed else 'not shown'} {evidence}"
    if passed:
        return text
    if test.items_needed is None:
        return f"{text}; more items are not expected to show it"
    return f"{text}; about {test.items_needed} items would show it, if the difference seen is the true one"


def _floor(rule: Floor, challenger: Results) -> Row:
    """The score must reach ``minimum``: be at least that, or at most where less is better."""
    score = challenger.scores.get(rule.metric)
    if score is None:
        reason = f"floor {rule.metric}: {_unknown(rule.metric, challenger.scores)}"
        return Row("floor", rule.metric, False, reason, rule.minimum)
    value = finite(score.value)
    side = "at least" if score.higher_is_better else "at most"
    passed = value is not None and (value >= rule.minimum if score.higher_is_better else value <= rule.minimum)
    found = "not a finite number" if value is None else f"{value:.4g}"
    reason = f"floor {rule.metric}: {found}, {side} {rule.minimum:g} is asked for"
    return Row("floor", rule.metric, passed, reason, rule.minimum, challenger=value, n=score.n)


def _collapse(limits: Collapse, challenger: Results, warm_start: Results | None) -> list[Row]:
    rows = []
    allowed = (limits.max_empty, limits.max_repetitive, limits.max_unfinished, limits.max_identical)
    for metric, limit in zip(COLLAPSE_METRICS, allowed, strict=True):
        score = challenger.scores.get(metric)
        value = None if score is None else finite(score.value)
        if score is None or value is None:
            reason = f"collapse {metric}: " + ("not measured" if score is None else "not a finite number")
            rows.append(Row("collapse", metric, False, reason, limit))
            continue
        what = metric.partition("/")[2]
        reason = f"collapse {metric}: {value:.1%} of {score.n} generations are {what}, at most {limit:.1%} is allowed"
        rows.append(Row("collapse", metric, value <= limit, reason, limit, challenger=value, n=score.n))
    if warm_start is not None:
        rows.append(_chosen_fall(limits.max_chosen_fall, challenger, warm_start))
    return rows


def _chosen_fall(limit: float, challenger: Results, warm_start: Results) -> Row:
    """Mean-token log-probability of held-out chosen completions, in nats; ``champion`` holds the warm start's."""
    values = [
        finite(r.scores[CHOSEN_LOGPS].value) if CHOSEN_LOGPS in r.scores else None for r in (challenger, warm_start)
    ]
    mine, before = values
    if mine is None or before is None:
        who = "challenger" if mine is None else "warm start"
        reason = f"collapse {CHOSEN_LOGPS}: not measured, or no finite number, on the {who}"
        return Row("collapse", CHOSEN_LOGPS, False, reason, limit, challenger=mine, champion=before)
    fall = before - mine
    reason = (
        f"collapse {CHOSEN_LOGPS}: chosen completions are {abs(fall):.3g} nats per token "
        f"{'less' if fall > 0 else 'more'} likely than at the warm start, a fall of {limit:g} is allowed"
    )
    n = challenger.scores[CHOSEN_LOGPS].n
    return Row("collapse", CHOSEN_LOGPS, fall <= limit, reason, limit, mine, before, -fall, n=n)


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"
