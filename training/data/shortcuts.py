"""Whether a preference can be told without understanding it: numbers about a whole part, from ``facts.shortcuts``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_DOUBT = 2.0  # of rows that say nothing, added to each word's count: a word of one row tells little


def longer_chosen(longer: "np.ndarray[Any, Any]") -> float:
    """The share of rows whose chosen completion is the longer one; NaN where no two lengths differ."""
    known = longer[~_nan(longer)]
    return float(known.mean()) if len(known) else float("nan")


def one_model_chosen(chosen: "np.ndarray[Any, Any]", rejected: "np.ndarray[Any, Any]") -> float:
    """Of rows whose chosen and rejected completion have a named model, the largest share in which one and the same model
    wrote the chosen one and not the rejected one; NaN where no row names both."""
    import numpy as np

    both = (chosen != 0) & (rejected != 0)
    if not both.any():
        return float("nan")
    apart = chosen[both][chosen[both] != rejected[both]]
    _, counts = np.unique(apart, return_counts=True)
    return float(counts.max(initial=0) / both.sum())


def first_token(chosen: "np.ndarray[Any, Any]", rejected: "np.ndarray[Any, Any]", ids: "np.ndarray[Any, Any]") -> float:
    """How often the first words alone tell which completion was chosen (0.5 is a coin, 1 gives the label away).

    Each word's odds of being chosen are counted in one half of the rows (by the lowest bit of ``ids``, hashes of 64 bits) and
    used to judge the other half, so that words which stand there once are no evidence; rows that the odds do not tell
    apart count one half. Rows of one labelled completion are judged alone, each label weighing as much as the other.
    NaN where there are no rows to judge.
    """
    import numpy as np

    some = (chosen != 0) | (rejected != 0)
    if not some.any():
        return float("nan")
    words, place = np.unique(np.concatenate([chosen[some], rejected[some]]), return_inverse=True)
    left, right = place[: some.sum()], place[some.sum() :]
    both, half = (chosen[some] != 0) & (rejected[some] != 0), (ids[some] & np.uint64(1)).astype(bool)
    right_answers = np.full(len(left), np.nan)
    for judged in (half, ~half):
        odds = _odds(words, left[~judged], right[~judged])
        right_answers[judged] = 0.5 + 0.5 * np.sign(odds[left[judged]] - odds[right[judged]])
    paired = right_answers[both]
    sides = [right_answers[~both & (present[some] != 0)] for present in (chosen, rejected)]
    alone = [side.mean() for side in sides if len(side)]
    count = sum(map(len, sides))
    unpaired = float(np.mean(alone)) if len(alone) == 2 else 0.5  # one label only: nothing to tell apart
    return float((paired.sum() + unpaired * count) / (len(paired) + count))


def label_balance(rated: "np.ndarray[Any, Any]", desirable: "np.ndarray[Any, Any]") -> float:
    """The share of the rarer of the two labels, of how many completions each row has rated and how many of them as
    desirable (NaN counts as none); NaN where none is rated."""
    import numpy as np

    both, good = float(np.nansum(rated)), float(np.nansum(desirable))
    return min(good, both - good) / both if both else float("nan")


def _odds(words: Any, chosen: Any, rejected: Any) -> Any:
    """Per word the logarithm of its smoothed odds of being the first of a chosen completion; 0 for 'no word'."""
    import numpy as np

    won = np.bincount(chosen, minlength=len(words))
    lost = np.bincount(rejected, minlength=len(words))
    won[words == 0] = lost[words == 0] = 0
    share = (won.sum() + 1) / (won.sum() + lost.sum() + 2)  # of chosen ones, whatever the word
    odds = np.log((won + _DOUBT * share) / (lost + _DOUBT * (1 - share)) * (1 - share) / share)
    odds[np.abs(odds) < 1e-9] = 0.0  # a word that is not there says nothing, whatever rounding says
    odds[words == 0] = 0.0
    return odds


def _nan(values: Any) -> Any:
    import numpy as np

    return np.isnan(values)
