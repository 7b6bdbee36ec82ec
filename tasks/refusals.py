"""What a loss refuses about the data, as far as records without their tokens can tell: before anything is trained."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tasks.data import Data
from training.data.encode import Encoded, Encoder, Row, encode_records
from training.data.records import Record
from training.data.split import load_records
from training.settings import PreferenceSettings
from training.terms import view_of, why_not


class _Texts(Encoder):
    """An encoder for whom every different text of a row is one token of its own: it needs no tokenizer."""

    def __init__(self) -> None:
        pass

    def join_all(self, rows: Sequence[Row]) -> list[Encoded]:
        return [self._joined(record_id, texts, weight) for record_id, _, texts, weight in rows]

    @staticmethod
    def _joined(record_id: str, texts: Iterable[str], weight: float) -> Encoded:
        numbers: dict[str, int] = {}
        completions = tuple((numbers.setdefault(text, len(numbers)),) for text in texts)
        return Encoded(record_id, (0,), completions, weight)


def refusal(settings: PreferenceSettings, records: Iterable[Record]) -> str | None:
    """Why preference optimization with ``settings`` would refuse ``records``, or None. Reads no more than it has to.

    What gets lost by cutting to ``max_tokens`` only the job itself can know.
    """
    encoder, seen = _Texts(), []

    def named(loss: Any, why: str) -> str:
        return f"{loss.name}: {why}" if settings.mix else why

    undecided = [(term.loss, view_of(term.loss, settings.desirable_from)) for term in settings.terms]
    for record in records:
        if not undecided:
            return None
        for row in encode_records(encoder, [record], bool).rows:
            seen.append(row)
            for loss, view in undecided:
                if loss.needs_scores and view.weight(row) and (why := why_not(loss, view, [row])):
                    return named(loss, why)
            # One row that it can use is enough, unless every one of them has to have a score.
            undecided = [(loss, view) for loss, view in undecided if loss.needs_scores or not view.weight(row)]
    found = ((loss, why_not(loss, view, seen)) for loss, view in undecided)
    return next((named(loss, why) for loss, why in found if why), None)


def training_records(data: Data) -> Iterable[Record]:
    """The kept preference records that training sees."""
    where = data.pairs()
    parts = {name: Path(folder) for name, folder in where["parts"].items()}
    return load_records(parts, Path(where["selection"]), "train")
