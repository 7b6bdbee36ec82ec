"""A snapshot in a process of its own, for the tests that kill it: ``python -m … ROOT OUT PROCESSES``; prints what came out."""

import json
import sys
from pathlib import Path

from tasks.lineage import merkle
from training.data import rows, segment_cache
from training.data.settings import Source
from training.data.snapshot import write_snapshot

if __name__ == "__main__":
    rows.CHUNK_ROWS = segment_cache.SEGMENT = 50
    segment_cache.GROWS_FROM = (1, 1)
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.parent.joinpath("started").touch()
    facts = write_snapshot([Source(path="data")], root, out, root / "cache", int(sys.argv[3]))
    print(json.dumps({"root": str(merkle.root(facts.leaves())), "rows": facts.rows, "cached": facts.cached}))
