"""A job over a small random Llama and random token rows, for tests that need real processes: a module for ``tasks.child``.

The objective is a weighted mean log-likelihood, so that what is tested is the loop and nothing beside it.
"""

import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from training.loop import Part, train
from training.processes import World
from training.settings import LoRA, Profile, SFTSettings


@dataclass(frozen=True)
class Row:
    """Random token ids; the first ``prompt`` of them are not scored."""

    name: str
    ids: tuple[int, ...]
    prompt: int
    weight: float


def rows(count: int = 24, seed: int = 1) -> list[Row]:
    """Rows of different lengths and weights, so that nothing balances by accident."""
    draw = random.Random(seed)
    return [
        Row(
            f"row-{i}",
            tuple(draw.randrange(3, 96) for _ in range(draw.randrange(6, 16))),
            draw.randrange(1, 4),
            draw.choice((0.5, 1.0, 1.5)),
        )
        for i in range(count)
    ]


def policy(tied: bool = True, lora: LoRA | None = None) -> Any:
    """A scorer around a Llama of 25 thousand parameters; some dimensions are odd, so that shards are uneven."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=24,
        intermediate_size=51,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
    )
    model: Any = LlamaForCausalLM(config)
    if lora is not None:
        from training.models import with_lora

        model = with_lora(model, lora, 5)
    return scorer(model)


def scorer(model: Any) -> Any:
    """As the real one: a module whose one forward pass runs the body and multiplies by the head by itself."""
    import torch

    class Scorer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Sequence[Row]) -> tuple[Any, Any]:
            plain = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
            ids = torch.zeros(len(batch), max(len(row.ids) for row in batch), dtype=torch.long)
            for i, row in enumerate(batch):
                ids[i, : len(row.ids)] = torch.tensor(row.ids)
            hidden = plain.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = torch.nn.functional.linear(hidden, plain.get_output_embeddings().weight)
            token = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
            scored = torch.zeros_like(token)
            for i, row in enumerate(batch):
                scored[i, row.prompt : len(row.ids) - 1] = 1
            return (token * scored).sum(1), scored.sum(1)

    return Scorer()


class Likelihood:
    """``batch`` rows a step, in order, around and around. Above ``memory`` tokens a micro-batch finds no memory; the
    record ``poisoned`` weighs no number; ``margins`` are what the held-out margin is after that many evaluations."""

    def __init__(
        self,
        data: Sequence[Row],
        steps: int,
        batch: int = 8,
        memory: tuple[int, int] | None = None,
        margins: bool = False,
        rank_without_memory: int | None = None,
    ) -> None:
        self.data, self.steps, self.batch, self.memory, self.margins = data, steps, batch, memory, margins
        self.rank_without_memory = rank_without_memory

    def step(self, step: int) -> list[Row]:
        return [self.data[(step * self.batch + i) % len(self.data)] for i in range(self.batch)]

    def records(self, step: int) -> list[str]:
        return [row.name for row in self.step(step)]

    def begin(self, model: Any, world: World) -> None:
        """Where the real one computes its reference: the initial weights, kept to be compared by ``parts``."""
        import torch

        model.eval()
        with torch.no_grad():
            self.initial = model(self.data[:2])[0]

    def parts(self, model: Any, step: int, budget: int, world: World) -> list[Callable[[], Part]]:
        chosen = self.step(step)
        whole = sum(row.weight for row in chosen)
        cut = micro_batches(chosen, budget)
        cut += [[replace(row, weight=0.0) for row in cut[-1]]] * (-len(cut) % world.size)
        return [partial(self._part, model, micro, whole, step, world) for micro in cut[world.rank :: world.size]]

    def _part(self, model: Any, micro: Sequence[Row], whole: float, step: int, world: World) -> Part:
        import torch

        tokens = len(micro) * max(len(row.ids) for row in micro)
        total, length = model(micro)
        weight = torch.tensor([row.weight for row in micro]) / whole
        loss = -(weight * total / length).sum()
        here = self.rank_without_memory in (None, world.rank)
        if self.memory is not None and step >= self.memory[0] and tokens > self.memory[1] and here:
            loss.backward()  # what a real one leaves behind
            raise torch.OutOfMemoryError(f"out of memory: {tokens} tokens")
        return Part(loss, {"examples": float((weight > 0).sum())}, tokens)

    def judge(self, model: Any, budget: int, world: World) -> float:
        import torch

        assert not model.training and not torch.is_grad_enabled()
        held = rows(6, seed=2)
        mine = model(held[world.rank :: world.size])[0].sum()
        return float(world.sum(mine.reshape(1))) / len(held)


def micro_batches(chosen: Sequence[Row], budget: int) -> list[list[Row]]:
    """As many rows as fit into ``budget`` padded tokens, in order."""
    cut: list[list[Row]] = []
    for row in chosen:
        if cut and (len(cut[-1]) + 1) * max(len(r.ids) for r in [*cut[-1], row]) <= budget:
            cut[-1].append(row)
        else:
            cut.append([row])
    return cut


def settings(steps: int = 6, **other: Any) -> SFTSettings:
    return SFTSettings(**{"steps": steps, "learning_rate": 1e-2, "max_tokens": 64, "weight_decay": 0.1, **other})


def profile(processes: int = 1, **other: Any) -> Profile:
    """Every step is saved."""
    return Profile(**{"threads": 1, "token_budget": 128, "checkpoint_seconds": 1e-9, "processes": processes, **other})


def job(folder: Path, output: str, chosen: Profile, given: SFTSettings | None = None, **other: Any) -> dict[str, Any]:
    """A payload for ``run``; checkpoints in ``folder/checkpoints-OUTPUT``, weights in ``folder/OUTPUT``."""
    return {
        "settings": (given or settings()).model_dump_json(),
        "profile": chosen.model_dump_json(),
        "seed": 3,
        "checkpoints": str(folder / f"checkpoints-{output}"),
        "objective": "this one",
        "output": str(folder / output),
        **other,
    }


def run(job: dict[str, Any], log: Callable[[dict[str, Any]], None]) -> None:
    """Train and write all weights into one file. ``tied``, ``objective_settings``, ``budgets`` may be given."""
    import torch
    from safetensors.torch import save_file

    chosen = Profile.model_validate_json(job["profile"])
    given = SFTSettings.model_validate_json(job["settings"])
    torch.set_num_threads(chosen.threads)
    torch.use_deterministic_algorithms(True)
    world = World.current(chosen)
    objective = Likelihood(rows(), given.steps or 1, **job.get("objective_settings", {}))
    model = policy(job.get("tied", True), given.lora)
    if chosen.dtype == "pure-bfloat16":
        model = model.to(torch.bfloat16)
    folder = Path(job["checkpoints"])
    result = train(
        model, objective, given, chosen, job["seed"], job["objective"], folder, log, world, job.get("budgets")
    )
    if world.main:
        output = Path(job["output"])
        weights = {name: value.detach().contiguous() for name, value in result.named_parameters()}
        save_file(weights, output.with_suffix(".partial"))
        output.with_suffix(".partial").rename(output)
    world.wait()


def write(payload: dict[str, Any], folder: Path, processes: int = 1) -> Path:
    """The job file of one attempt."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.json"
    path.write_text(json.dumps({**payload, "events": str(folder / "events.jsonl"), "processes": processes}))
    return path


# ------------------------------------------------------------------------------------------------ in this process

Events = list[dict[str, Any]]
Log = Callable[[dict[str, Any]], None]


def ignore(event: dict[str, Any]) -> None:
    """A log that nobody reads."""


def trained(
    folder: Path, log: Log, objective: Any, given: SFTSettings, chosen: Profile | None = None, budgets: Any = None
) -> Any:
    """The small Llama after training in this process, in a scorer; ``folder`` holds the checkpoints."""
    return train(policy(), objective, given, chosen or profile(), 3, "this one", folder, log, budgets=budgets)


def weights(module: Any) -> dict[str, Any]:
    """A copy of the weights of a module, by name."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two models have the same names and bits."""
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def told(events: Events, kind: str) -> list[Any]:
    """The events of a type."""
    return [event for event in events if event["type"] == kind]


def attempt(payload: dict[str, Any], events: str, environment: dict[str, str]) -> None:
    """``run`` in a process of its own, which may have a rank."""
    os.environ |= environment
    with open(events, "a", buffering=1) as file:

        def log(event: dict[str, Any]) -> None:
            if environment.get("RANK", "0") == "0":
                file.write(json.dumps(event) + "\n")

        run(payload, log)
