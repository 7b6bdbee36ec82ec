"""What ``alignmill check`` found, printed for a person."""

from typing import Any

from flows.costs import SETUP, duration, gib


def show(value: dict[str, Any]) -> None:
    """Print what ``check`` found, on standard output."""
    print(f"experiment {value['experiment']} ({value['digest'][7:19]}), {value['file']}\n")
    _show_data(value)
    print("\nplan (a step whose inputs come out the same after all is reused)")
    width = max(len(entry["step"]) for entry in value["plan"]) + 2
    for entry in value["plan"]:
        note = f"  ({entry['note']})" if "note" in entry else ""
        print(f"  {entry['step']:<{width}}{entry['state']}{note}")
    if value["compare"]:
        told = ", ".join(f"{entry['candidate']} {entry['state']}" for entry in value["compare"])
        print(f"  alignmill compare: {told}")
    if value["estimates"]:
        _show_estimates(value["estimates"])
    for warning in value["warnings"]:
        print(f"warning: {warning}")


def _show_data(value: dict[str, Any]) -> None:
    """A line per part, under it a line per rule that its rows break; then what was measured of the whole."""
    from tasks.console import table

    counts = ("rows", "kept", "kept_train", "kept_holdout", "quarantined")
    parts = value["data"].items()
    table(
        ["data", "rows", "kept", "train", "holdout", "quarantined"],
        [[n, *(f"{p[c]:,}" for c in counts)] for n, p in parts],
    )
    for name, part in parts:
        broken = {rule: told for rule, told in part["judged"].items() if told["count"]}
        if broken:
            print(f"\n{name}: rows that break a rule")
            heads = ["  rule", "rows", "share", "action", "allowed"]
            table(heads, [_broken(rule, told) for rule, told in broken.items()])
    # The next table has the share of every benchmark.
    measures = [told for told in value["measures"] if told["name"] != "contamination" or not told["within"]]
    if measures:
        print("\nmeasures of the whole set")
        table(["  measure", "of", "value", "allowed", ""], [_measured(told) for told in measures])
    if value["benchmarks"]:
        print("\nbenchmark items that stand in the training text")
        table(
            ["  benchmark", "items", "found", "share"], [_contaminated(*entry) for entry in value["benchmarks"].items()]
        )


def _broken(rule: str, told: dict[str, Any]) -> list[str]:
    return [f"  {rule}", f"{told['count']:,}", percent(told["share"]), told["action"], percent(told["at_most"])]


def _measured(told: dict[str, Any]) -> list[str]:
    state = "" if told["within"] else f"out of bounds: {told['action']}"
    return [f"  {told['name']}", told["of"], f"{told['value']:.3g}", told["allowed"], state]


def _contaminated(name: str, told: dict[str, Any]) -> list[str]:
    return [f"  {name}", f"{told['items']:,}", f"{told['found']:,}", percent(told["share"])]


def percent(share: float) -> str:
    """A share for people: 0.05 is 5%, 0.0004 is 0.04%."""
    return f"{share * 100:.3g}%"


def _show_estimates(costs: dict[str, Any]) -> None:
    print(f"\nmodel: {costs['parameters']:,} parameters; all that follows are estimates")
    for name, cost in costs["training"].items():
        trained = (
            f", {cost['trained_parameters']:,} trained" if cost["trained_parameters"] != costs["parameters"] else ""
        )
        more = cost["tokens_per_step"] - cost["unique_tokens_per_step"]
        repeated = f" ({more:,} of them repeated or padding)" if more else ""
        print(
            f"  {name}: {cost['steps']:,} steps of {cost['batch']} rows, about {cost['tokens_per_step']:,} tokens each"
            f"{repeated}{trained}; {gib(cost['memory'])} of memory; {duration(cost['seconds'])} by {cost['from']}"
        )
    print(f"  disk: {gib(costs['disk']['bytes'])} more; {gib(costs['disk']['free'])} are free")
    spent = ", ".join(f"{name} {duration(value)}" for name, value in costs["seconds"].items() if name != "total")
    print(f"  time: {duration(costs['seconds']['total'])} ({spent}, start {duration(SETUP)})")
