"""The data layer's bounds, measured: ``python -m tests.benchmarks.data [--rows 100000,1000000]`` writes its section of
RESULTS.md.

Pairs of about 1 kB in gzip JSONL files (of 100,000 rows each, in one folder) are written by a seeded script: words of a
vocabulary with the frequencies of a language, so that hashing and compression do honest work, and some faults. Each
measurement runs in a fresh process; the memory is the greatest sum of the resident sizes of that process and its children.
"""

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.demo import machine, write_section

ROOT = Path(__file__).resolve().parents[2]
FILE_ROWS = 100_000
BLOCK = 5_000
FAULTY = 0.02  # of the rows; a kind each in turn
WORDS = 30_000
BOUNDS = {100_000: (30.0, 4.0), 1_000_000: (240.0, 4.0), 5_000_000: (1320.0, 6.0)}  # seconds, GiB


# ------------------------------------------------------------------------------------------------ the data


def vocabulary(seed: int) -> list[str]:
    """Words of one to four syllables, the short ones first (they are the frequent ones)."""
    import numpy as np

    random = np.random.default_rng(seed)
    syllables = [
        a + b + c
        for a in ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "st", "tr"]
        for b in "aeiou"
        for c in ("", "n", "r", "s")
    ]
    found: dict[str, None] = {}
    while len(found) < WORDS:
        found["".join(random.choice(syllables, random.integers(1, 5)))] = None
    return sorted(found, key=len)


def rows(count: int, seed: int) -> Iterator[bytes]:
    """Lines of JSON: prompt, chosen and rejected, together about 1 kB; ``FAULTY`` of them are not clean."""
    import numpy as np

    random = np.random.default_rng(seed)
    words = np.array(vocabulary(0), dtype=object)
    weights = 1.0 / np.arange(10, WORDS + 10)
    cumulated = np.cumsum(weights / weights.sum())
    number = 0
    for start in range(0, count, BLOCK):
        here = min(BLOCK, count - start)
        lengths = random.integers((8, 40, 40), (24, 96, 96), (here, 3))
        drawn = words[np.minimum(np.searchsorted(cumulated, random.random(int(lengths.sum()))), WORDS - 1)]
        texts = iter(np.split(drawn, np.cumsum(lengths.ravel())[:-1]))
        for unlucky in random.random(here) < FAULTY:
            row = {name: " ".join(next(texts)).capitalize() + "." for name in ("prompt", "chosen", "rejected")}
            number += bool(unlucky)
            yield FAULTS[number % len(FAULTS)](row, number) if unlucky else _line(row)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


FAULTS: tuple[Callable[[dict[str, str], int], bytes], ...] = (
    lambda row, i: _line(row)[:-20] + b"\n",  # broken
    lambda row, i: _line(row) * 2,  # twice
    lambda row, i: _line(row | {"chosen": "  "}),
    lambda row, i: _line(row | {"rejected": row["chosen"]}),
    lambda row, i: _line(row | {"chosen": f"{row['chosen']} Write to person{i}@example.org."}),
    lambda row, i: _line(row | {"chosen": row["chosen"] + "\ufffd"}),
    lambda row, i: _line(row) + _line(row | {"chosen": row["rejected"], "rejected": row["chosen"]}),  # and its opposite
    lambda row, i: _line(row | {"prompt": row["prompt"] + "\x07"}),
)


def write_data(folder: Path, count: int) -> None:
    """``count`` rows (and those that faults add) as gzip files of ``FILE_ROWS``."""
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, count, FILE_ROWS)):
        with gzip.open(folder / f"pairs-{number:03d}.jsonl.gz", "wb", compresslevel=4) as file:
            file.writelines(rows(min(FILE_ROWS, count - start), number + 1))


# ------------------------------------------------------------------------------------------------ one measurement


