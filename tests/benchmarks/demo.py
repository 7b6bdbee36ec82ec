"""The demo's bounds, measured: ``python -m tests.benchmarks.demo [--seeds 5,6,7]`` writes its section of RESULTS.md.

Times are those of the whole command, in a fresh workspace, with whatever else the machine does.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("RESULTS.md")
DEMO = ROOT / "deployments" / "experiments" / "helpdesk.yaml"
BEHAVIOURS = ("refuse", "style", "code", "cite")
CONTROLS = ("allowed", "facts")


def command(*arguments: str, **environment: str) -> tuple[float, str]:
    """Seconds and standard output of one command; its own words where it fails."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    return time.monotonic() - began, done.stdout


def with_seed(folder: Path, seed: int) -> Path:
    """The demo with another seed; its paths start where the demo's do."""
    settings = yaml.safe_load(DEMO.read_text())
    settings["seed"] = seed
    text = yaml.safe_dump(settings).replace("../helpdesk", str(ROOT / "deployments" / "helpdesk"))
    (folder / f"seed-{seed}.yaml").write_text(text)
    return folder / f"seed-{seed}.yaml"


def measure(seeds: list[int], folder: Path) -> tuple[list[str], list[str]]:
    """Two Markdown tables: scores per seed, times."""
    scores = ["| seed | preference | " + " | ".join((*BEHAVIOURS, *CONTROLS)) + " | bounds |", "|---" * 9 + "|"]
    cold: list[float] = []
    for seed in seeds:
        seconds, out = command(
            "run", str(with_seed(folder, seed)), "--json", ALIGNMILL_HOME=str(folder / f"home-{seed}")
        )
        cold.append(seconds)
        scores.append(score_row(seed, json.loads(out)["scores"]))
    home = {"ALIGNMILL_HOME": str(folder / f"home-{seeds[0]}")}
    first = str(folder / f"seed-{seeds[0]}.yaml")
    again = [command("run", first, "--json", **home)[0] for _ in range(5)]
    served = with_server(first, home)
    check = [command("check", first, "--json", **home)[0] for _ in range(5)]
    helps = [command("--help")[0] for _ in range(5)]
    times = ["| what | bound (s) | median (s) | all (s) |", "|---|---:|---:|---|"]
    for what, bound, values in (
        ("run, empty workspace", 180, cold),
        ("run, nothing changed", 12, again),
        ("run, nothing changed, a Prefect server running", 5, served),
        ("check", 6, check),
        ("--help", 0.5, helps),
    ):
        listed = ", ".join(f"{value:.1f}" for value in values)
        times.append(f"| {what} | {bound} | {statistics.median(values):.2f} | {listed} |")
    return scores, times


def score_row(seed: int, scores: dict[str, dict[str, float]]) -> str:
    """Warm start → policy per metric, in percent, and whether every bound of the demo holds."""

    def pair(metric: str) -> tuple[float, float]:
        values = scores[metric]
        return 100 * values["warm_start"], 100 * values["policy"]

    preference = pair("holdout/preference_accuracy")
    behaviours = {name: pair(f"helpdesk_{name}/acc") for name in BEHAVIOURS}
    controls = {name: pair(f"helpdesk_{name}/acc") for name in CONTROLS}
    held = preference[0] <= 65 and preference[1] >= 97
    held &= all(after >= 85 and after - before >= 20 for before, after in behaviours.values())
    held &= all(before - after <= 2 for before, after in controls.values())
    shown = [preference, *behaviours.values(), *controls.values()]
    cells = " | ".join(f"{before:.1f} → {after:.1f}" for before, after in shown)
    return f"| {seed} | {cells} | {'hold' if held else 'BROKEN'} |"


def with_server(experiment: str, home: dict[str, str]) -> list[float]:
    """Times of an unchanged run with both page servers up, as ``alignmill ui`` starts them."""
    environment = os.environ | home
    pages = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "ui", "--json", "--prefect-port", "4271", "--mlflow-port", "5071"],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert pages.stdout is not None
        address = json.loads(pages.stdout.readline())["prefect"]
        return [command("run", experiment, "--json", **home, PREFECT_API_URL=f"{address}/api")[0] for _ in range(5)]
    finally:
        pages.terminate()
        pages.wait()


def machine() -> str:
    """Date, processor, cores, memory and the versions that matter."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", "prefect", "mlflow", "lm_eval")
    )
    size = f"{os.cpu_count()} cores, {memory:.0f} GiB"
    return f"{time.strftime('%Y-%m-%d')}; {cpu}, {size}; Python {platform.python_version()}, {packages}"


def write_section(title: str, body: list[str]) -> None:
    """Replace (or add) one section of RESULTS.md, the others stay."""
    text = (
        RESULTS.read_text()
        if RESULTS.exists()
        else "# Results\n\nEach section is written by the command that it names.\n"
    )
    head, _, rest = text.partition(f"\n## {title}\n")
    _, mark, after = rest.partition("\n## ")
    RESULTS.write_text(f"{head.rstrip()}\n\n## {title}\n\n" + "\n".join(body) + "\n" + (mark + after if mark else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="5,6,7")
    seeds = [int(seed) for seed in parser.parse_args().seeds.split(",")]
    with tempfile.TemporaryDirectory(prefix="alignmill-demo-") as folder:
        scores, times = measure(seeds, Path(folder))
    how: list[Any] = [
        f"`python -m tests.benchmarks.demo --seeds {','.join(map(str, seeds))}` ({machine()}).",
        "",
        "Held-out scores in percent, warm start → policy. Bounds: preference from at most 65 to at least 97; each",
        "behaviour 20 points up and at least 85; allowed and facts at most 2 down.",
        "",
        *scores,
        "",
        "Times of whole commands:",
        "",
        *times,
    ]
    write_section("The demo", how)


if __name__ == "__main__":
    main()
