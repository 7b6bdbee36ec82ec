"""Tokens: what of a row is beyond the token budget, counted as training counts (``training.data.encode``)."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.facts.base import Batch
from training.data.facts.counting import Counter
from training.strict import Refused

if TYPE_CHECKING:
    import numpy as np

_ROWS = 512  # looked at together
# Tokenizer classes that AutoTokenizer loads as they stand. It imports torch, which takes seconds; they don't.
_PLAIN = ("TokenizersBackend", "PreTrainedTokenizerFast")


@dataclass(frozen=True)
class Tokens:
    """``tokens_over``: tokens of the prompt and the longest completion beyond ``max_tokens``, at least 0.

    ``cut_share``: their share of these tokens, which is what truncation takes. The completions are those that training
    reads: graded ones of a preference (all where none is graded), the best one of an SFT row. ``folder`` holds the
    tokenizer, ``digest`` is of its files. Both are null without a folder, for a line that is no record, and for a row
    without completions or whose prompt the chat template refuses.
    """

    folder: str | None
    digest: str
    max_tokens: int
    name: str = "tokens"
    columns: tuple[str, ...] = ("tokens_over", "cut_share")

    @property
    def key(self) -> str:
        """What the counts depend on; not where the tokenizer lies."""
        if self.folder is None:
            return ""
        from importlib.metadata import version

        return f"tokenizer {self.digest}, {self.max_tokens} tokens, tokenizers {version('tokenizers')}"

    def __call__(self, batch: Batch) -> "Mapping[str, np.ndarray[Any, Any]]":
        import numpy as np

        over, share = np.full(len(batch), math.nan), np.full(len(batch), math.nan)
        rows = [row for row, record in enumerate(batch.records) if record is not None and record.completions]
        if self.folder is not None and rows:
            counter = _counter(self.folder, self.digest)
            for start in range(0, len(rows), _ROWS):
                some = rows[start : start + _ROWS]
                records = [record for row in some if (record := batch.records[row]) is not None]
                for row, count in zip(some, counter.counts(records, batch.needed, self.max_tokens), strict=True):
                    if count is not None:
                        over[row] = max(0, count - self.max_tokens)
                        share[row] = over[row] / max(1, count)
        return {"tokens_over": over, "cut_share": share}


@lru_cache(maxsize=2)
def _counter(folder: str, digest: str) -> Counter:
    return Counter(load(Path(folder)))


def load(folder: Path) -> Any:
    """The tokenizer that ``training.models.load_tokenizer`` loads, without torch where its class needs no search.

    Raises Refused.
    """
    try:
        config = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        config = {}
    plain = isinstance(config, dict) and config.get("tokenizer_class") in _PLAIN and "auto_map" not in config
    if not plain:
        from training.models import load_tokenizer

        return load_tokenizer(folder)
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        what = f"{type(error).__name__}: {str(error)[:300]}"
        raise Refused(
            f"the tokenizer in {folder} does not load ({what}). Give a folder with a whole tokenizer.json"
        ) from error
