"""``alignmill init``: an experiment file from a data file, every key with its reason. Nothing is trained or changed."""

import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from flows.experiment import load_experiment
from flows.template import BASE, FILE, LORA, LOSSES, NEW, aligned
from tasks.estimate import percentile, row_of, token_counter
from tasks.preflight import preflight
from tasks.shapes import folder_shape
from training.data.forms import SFT_FORMS
from training.data.records import Record, graded, pairs
from training.data.settings import Source
from training.data.sources import read
from training.data.split import digest_in_holdout, prompt_digest
from training.models import check_local
from training.settings import NewModel
from training.strict import Refused

COUNTED = 4000  # rows read at most; a longer file is counted no further
_MEASURED = 400  # rows whose tokens are counted
_HELD = 20  # prompts that a holdout should have
_SFT_STEPS, _PREFERENCE_STEPS = 400, 200  # at most: minutes on a laptop


@dataclass(frozen=True)
class Look:
    """What the first rows of a data file hold. ``whole``: whether these are all its rows."""

    form: str
    rows: int
    whole: bool
    records: tuple[Record, ...]

    @property
    def pairs(self) -> int:
        return sum(len(pairs(record)) for record in self.records)

    @property
    def labels(self) -> Counter[bool]:
        """How many completions are labelled good and bad."""
        return Counter(c.label for record in self.records for c in record.completions if c.label is not None)

    @property
    def judged(self) -> list[Record]:
        """The records that can be learnt from: those with a pair, or of labelled data without pairs those with a label."""
        kept = [record for record in self.records if pairs(record)]
        return kept or [record for record in self.records if graded(record)[0] == "label"]


