"""TRL's side of the comparison, run by the Python of TRL's own environment: ``python peer.py JOB``.

It imports nothing of this repository. ``JOB`` is a JSON file (``Job`` in ``ours``): a model folder, rows of token ids, the
row indices of every batch, and the settings that differ from TRL's defaults. Two hooks keep TRL on the same work:
``DPOTrainer._prepare_dataset`` returns the given ids (it would tokenise text again; SFTTrainer takes ids as they are), and
the train set is put in the given order and read in sequence. Everything else is TRL.

It answers on standard output, one JSON object a line: first what was set up, then, for every line ``go N`` on standard
input, the seconds and losses of the next N optimiser steps. The clock runs from the go to the next step's beginning.
"""

import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("trl", "torch", "transformers", "accelerate", "peft", "datasets")


def resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


class Memory:
    """Bytes of peak memory above what is held when it is made: resident on a CPU, allocated on a GPU."""

    def __init__(self, device: str) -> None:
        import torch

        self.cuda = torch.cuda if device == "cuda" else None
        if self.cuda is not None:
            self.cuda.reset_peak_memory_stats()
            self.held = self.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
            self.held = resident("VmRSS")

    def peak(self) -> int:
        top = resident("VmHWM") if self.cuda is None else self.cuda.max_memory_allocated()
        return int(top - self.held)


class Counted:
    """A collator that remembers the tokens of every batch: computed (padded), and those that are not padding."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate
        self.padded: list[int] = []
        self.real: list[int] = []

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.collate(examples)
        self.padded.append(batch["input_ids"].numel())
        self.real.append(int(batch["attention_mask"].sum()))
        return batch


def load(folder: str, device: str) -> Any:
    """The model in float32, every weight in memory of its own, so that no page of the file is charged to training."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.to(device)


def dataset(job: dict[str, Any]) -> Any:
    from datasets import Dataset

    rows = job["rows"]
    if job["kind"] == "sft":
        joined = [(prompt + answer, [-100] * len(prompt) + answer) for prompt, answer in rows]
        return Dataset.from_dict({"input_ids": [ids for ids, _ in joined], "labels": [labels for _, labels in joined]})
    columns = zip(("prompt_ids", "chosen_ids", "rejected_ids"), zip(*rows, strict=True), strict=True)
    return Dataset.from_dict({name: list(values) for name, values in columns})


def trainer(job: dict[str, Any], model: Any, callbacks: list[Any]) -> Any:
    """DPOTrainer or SFTTrainer with TRL's defaults but for ``job['settings']``; the reference is scored here."""
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    class TokenIds(DPOTrainer):
        def _prepare_dataset(self, given: Any, *_: Any) -> Any:
            return given

    kind, config = (SFTTrainer, SFTConfig) if job["kind"] == "sft" else (TokenIds, DPOConfig)
    lora = job["lora"]
    adapters = None
    if lora is not None:
        adapters = LoraConfig(
            r=lora["rank"],
            lora_alpha=lora["alpha"],
            lora_dropout=lora["dropout"],
            target_modules=lora["targets"],
            task_type="CAUSAL_LM",
        )
    made = kind(
        model=model,
        args=config(**job["settings"]),
        train_dataset=dataset(job),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=adapters,
        callbacks=callbacks,
    )
    made.data_collator = Counted(made.data_collator)
    made.train_dataset = made.train_dataset.select([row for batch in job["batches"] for row in batch])
    return made


def paced(answer: Any, device: str, free: bool) -> Any:
    """A callback that waits for ``go N`` before a step and answers when N steps are done; ``free`` never waits."""
    import torch
    from transformers import TrainerCallback

    class Paced(TrainerCallback):
        def __init__(self) -> None:
            self.left, self.began = 0, 0.0
            self.losses: list[float] = []

        def answer(self) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            answer({"seconds": time.perf_counter() - self.began, "losses": self.losses})
            self.losses = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if free:
                return
            if self.left == 0:
                if self.began:
                    self.answer()
                self.left = int(sys.stdin.readline().removeprefix("go "))
                self.began = time.perf_counter()
            self.left -= 1

        def on_log(self, *given: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                self.losses.append(logs["loss"])

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.answer()

    return Paced()


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # no call home
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the libraries print is no answer

    def answer(value: dict[str, Any]) -> None:
        lines.write(json.dumps(value) + "\n")

    import torch
    import trl  # noqa: F401  # before the memory is measured

    torch.set_num_threads(job["threads"])
    model = load(job["model"], job["device"])
    memory = Memory(job["device"])
    began = time.perf_counter()
    made = trainer(job, model, [paced(answer, job["device"], job["free"])])
    arguments = {**made.args.to_dict(), "output_dir": "…", "logging_dir": "…"}
    packages = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    answer({"ready": True, "arguments": arguments, "versions": packages, "setup": time.perf_counter() - began})
    made.train()
    if job["save"] is not None:
        made.save_model(job["save"])
    counted = made.data_collator
    answer({"padded": counted.padded, "real": counted.real, "peak": memory.peak()})


if __name__ == "__main__":
    main()
