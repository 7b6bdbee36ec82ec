"""What the engine is compared with: plain forward passes, one unpadded completion at a time, in float64; and models and
rows to compare on. Nothing here imports the engine's packing, attention or log-probabilities."""

import copy
import itertools
import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid as ls

from training.data.encode import Encoded
from training.processes import World

VOCABULARY = 67
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FEW = {"num_key_value_heads": 2, "head_dim": 8}
WINDOW = 11

# class name of the model and what its config is given; all of these share prompts
SHARING: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {**SMALL, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3", {**SMALL, **FEW}),
    "mistral, a window of 11": ("Mistral", {**SMALL, **FEW, "sliding_window": WINDOW}),
    "gemma": ("Gemma", {**SMALL, "num_key_value_heads": 1, "head_dim": 16}),
    "gpt-neox": ("GPTNeoX", {**SMALL, "use_parallel_residual": True}),
    "gemma3, a window of 11 in every other layer": (
        "Gemma3",
        {**SMALL, **FEW, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "olmo2": ("Olmo2", {**SMALL, "num_key_value_heads": 2}),
    "gpt2": ("GPT2", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 2048}),
}
MIXED = {"num_local_experts": 2, "num_experts_per_tok": 2, "num_experts": 2}
# these share prompts, and do more in their heads than multiply
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": ("Granite", {**SMALL, "num_key_value_heads": 2, "logits_scaling": 3.0, "attention_multiplier": 0.3}),
    "cohere": ("Cohere", {**SMALL, "num_key_value_heads": 2, "logit_scale": 0.3}),
}
# what each of these does that a packed row has no place for
ALONE: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "bloom": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "gemma2": ("Gemma2", {**SMALL, **FEW, "attn_logit_softcapping": 2.0, "sliding_window": WINDOW}),
    "gpt-oss": ("GptOss", {**SMALL, **FEW, **MIXED, "sliding_window": WINDOW, "layer_types": ["full_attention"] * 2}),
}


def model(name: str, seed: int = 1) -> Any:
    """A random model of an architecture whose distributions are far from uniform."""
    import transformers

    kind, given = (SHARING | HEADS | ALONE)[name]
    config = getattr(transformers, kind + ("TextConfig" if kind == "Gemma3" else "Config"))(**given)
    made = getattr(transformers, kind + ("LMHeadModel" if kind == "GPT2" else "ForCausalLM"))
    return drawn(made(config), seed)


