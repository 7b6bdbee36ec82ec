"""What a change makes run again: each section in turn, and which steps really ran."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.flows.tiny import PROFILE, Tiny, ran, settings

TRAINED = ["preference", "benchmarks", "gate", "register", "promote"]
Change = Callable[[Tiny, dict[str, Any]], None]


def setting(path: str, value: Any) -> Change:
    def change(tiny: Tiny, experiment: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place = experiment
        for parent in parents:
            place = place[parent]
        place[last] = value
        tiny.set(experiment)

    return change


def profile(name: str, value: Any) -> Change:
    return lambda tiny, experiment: tiny.set_profile({**PROFILE, name: value})


def another_pair(tiny: Tiny, experiment: dict[str, Any]) -> None:
    with open(tiny.folder / "pairs.jsonl", "a") as file:
        file.write(
            json.dumps({"prompt": "And the eel of the weir?", "chosen": "Gladly: there.", "rejected": "No."}) + "\n"
        )


def another_item(tiny: Tiny, experiment: dict[str, Any]) -> None:
    with open(tiny.folder / "benchmarks" / "items.jsonl", "a") as file:
        file.write(json.dumps({"question": "Where?", "choices": ["Here.", "There."], "answer": 0}) + "\n")


def comments_and_order(tiny: Tiny, experiment: dict[str, Any]) -> None:
    tiny.file.write_text("# the same, said otherwise\n" + yaml.safe_dump(experiment, sort_keys=True))


# Section → (change, the steps that run). Where weights change, the policy is a new version; it beats the champion or not.
CHANGES: dict[str, tuple[Change, list[str]]] = {
    "nothing": (lambda tiny, experiment: None, []),
    "comments and key order": (comments_and_order, []),
    "name": (setting("name", "renamed"), []),
    "seed": (setting("seed", 4), ["base", "sft", *TRAINED]),
    "model": (setting("model.new.hidden", 48), ["base", "sft", *TRAINED]),
    "data: one pair more": (another_pair, ["snapshot-preferences", "validate", *TRAINED]),
    "validation": (setting("validation", {"max_quarantined": 0.3}), ["validate"]),
    "sft": (setting("sft.learning_rate", 0.003), ["sft", *TRAINED]),
    "preference": (setting("preference.loss.beta", 0.2), TRAINED),
    "compare": (setting("compare", [{"loss": {"name": "ipo"}, "epochs": 1, "learning_rate": 1e-4}]), []),
    "benchmarks: a setting": (setting("benchmarks.limit", 10), ["benchmarks", "gate", "register", "promote"]),
    "benchmarks: an item more": (
        another_item,
        ["texts", "validate", "benchmarks", "gate", "register", "promote"],
    ),
    "gate": (setting("gate.floors", [{"metric": "tiny_choice/acc", "minimum": 0.1}]), ["gate", "register", "promote"]),
    "registry": (setting("registry.model", "elsewhere"), ["register", "promote"]),
    "profile: threads": (profile("threads", 2), ["sft", "preference", "benchmarks"]),
    "profile: layout": (profile("layout", "packed"), ["sft", "preference", "benchmarks"]),
    "profile: how often to save": (profile("checkpoint_seconds", 9.0), []),
}
# Another number of threads or layout may give other bits, and then the gate and what follows run too; or the same.
BITS_MAY_BE_EQUAL = {"profile: threads", "profile: layout"}
SAMPLE = ["nothing", "name", "data: one pair more", "validation", "gate"]


@pytest.mark.parametrize(
    "section", [pytest.param(name, marks=[] if name in SAMPLE else pytest.mark.soak) for name in CHANGES]
)
def test_a_change_runs_what_reads_it_and_what_follows_and_nothing_else(section: str, copied: Tiny) -> None:
    change, expected = CHANGES[section]
    change(copied, settings())
    outcome = copied.run()
    # A version may be refused by the gate, or be the champion's weights once more: then nothing is promoted.
    steps = [step for step in ran(outcome) if step != "promote"]
    if section in BITS_MAY_BE_EQUAL:
        steps = steps[: len(expected)]
    assert steps == [step for step in expected if step != "promote"]
