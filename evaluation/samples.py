"""Greedy generations on held-out prompts: the side-by-side table, and the four signs of a collapsed model.

Preference accuracy cannot see a collapse: a model may rank every pair right and generate garbage. These shares can.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.loading import load_policy, prepare_process, release, seed_everything
from evaluation.scores import ItemScore, Score, mean_score, write_results
from evaluation.settings import BenchmarkSettings, Refused

BENCHMARK = "samples"
METRICS = ("empty", "repetitive", "unfinished", "identical")
# The template that training saves with a model whose tokenizer has none; here for models from elsewhere.
FALLBACK_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}{{ message['content'] }}{{ eos_token or '' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Sample:
    """A generation: the prompt's id and a key of its text, token ids without end and padding, whether it ended."""

    item: str
    prompt: str
    text: str
    ids: tuple[int, ...]
    finished: bool


def run(job: Mapping[str, Any], log: Log) -> None:
    """Generate for every model of ``job`` whose output does not exist yet; the entry of a child process.

    ``job``: ``inputs`` {label: model folder}, ``outputs`` {label: folder}, ``prompts`` (JSON Lines of {``id``,
    ``messages``}), ``settings`` (BenchmarkSettings as JSON; reads ``samples`` and ``batch_size``), ``seed`` and
    ``profile``. The first ``settings.samples.prompts`` prompts are used. Events as in ``evaluation.benchmarks.run``.
    Raises Refused where the prompts or a model folder are missing or empty.
    """
    settings = BenchmarkSettings.model_validate_json(json.dumps(job["settings"]))
    prompts = _read_prompts(Path(job["prompts"]), settings.samples.prompts)
    labels = [label for label in job["outputs"] if not Path(job["outputs"][label]).exists()]
    total, done = len(job["outputs"]), len(job["outputs"]) - len(labels)
    if labels:
        prepare_process(job["profile"])
    for label in labels:
        log({"type": "progress", "done": done, "total": total, "message": f"{label}: samples"})
        model, tokenizer = load_policy(Path(job["inputs"][label]), job["profile"])
        seed_everything(job["seed"])
        samples = generate(model, tokenizer, prompts, settings.samples.max_new_tokens, settings.batch_size)
        scores, items = judge(samples)
        rows = [{"id": s.item, "text": s.text, "tokens": len(s.ids), "finished": s.finished} for s in samples]
        write_results(Path(job["outputs"][label]), scores, items, rows)
        log({"type": "metrics", "metrics": {f"{label}/{score.name}": score.value for score in scores}})
        done += 1
        del model
        release(job["profile"].get("device", "cpu"))
    log({"type": "progress", "done": done, "total": total, "message": "samples finished"})


def judge(samples: Sequence[Sample]) -> tuple[list[Score], dict[str, list[ItemScore]]]:
    """The four shares over all samples (for ``identical``: over distinct prompts), lower is better in each.

    empty: the text is blank. repetitive: see ``repetitive``. unfinished: the token limit came before an end token.
    identical: the share of distinct prompts that got the most common text; 0 where no two of them got the same.
    """
    distinct = {sample.prompt: sample for sample in reversed(samples)}
    common, count = Counter(s.text.strip() for s in distinct.values()).most_common(1)[0]
    flags = {
        "empty": [(s.item, not s.text.strip()) for s in samples],
        "repetitive": [(s.item, repetitive(s.ids)) for s in samples],
        "unfinished": [(s.item, not s.finished) for s in samples],
        "identical": [
            (s.item, len(distinct) > 1 and s.text.strip() == common and count > 1) for s in distinct.values()
        ],
    }
    items = {f"{BENCHMARK}/{m}": [ItemScore(item, float(flag)) for item, flag in rows] for m, rows in flags.items()}
    return [mean_score(BENCHMARK, m, items[f"{BENCHMARK}/{m}"], higher_is_better=False) for m in METRICS], items


def repetitive(ids: Sequence[int]) -> bool:
    """Whether a generation goes round in circles, told from its token ids; never below 16 tokens.

    True where more than half of its 4-grams are repeats (seq-rep-4 of Welleck et al., 2020, above 0.5), or where it
    ends in a cycle of at most 8 tokens that fills its last 32, that is, went round at least four times.
    """
    if len(ids) < 16:
        return False
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    if 1 - len(set(grams)) / len(grams) > 0.5:
        return True
    tail = list(ids[-32:])
    return len(tail) == 32 and any(tail[p:] == tail[:-p] for p in range(1, 9))


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Mapping[str, Any]], max_new_tokens: int, batch_size: int
) -> list[Sample]:
    """Greedy completions in the order of ``prompts``, batched by length with padding on the left.

    A generation ends at the model's own end tokens or at the one that the chat template puts after an answer.
    """
    import torch

    if not tokenizer.chat_template:
        tokenizer.chat_template = FALLBACK_TEMPLATE
    ends = _end_tokens(model, tokenizer)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    encoded = [_prompt_ids(tokenizer, row["messages"]) for row in prompts]
    samples: dict[int, Sample] = {}
    order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i]), i))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = len(encoded[batch[0]])
        ids = torch.tensor([[padding] * (width - len(encoded[i])) + encoded[i] for i in batch], device=model.device)
        mask = torch.tensor(
            [[0] * (width - len(encoded[i])) + [1] * len(encoded[i]) for i in batch], device=model.device
        )
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                pad_token_id=padding,
                eos_token_id=sorted(ends) or None,
            )
        for i, row in zip(batch, out[:, width:].tolist(), strict=True):
            end = next((k for k, token in enumerate(row) if token in ends), None)
            kept = tuple(row if end is None else row[:end])
            text = tokenizer.decode(kept, skip_special_tokens=True)
            key = json.dumps(prompts[i]["messages"], sort_keys=True)
            samples[i] = Sample(str(prompts[i]["id"]), key, text, kept, end is not None)
    return [samples[i] for i in range(len(encoded))]


def _prompt_ids(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    ids = list(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False))
    bos = tokenizer.bos_token_id
    while bos is not None and ids[:2] == [bos, bos]:
        ids.pop(0)
    return ids


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    own = model.generation_config.eos_token_id
    ends = {int(token) for token in (own if isinstance(own, list) else [own]) if token is not None}
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "#"}]
    suffix = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("#")[2]
    special = set(tokenizer.all_special_ids)
    after = [token for token in tokenizer(suffix, add_special_tokens=False)["input_ids"] if token in special]
    return ends | set(after[:1])


def _read_prompts(path: Path, limit: int) -> list[dict[str, Any]]:
    if not path.is_file():
        raise Refused(f"prompts file {path} does not exist; it should hold one {{id, messages}} a line")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    if not rows:
        raise Refused(f"prompts file {path} is empty; samples need at least one held-out prompt")
    return rows[:limit]