def drawn(model: Any, seed: int = 1, factor: float = 1.5) -> Any:
    """Matrices are drawn with ``factor`` times the gain that keeps a variance, embeddings and heads with twice that."""
    draw = torch.Generator().manual_seed(seed)
    wide = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            if parameter.dim() > 1:
                gain = factor * (2 if id(parameter) in wide else 1)
                parameter.copy_(noise * gain / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(noise * 0.2)
    return model.eval()


def moved(model: Any, seed: int = 2, size: float = 0.05) -> Any:
    """The same model with all that is trained moved at random, in place: a policy after some steps."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                step = torch.randn(parameter.shape, generator=draw) * size
                parameter.add_(step * (parameter.std() if parameter.dim() > 1 else 1.0))
    return model


def row(
    name: str,
    prompt: int,
    completions: Sequence[int],
    draw: torch.Generator,
    grades: Sequence[float] = (),
    **other: Any,
) -> Encoded:
    """Random token ids; a completion ends with 2 (EOS), and one of length 1 is nothing else."""

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (count,), generator=draw).tolist())

    ended = tuple((*ids(length - 1), 2) for length in completions)
    return Encoded(name, ids(prompt), ended, grades=tuple(grades), **other)


# (prompt, completions, scores): one token in the prompt, one in a completion, K from 1 to 7, ties, all tied
SHAPES: list[tuple[int, list[int], list[float]]] = [
    (1, [5, 9], [1.0, 0.0]),
    (14, [1, 8], [0.25, 3.0]),
    (9, [6], [1.0]),
    (1, [1, 4, 1, 2], [2.0, 1.0, 1.0, 0.0]),
    (23, [17, 3], [-1.5, 2.0]),
    (6, [12, 1, 5, 7, 2, 9, 3], [0.0, 3.0, 1.0, 3.0, -2.0, 1.0, 0.5]),
    (12, [4, 15, 6], [1.0, 1.0, 1.0]),
    (3, [1], [0.0]),
]


def rows(shapes: Sequence[tuple[int, list[int], list[float]]] = tuple(SHAPES), seed: int = 3) -> list[Encoded]:
    """Scored rows with weights of their own. Two of the tied grades' completions may be told apart by nothing else."""
    draw = torch.Generator().manual_seed(seed)
    return [
        row(f"row-{i}", prompt, lengths, draw, grades, kind="score", weight=0.5 + 0.75 * (i % 3))
        for i, (prompt, lengths, grades) in enumerate(shapes)
    ]


def exact(model: Any) -> Any:
    """A copy in float64 with transformers' plainest attention."""
    twin = copy.deepcopy(model).double()
    plain = twin.get_base_model() if hasattr(twin, "get_base_model") else twin
    if plain.config._attn_implementation not in (None, "eager"):
        plain.set_attn_implementation("eager")
    plain.config._experts_implementation = "eager"  # the grouped product knows no float64
    return twin.eval()


def token_logps(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """log p of every completion token, float64."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0].double()
    place = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return logits.log_softmax(-1)[place, torch.tensor(completion)]


def totals(model: Any, rows: Sequence[Encoded]) -> list[Tensor]:
    """Summed log-probabilities, (K,) per row."""
    return [torch.stack([token_logps(model, row.prompt, ids).sum() for ids in row.completions]) for row in rows]


def scored(model: Any, rows: Sequence[Encoded]) -> list[Tensor]:
    """``totals`` without a graph, of a model in whatever dtype, computed in float64."""
    with torch.no_grad():
        return totals(exact(model), rows)


def gradient(model: Any, loss: Tensor | None = None) -> dict[str, Tensor]:
    """Gradients by name of what is trained, float64: of ``loss``, or those that are there. An absent one is zero."""
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if loss is None:
        found: Sequence[Any] = [value.grad for value in named.values()]
    else:
        found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(value).double() if grad is None else grad.double()
        for (name, value), grad in zip(named.items(), found, strict=True)
    }


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Relative L2 distance of two gradients over all parameters."""
    assert found.keys() == expected.keys()
    difference = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return (difference / sum(float(value.square().sum()) for value in expected.values())) ** 0.5


# ------------------------------------------------------------------------------------------------ several processes


@dataclass
class Meeting:
    """Where threads that stand for processes meet."""

    size: int
    said: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.said = [None] * self.size
        self.barrier = threading.Barrier(self.size, timeout=60)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.said[rank] = value
        self.barrier.wait()
        found = list(self.said)
        self.barrier.wait()
        return found


class Thread(World):
    """A process's world in which the processes are threads. One that misses a collective call breaks the meeting."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        super().__init__(rank, meeting.size)
        object.__setattr__(self, "meeting", meeting)

    def sum(self, values: Any) -> Any:
        found = self.share(values)
        if isinstance(values, Tensor):
            return torch.stack(found).sum(0)
        names = {name: None for known in found for name in known}
        return {name: sum(known.get(name, 0.0) for known in found) for name in names}

    def share(self, value: Any) -> list[Any]:
        return [pickle.loads(data) for data in self.meeting.exchange(self.rank, pickle.dumps(value))]  # type: ignore[attr-defined]

    def wait(self) -> None:
        self.share(None)


def together(size: int, work: Callable[[World], Any]) -> list[Any]:
    """What ``work`` returns in each of ``size`` threads, in the order of ranks."""
    meeting, found, errors = Meeting(size), [None] * size, []

    def start(rank: int) -> None:
        try:
            found[rank] = work(Thread(rank, meeting))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=start, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return found


# ------------------------------------------------------------------------------------------------ losses

# Written down from the papers a second time: one pair, rating or ranking at a time, in float64.


def pair_loss(loss: Any, p_w: Tensor, p_l: Tensor, r_w: Tensor, r_l: Tensor, n_w: int, n_l: int, gap: float) -> Tensor:
    """One pair: p are log-probabilities under the policy, r log-ratios, n lengths."""
    sigmoid, d = torch.sigmoid, r_w - r_l
    match loss.name:
        case "dpo":
            e = loss.label_smoothing
            return -(1 - e) * ls(loss.beta * d) - e * ls(-loss.beta * d)
        case "robust":
            e = loss.label_smoothing
            return (-(1 - e) * ls(loss.beta * d) + e * ls(-loss.beta * d)) / (1 - 2 * e)
        case "hinge":
            return (1 - loss.beta * d).clamp(min=0)
        case "ipo":
            return (r_w / n_w - r_l / n_l - 1 / (2 * loss.tau)) ** 2
        case "dpop":
            return -ls(loss.beta * (d - loss.lambda_ * (-r_w).clamp(min=0)))
        case "odpo":
            return -ls(loss.beta * d - loss.alpha * torch.tensor(gap, dtype=torch.float64).log())
        case "apo_zero":
            return (1 - sigmoid(loss.beta * r_w)) + sigmoid(loss.beta * r_l)
        case "apo_down":
            return sigmoid(loss.beta * r_w) + (1 - sigmoid(loss.beta * d))
        case "cpo":
            return -ls(loss.beta * (p_w - p_l)) - loss.alpha * p_w
        case "simpo":
            return -ls(loss.beta * (p_w / n_w - p_l / n_l) - loss.gamma)
        case "orpo":
            a = [m - (1 - m.exp()).log() for m in (p_w / n_w, p_l / n_l)]
            return -p_w / n_w - loss.lambda_ * ls(a[0] - a[1])
    raise AssertionError(loss.name)


def orders(places: Sequence[int], grades: Sequence[float]) -> list[tuple[int, ...]]:
    """All orders, best first, that the grades allow: tied completions in every order."""
    return [
        order
        for order in itertools.permutations(places)
        if all(grades[a] >= grades[b] for a, b in itertools.pairwise(order))
    ]


def ranking_loss(loss: Any, policy: Tensor, ratio: Tensor, lengths: Sequence[int], grades: Sequence[float]) -> Tensor:
    k = len(grades)
    if loss.name == "rrhf":
        p = policy / torch.tensor(lengths)
        below = [(i, j) for i in range(k) for j in range(k) if grades[i] < grades[j]]
        best = [i for i in range(k) if grades[i] == max(grades)]
        hinges = [(p[i] - p[j]).clamp(min=0) for i, j in below]
        return torch.stack(hinges).sum() / len(below) - p[best].mean()
    assert loss.name == "listwise"
    u = loss.beta * ratio
    likely = [
        sum(u[order[i]] - u[list(order[i:])].logsumexp(0) for i in range(k)) for order in orders(range(k), grades)
    ]
    return -torch.stack(likely).logsumexp(0)  # type: ignore[arg-type]


def rated(row: Encoded, desirable_from: float | None) -> list[tuple[int, bool]]:
    if row.kind == "label":
        return [(i, grade == 1) for i, grade in enumerate(row.grades)]
    middle = (max(row.grades) + min(row.grades)) / 2
    if row.kind == "score" and desirable_from is not None:
        return [(i, grade >= desirable_from) for i, grade in enumerate(row.grades)]
    return [(i, grade > middle) for i, grade in enumerate(row.grades) if grade != middle]


def loss_of(
    loss: Any,
    rows: Sequence[Encoded],
    policy: Sequence[Tensor],
    reference: Sequence[Tensor],
    desirable_from: float | None = None,
    z: Any = 0.0,
) -> Tensor:
    """The weighted mean over the examples of ``rows``; totals are (K,) per row."""
    losses, weights = [], []
    for row, p, q in zip(rows, policy, reference, strict=True):
        n, s, k = [len(ids) for ids in row.completions], row.grades, len(row.grades)
        if loss.view == "pairs":
            found = [(i, j) for i in range(k) for j in range(k) if s[i] > s[j]]
            for i, j in found:
                r = p - q
                losses.append(pair_loss(loss, p[i], p[j], r[i], r[j], n[i], n[j], s[i] - s[j]))
                weights.append(row.weight / len(found))
        elif loss.view == "ratings":
            for i, desirable in rated(row, desirable_from):
                sign, scale = (1, loss.lambda_desirable) if desirable else (-1, loss.lambda_undesirable)
                losses.append(scale * (1 - torch.sigmoid(sign * loss.beta * (p[i] - q[i] - z))))
                weights.append(row.weight)
        elif len(set(s)) > 1:
            losses.append(ranking_loss(loss, p, p - q, n, s))
            weights.append(row.weight)
    return sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)  # type: ignore[return-value]


def mismatched(rows: Sequence[Encoded], desirable_from: float | None) -> list[Encoded]:
    """KTO's: each rating's prompt with a rated completion of the next row with another prompt, in turn."""
    given = [(row, rated(row, desirable_from)) for row in rows if rated(row, desirable_from)]
    found = []
    for i, (row, own) in enumerate(given):
        for other, ratings in [*given[i + 1 :], *given[:i]]:
            if other.prompt != row.prompt:
                found += [
                    Encoded(row.record_id, row.prompt, (other.completions[ratings[k % len(ratings)][0]],))
                    for k in range(len(own))
                ]
                break
    return found