def stages(work: Path, out: Path, processes: int, only_snapshot: bool) -> dict[str, Any]:
    """Snapshot and validation of ``work/data``, in this process and its workers; seconds by stage, and what came out."""
    from tasks.lineage import merkle
    from training.data.settings import Source
    from training.data.snapshot import write_snapshot

    took: dict[str, float] = {}
    began = time.perf_counter()
    facts = write_snapshot([Source(path="data", licence="CC0-1.0")], work, out / "snapshot", work / "cache", processes)
    took["snapshot"] = time.perf_counter() - began
    began = time.perf_counter()
    root = merkle.root(facts.leaves())
    took["root"] = time.perf_counter() - began
    found = {"seconds": took, "rows": facts.rows, "cached": facts.cached, "root": str(root), "segments": facts.segments}
    if not only_snapshot:
        began = time.perf_counter()
        found["validation"] = validate(work, out, processes)
        took["validation"] = time.perf_counter() - began
    return found


def validate(work: Path, out: Path, processes: int) -> dict[str, Any]:
    """Every rule and measure, Great Expectations, Data Docs, quarantine and selection; counts of what was found."""
    from training.data.expectations import validate
    from training.data.profile import Context
    from training.data.settings import Holdout, ValidationSettings
    from training.digest import digest_file

    settings = ValidationSettings(use="commercial")
    last = work / "histograms.json"
    context = Context(
        processes=processes,
        cache=work / "cache" / "facts",
        tokenizer=work / "tokenizer",
        tokenizer_digest=str(digest_file(work / "tokenizer" / "tokenizer.json")),
        max_tokens={"preferences": 1024},
        benchmarks=work / "benchmarks.jsonl",
        erased=work / "erased.jsonl",
        today="2026-01-01",
        last=json.loads(last.read_text()) if last.exists() else None,
    )
    out.mkdir(parents=True, exist_ok=True)
    report = validate({"preferences": out / "snapshot"}, settings, Holdout(share=0.1), out, context)
    if not last.exists():
        last.write_text(json.dumps(report.as_json()["histograms"]))
    broken = {name: count for name, count in report.as_json()["parts"]["preferences"]["rules"].items() if count}
    return {"rows": report.rows, "kept": report.kept, "quarantined": report.quarantined, "broken": broken}


def prepare(work: Path) -> dict[str, Any]:
    """What validation reads beside the data: a tokenizer, benchmark texts (some are in the data), an erased subject."""
    from training.models import new_model
    from training.settings import NewModel

    lines = [json.loads(line) for line in rows(2_000, 1) if line.endswith(b"}\n") and line.count(b"\n") == 1]
    texts = [text for line in lines for text in line.values()]
    small = NewModel(layers=1, hidden=8, heads=2, vocabulary=8192)
    new_model(small, 1, texts, work / "tokenizer")
    others = [
        json.loads(line)["chosen"] for line in rows(2_000, 77) if line.endswith(b"}\n") and line.count(b"\n") == 1
    ]
    items = [*(line["prompt"] for line in lines[:20]), *others]
    with open(work / "benchmarks.jsonl", "w") as file:
        for number, text in enumerate(items):
            file.write(json.dumps({"benchmark": f"b{number % 3}", "item": str(number), "text": text}) + "\n")
    (work / "erased.jsonl").write_text(json.dumps({"subject": "nobody"}) + "\n")
    return {"seconds": {}}


def nothing_new(work: Path) -> dict[str, Any]:
    """What a run does first: which data are there? The step is then found by this key."""
    from tasks.data import source_digests
    from training.data.filedigests import FileDigests
    from training.data.settings import Source

    began = time.perf_counter()
    found = source_digests((Source(path="data", licence="CC0-1.0"),), work, FileDigests(work / "cache" / "digests"))
    return {"seconds": {"digests": time.perf_counter() - began}, "digest": [str(digest) for digest in found.values()]}


# ------------------------------------------------------------------------------------------------ from outside


def measure(work: Path, *arguments: str) -> dict[str, Any]:
    """Run this module again with ``arguments``: what it prints, its seconds with all imports, its memory in GiB."""
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.data", "--in", str(work), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    most, before = 0, resource.getrusage(resource.RUSAGE_CHILDREN)
    while child.poll() is None:
        most = max(most, resident(child.pid))
        time.sleep(0.1)
    assert child.stdout is not None
    if child.returncode:
        raise SystemExit(f"the measurement {' '.join(arguments)} ended with {child.returncode}")
    told = json.loads(child.stdout.read())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**told, "wall": time.perf_counter() - began, "cpu": cpu, "gib": most / 2**30}


