"""Mutated sources, each made from a seed, and what the readers may do with them: a child process of the fuzz test.

``python -m tests.training.data.fuzzing FOLDER FIRST COUNT`` reads COUNT sources made from the seeds FIRST, FIRST + 1, …
under limits on memory and time, and prints one JSON object: how many were refused, of what, how many lines were records
and how many were not, the slowest source and the most memory. Any other exception, a line that is not accounted for, a
source that takes more than ``SECONDS`` ends it with an error that names the seed.
"""

import json
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.training.data.mutated import FREE, Case, case
from training.data import containers
from training.data.records import Record
from training.data.settings import Source
from training.data.sources import Unreadable, read
from training.digest import canonical_json
from training.strict import Refused

SECONDS = 60  # of the processor, for one source; and ten times as long by the clock: machines do other things too
MEMORY = 6 * 2**30  # bytes of address space, most of it libraries'


def check(found: Case, source: Source, folder: Path) -> Counter[str]:
    """Read the source to its end. Raises AssertionError where a line is lost."""
    told: Counter[str] = Counter({f"{found.kind} sources": 1})
    before: dict[str, int] = {}
    try:
        for line in read(source, folder).lines:
            where = line.provenance
            assert where.line > before.get(where.source, 0), "lines are numbered upwards"
            before[where.source] = where.line
            assert isinstance(line.content, Record | Unreadable)
            assert len(line.content.id) == 64
            if isinstance(line.content, Unreadable):
                assert line.content.reason and len(line.content.reason) < 500
                json.dumps(line.content.excerpt).encode()
                told["unreadable"] += 1
            else:
                assert line.content.payload_bytes == canonical_json(line.content.payload())
                told["records"] += 1
    except Refused as refusal:
        assert 20 < len(str(refusal)) < 1500 and "\n" not in str(refusal), str(refusal)[:2000]
        told["refused"] += 1
        if found.kind in ("bomb", "columns"):
            told[f"{found.kind} refused"] += 1
        # All lines of a file that holds no record have been told before it is refused.
        if "not one line can be read" not in str(refusal):
            return told
    if found.lines is not None and not source.columns:
        assert told["records"] + told["unreadable"] == found.lines, f"{found.lines} lines, but {told}"
    return told


def _late(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


def main(folder: Path, first: int, count: int) -> None:
    containers.MAX_FREE = FREE
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _late)
    signal.signal(signal.SIGPROF, _late)
    told: Counter[str] = Counter()
    slowest = (0.0, 0)
    for seed in range(first, first + count):
        here = folder / str(seed)
        here.mkdir(parents=True)
        signal.alarm(10 * SECONDS)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            found, source = case(seed, here)
            start = time.process_time()
            told += check(found, source, here)
        except BaseException:
            print(f"seed {seed}", file=sys.stderr)
            raise
        finally:
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, (time.process_time() - start, seed))
        shutil.rmtree(here)
    # Not ``ru_maxrss``: a process begins with the peak of the one that started it.
    status = Path("/proc/self/status").read_text()
    most = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(
        json.dumps(
            {**told, "slowest_seconds": round(slowest[0], 2), "slowest_seed": slowest[1], "most_mib": round(most)}
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
