"""The text of an experiment file as ``alignmill init`` writes it, with what depends on the data left open."""

from string import Template

FILE = Template("""\
# Written by alignmill init from $seen $rows rows of the data: form '$form', $judged.
# 95 of 100 rows have at most $usual tokens. What a run would do: alignmill check FILE; then: alignmill run FILE
name: $name
seed: 1  # everything random follows from it

model:
$model

data:
  preferences:  # one or more files; paths are relative to this file
    - {path: $data}  # add 'licence: MIT' (or whichever it is) for the record
  # sft: [{path: answers.jsonl}]  # rows of prompt and completion; without it SFT learns the preferred completions
  holdout: {share: $share}  # share of the prompts that no training step sees

validation:
  max_quarantined: 0.2  # refuse the data where more of its rows than this are faulty
  too_long: warn  # stop, quarantine or warn; every other rule has such a key too

sft:  # the warm start; leave the section out where the model already answers well
  steps: $sft_steps  # optimiser steps (or 'epochs' in its place); at most 400 to begin with
  batch: $sft_batch  # rows a step
  learning_rate: $sft_rate  # peak, after warm-up; then along a cosine to 0
  max_tokens: $tokens  # $inside of the rows fit; longer ones are cut
$lora
preference:
  loss: $loss
  # or one of: $others
  $length
  batch: $batch  # prompts a step, each with all its completions
  learning_rate: $rate  # well below that of SFT
  sft_weight: 1.0  # adds the chosen completion's likelihood, against collapse (RPO's alpha)
  replay: $replay  # SFT rows beside the pairs of every step, against forgetting
  max_tokens: $tokens  # as above
$lora
# compare:  # for 'alignmill compare FILE': complete settings per loss, trained from one warm start, in one table
#   - {loss: $plain, sft_weight: 1.0,
#      $same}
#   - {loss: $another, sft_weight: 1.0,
#      $same}

benchmarks:  # besides held-out pairs and generations, which are always judged
  names: []  # lm-evaluation-harness benchmarks, such as [blimp_causative, arc_easy]
  # include: benchmarks  # a folder with benchmark YAML files of your own
  # limit: 200  # at most so many items of each
  samples: {prompts: 64, max_new_tokens: $generated}  # generations on held-out prompts

gate:  # every rule must pass before a version becomes champion
  floors:  # whoever is champion
    - {metric: holdout/$judge, minimum: 0.5}  # 0.5 is chance; raise it when you know the task
  improve:  # shown to be better than the champion (paired test, alpha 0.05)
    - {metric: holdout/$judge}
  guards:  # shown to be no worse than the champion by the margin
    - {metric: holdout/chosen_logps, margin: 0.1}  # nats per token of the preferred completions
    # - {metric: arc_easy/acc, margin: 0.02}  # the same for a benchmark named above

registry:
  model: $name  # the registered model that gets a version per run
""")
# By what the data grade with: the loss to begin with (and its comment), others that fit, and one to compare it with.
LOSSES = {
    "rank": (
        "{name: dpo, beta: 0.1}",
        "a smaller beta lets the policy go further away from the warm start",
        "ipo, hinge, robust (wrong labels), dpop, apo_zero; without a reference simpo, cpo, orpo",
        "{name: ipo, tau: 0.5}",
    ),
    "score": (
        "{name: dpo, beta: 0.1}",
        "over all pairs of better and worse completions of a prompt, which weigh one together",
        "odpo (counts by how much one is better), listwise or rrhf (the whole ranking), ipo, orpo",
        "{name: listwise, beta: 0.1}",
    ),
    "label": (
        "{name: kto, beta: 0.1}",
        "judges each completion by its own label; lambda_desirable weighs the good ones",
        "dpo, ipo, orpo (for prompts that have a good and a bad completion)",
        "{name: dpo, beta: 0.1}",
    ),
    "label alone": (
        "{name: kto, beta: 0.1}",
        "judges each completion by its own label; lambda_desirable weighs the good ones",
        "none: the other losses need prompts that have a good and a bad completion",
        "{name: kto, beta: 0.05}",
    ),
}
NEW = """\
  new:  # a small model made from the seed; or 'base: FOLDER' in its place
    layers: {layers}
    hidden: {hidden}  # width
    heads: {heads}
    vocabulary: {vocabulary}  # byte-level BPE, learnt from the training text
    context: {context}  # tokens of prompt and completion together"""
BASE = "  base: {}  # a folder with config.json, *.safetensors and tokenizer files"
LORA = (
    "  # lora: {rank: 16, alpha: 32.0}  # trains adapters only, in less memory; with a 10 times higher learning rate\n"
)


def aligned(line: str) -> str:
    """The comment behind a value at one column, where the value leaves room."""
    body, mark, note = line.rpartition("  # ")
    return line if not mark or line.lstrip().startswith("#") else f"{body:<27}  # {note}"