def write_experiment(data: str, output: str | None = None, base: str | None = None) -> dict[str, Any]:
    """Write an experiment file for the preference data in ``data`` and say what it holds.

    Raises Refused where the data hold no preferences and no labels, where ``base`` is no model folder, and where the file exists.
    """
    source = Path(data)
    name = experiment_name(source)
    target = Path(output) if output is not None else Path(f"{name}.yaml")
    _free(target)
    look = look_at(source)
    folder = None if base is None else Path(base)
    if folder is not None:
        _check_base(folder)
    text = _text(name, look, _relative(source, target), folder, None if folder is None else _relative(folder, target))
    try:
        with open(target, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        _free(target)
        raise
    except (OSError, UnicodeEncodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the data's name is no UTF-8 text; rename the data"
        if isinstance(error, UnicodeEncodeError):
            target.unlink()
        raise Refused(f"{target} cannot be written: {reason}; name another file with --output") from error
    try:
        loaded = load_experiment(target)
        e = loaded.experiment
        preflight(loaded.root, e.model, e.data, e.benchmarks, e.gate)
    except BaseException:
        target.unlink()
        raise
    rows = f"{look.rows:,} rows" if look.whole else f"more than {COUNTED:,} rows"
    return {
        "file": str(target),
        "experiment": name,
        "digest": str(e.digest),
        "form": look.form,
        "rows": look.rows,
        "all_rows": look.whole,
        "pairs": look.pairs,
        "summary": f"{rows} in form '{look.form}'; at most {e.preference.max_tokens} tokens a row are learnt from",
    }


def experiment_name(data: Path) -> str:
    """A valid experiment name from a file's name, its endings left out: ``My Pairs.jsonl.gz`` → ``my-pairs``."""
    stem = data.name[:1] + data.name[1:].partition(".")[0]
    name = re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_")
    return name[:64].rstrip("-_") or "experiment"


def look_at(data: Path) -> Look:
    """Recognise the form of a data file and read its first rows. Raises Refused where no preference is in them."""
    resolved = data.absolute()
    reading = read(Source(path=str(resolved)), resolved.parent)
    lines = list(islice(reading.lines, COUNTED + 1))
    records = tuple(line.content for line in lines[:COUNTED] if isinstance(line.content, Record))
    look = Look(reading.form, min(len(lines), COUNTED), len(lines) <= COUNTED, records)
    if look.form in SFT_FORMS:
        raise Refused(
            f"{data}: form '{look.form}' has one completion a prompt and no preference; preference data are needed: "
            "'prompt' with 'chosen' and 'rejected', transcripts 'chosen' and 'rejected', 'prompt' with graded 'completions', "
            "or 'prompt' and 'completion' with a 'label'. Give such a file; this one can be added to the experiment as data.sft"
        )
    if not look.pairs and len(look.labels) < 2:
        raise Refused(
            f"{data}: none of {look.rows:,} rows (form '{look.form}') prefers one completion to another; grade at "
            "least two completions of a prompt differently ('score', 'rank' or 'label'), or label some rows true and some false"
        )
    return look


def holdout_share(prompts: list[str]) -> float:
    """0.1 of the prompts, or as much more, up to a half, as holds about 20 of them out. Raises Refused for too few."""
    different = set(prompts)
    for twentieths in range(2, 11):
        held = sum(digest_in_holdout(digest, twentieths / 20) for digest in different)
        if held >= _HELD:
            break
    if not 0 < held < len(different):
        raise Refused(
            f"{len(different)} prompt(s) with a preference are too few to train on some and hold others out; "
            "give data with more prompts"
        )
    return twentieths / 20


def _free(target: Path) -> None:
    if target.is_dir():
        raise Refused(f"{target} is a folder; name the file to write, such as --output {target / 'experiment.yaml'}")
    if target.exists() or target.is_symlink():
        raise Refused(f"{target} exists and is not overwritten; name another file with --output, or remove it first")
    if not target.parent.is_dir():
        raise Refused(f"{target.parent} is no folder; make it first, or name another file with --output")


def _check_base(folder: Path) -> None:
    if not folder.is_dir():
        raise Refused(
            f"--base: {folder} is no folder; name one with config.json, *.safetensors and tokenizer files (for a model "
            "on the hub, leave --base out and write model.base and model.revision into the file)"
        )
    check_local(folder)


def _relative(path: Path, target: Path) -> str:
    """``path`` as seen from the folder of ``target``; a link keeps its own name, so that it may move on."""
    return Path(os.path.relpath(path.absolute().parent.resolve() / path.name, target.parent.resolve())).as_posix()


def _scalar(value: str) -> str:
    """``value`` as it may stand in a flow mapping of YAML, quoted where it has to be."""
    if re.fullmatch(r"[A-Za-z.][A-Za-z0-9_./-]*[A-Za-z0-9]", value) and value not in ("true", "false", "null"):
        return value
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=2**31).strip()


# ------------------------------------------------------------------------------------------------ the text


def _text(name: str, look: Look, data: str, folder: Path | None, base: str | None) -> str:
    useful = look.judged
    # As the split does it: a record without a prompt stands for itself.
    digests = [prompt_digest(record.prompt) if record.prompt else record.id for record in useful]
    share = holdout_share(digests)
    train = [record for record, digest in zip(useful, digests, strict=True) if not digest_in_holdout(digest, share)]
    sample = train[:: max(1, len(train) // _MEASURED)][:_MEASURED]
    texts = [t for r in sample for t in (*(m.content for m in r.prompt), r.completions[0].text)]
    vocabulary = 1024 if sum(map(len, texts)) < 100_000 else 2048
    count = token_counter(texts, vocabulary, folder)
    each = 2 if folder is None else 5
    lengths = [row_of(count, r.prompt, (c.text for c in r.completions), each).longest for r in sample]
    usual = percentile(lengths, 0.95)
    limit = 512 if folder is None else min(1024, folder_shape(folder).context or 1024)
    tokens = 2 ** min(int(math.log2(limit)), max(5, math.ceil(math.log2(usual))))
    learnt = len(train)
    batch = next(size for size in (16, 8, 4, 2, 1) if size == 1 or learnt >= 10 * size)
    rows = 2 * batch if tokens <= 128 else batch
    if look.whole and learnt <= _PREFERENCE_STEPS * batch:
        duration, note = "epochs: 1", "each prompt once (or give 'steps' in its place)"
    else:
        duration = f"steps: {_PREFERENCE_STEPS}"
        note = f"of {batch} prompts; 'epochs: 1' in its place takes every prompt once"
    kinds = Counter(graded(record)[0] for record in useful)
    loss, why, others, another = LOSSES[kinds.most_common(1)[0][0] if look.pairs else "label alone"]
    rate, replay = ("2e-4", 4) if base is None else ("1e-6", 0)
    new = NewModel(vocabulary=vocabulary, context=max(256, 2 * tokens))
    text = FILE.substitute(
        seen="all" if look.whole else "the first",
        rows=f"{look.rows:,}",
        form=look.form,
        judged=f"{look.pairs:,} pairs" if look.pairs else f"{look.labels[True]:,} good and {look.labels[False]:,} bad",
        judge="preference_accuracy" if look.pairs else "desirable_auc",
        usual=f"{usual:,}",
        name=_scalar(name),
        model=NEW.format(**new.model_dump()) if base is None else BASE.format(_scalar(base)),
        data=_scalar(data),
        share=f"{share:g}",
        sft_steps=max(1, min(_SFT_STEPS, math.ceil((5 if base is None else 1) * len(train) / rows))),
        sft_batch=rows,
        sft_rate="3e-3" if base is None else "1e-5",
        tokens=tokens,
        inside=f"{sum(size <= tokens for size in lengths) / len(lengths):.0%}",
        lora="" if base is None else LORA,
        loss=f"{loss}  # {why}",
        others=others,
        length=f"{duration}  # {note}",
        batch=batch,
        rate=rate,
        plain=loss,
        another=another,
        same=f"{duration}, batch: {batch}, learning_rate: {rate}, replay: {replay}, max_tokens: {tokens}",
        replay=replay,
        generated=min(128, tokens // 2),
    )
    return "".join(aligned(line) for line in text.splitlines(keepends=True))