def resident(pid: int) -> int:
    """Bytes that a process and all below it hold in memory; what they share counts several times."""
    total = 0
    waiting = [pid]
    while waiting:
        here = waiting.pop()
        try:
            total += int(Path(f"/proc/{here}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in Path(f"/proc/{here}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:
            pass  # it has just ended
    return total


def series(work: Path, count: int, processes: int, only_snapshot: bool) -> list[tuple[str, dict[str, Any]]]:
    """The measurements of one size, as (what, found)."""
    write_data(work / "data", count)
    time.sleep(3)  # what was written this moment may change again unseen, so its digest would not be remembered
    if not only_snapshot:
        measure(work, "--stage", "prepare")
    how = ["--processes", str(processes), *(["--only-snapshot"] if only_snapshot else [])]
    found = [("everything new", measure(work, "--stage", "all", "--out", str(work / "first"), *how))]
    found.append(("nothing new", measure(work, "--stage", "nothing")))
    found.append(("nothing new, no step recorded", measure(work, "--stage", "all", "--out", str(work / "again"), *how)))
    with gzip.open(work / "data" / "pairs-new.jsonl.gz", "wb") as file:
        file.writelines(rows(1000, 99_001))
    found.append(("1,000 rows in a new file", measure(work, "--stage", "all", "--out", str(work / "file"), *how)))
    with open(work / "data" / "pairs-000.jsonl.gz", "ab") as file:
        file.write(gzip.compress(b"".join(rows(1000, 99_002))))
    found.append(("1,000 rows appended", measure(work, "--stage", "all", "--out", str(work / "appended"), *how)))
    first, again = found[0][1], found[2][1]
    assert (first["root"], first["rows"]) == (again["root"], again["cached"]), "the cache gave another snapshot"
    return found


def table(results: dict[int, list[tuple[str, dict[str, Any]]]]) -> list[str]:
    lines = [
        "| rows | what | bound (s) | wall (s) | CPU (s) | by stage (s) | memory (GiB) | bound (GiB) | rows read |",
        "|---:|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for count, found in results.items():
        for what, told in found:
            bound = {"everything new": BOUNDS.get(count, (0, 0))[0], "nothing new": 1}.get(
                what, 10 if "rows" in what else ""
            )
            shown = ", ".join(f"{name} {seconds:.2f}" for name, seconds in told["seconds"].items())
            read = f"{told['rows'] - told['cached']:,}" if "rows" in told else ""
            size = BOUNDS.get(count, (0, ""))[1]
            lines.append(
                f"| {count:,} | {what} | {bound} | {told['wall']:.1f} | {told['cpu']:.1f} | {shown} | {told['gib']:.2f} | {size} "
                f"| {read} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", default="100000,1000000", help="sizes, with commas; 5000000 takes half an hour and 6 GB of disk"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--only-snapshot", action="store_true", help="without validation; nothing is written to RESULTS.md"
    )
    parser.add_argument("--in", dest="work", help=argparse.SUPPRESS)
    parser.add_argument("--stage", choices=["all", "nothing", "prepare"], help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stage == "all":
        print(json.dumps(stages(Path(asked.work), Path(asked.out), asked.processes, asked.only_snapshot)))
        return
    if asked.stage == "nothing":
        print(json.dumps(nothing_new(Path(asked.work))))
        return
    if asked.stage == "prepare":
        print(json.dumps(prepare(Path(asked.work))))
        return
    results = {}
    for count in map(int, asked.rows.split(",")):
        with tempfile.TemporaryDirectory(prefix="alignmill-data-") as folder:
            results[count] = series(Path(folder), count, asked.processes, asked.only_snapshot)
    lines = table(results)
    print("\n".join(lines))
    if not asked.only_snapshot:
        how = [
            f"`python -m tests.benchmarks.data --rows {asked.rows} --processes {asked.processes}` ({machine()}).",
            "",
            "Pairs of about 1 kB from gzip JSONL; every rule on. Wall: the whole process with its imports. Memory: the",
            "greatest sum of the resident sizes of the process and its workers.",
            "",
        ]
        write_section("Data", [*how, *lines])


if __name__ == "__main__":
    main()
