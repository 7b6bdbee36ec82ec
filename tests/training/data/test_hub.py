"""A data set of the hub at a commit, from a server that stands in for it, and then from the cache alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.data.hub_server import hub_server

COMMIT, OTHER = "a" * 40, "b" * 40
ROOT = Path(__file__).resolve().parents[3]


def rows(word: str, count: int) -> bytes:
    pairs = ({"prompt": f"{word} {i}", "chosen": "a", "rejected": "b", "x": i} for i in range(count))
    return b"".join(json.dumps(pair).encode() + b"\n" for pair in pairs)


FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "data/train-00000.jsonl": rows("train", 4),
    "data/test-00000.jsonl": rows("test", 2),
}
# The environment is read when the libraries are imported: hence another process.
PROGRAM = """
import json, sys
from training.data.sources import read
from training.data.settings import Hub, Source
from training.strict import Refused
for asked in json.loads(sys.argv[1]):
    try:
        reading = read(Source(hub=Hub(**asked)), None)
        found = [[l.provenance.source, l.provenance.line, l.content.prompt[0].content] for l in reading.lines]
        print(json.dumps([reading.form, found]))
    except Refused as error:
        print(json.dumps(["refused", str(error)]))
"""


def ask(folder: Path, endpoint: str, *asked: dict[str, Any], offline: bool = False) -> list[Any]:
    """What a process of its own reads for each of ``asked``."""
    given = {
        "HF_HOME": str(folder),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
    }
    hidden = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([{"name": "org/set", "revision": COMMIT, **one} for one in asked])],
        env={**hidden, **given, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "nothing but messages of ours is told"
    return [json.loads(line) for line in done.stdout.splitlines()]


NAME = f"hub:org/set@{COMMIT}"
TRAIN = ["pairs", [[f"{NAME}:default/train/00000-of-00001", i + 1, f"train {i}"] for i in range(4)]]
TEST = ["pairs", [[f"{NAME}:default/test/00000-of-00001", i + 1, f"test {i}"] for i in range(2)]]


def test_a_commit_is_loaded_once_and_then_read_from_the_cache(tmp_path: Path) -> None:
    with hub_server("org/set", COMMIT, FILES) as endpoint:
        train, test, split, slice_, commit, config = ask(
            tmp_path,
            endpoint,
            {},
            {"split": "test", "config": "default"},
            {"split": "dev"},
            {"split": "train[:2]"},
            {"revision": OTHER},
            {"config": "french"},
        )
    assert (train, test) == (TRAIN, TEST)
    assert split == ["refused", f"{NAME}: there is no split 'dev'; there are: test, train"]
    assert "'train[:2]' is no split's name" in slice_[1]
    # datasets itself would fall back to whichever commit is in the cache.
    assert commit[0] == "refused" and OTHER in commit[1]
    assert config[0] == "refused" and "french" in config[1]
    train, test, commit = ask(tmp_path, endpoint, {}, {"split": "test"}, {"revision": OTHER}, offline=True)
    assert (train, test) == (TRAIN, TEST)
    assert commit[0] == "refused" and "isn't in the cache" in commit[1] and "HF_HUB_OFFLINE is set" in commit[1]


def test_a_repository_s_code_never_runs(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    script = f"open({str(ran)!r}, 'w').close()\nimport datasets\nclass Set(datasets.GeneratorBasedBuilder):\n    pass\n".encode()
    with hub_server("org/set", COMMIT, {"set.py": script, "README.md": FILES["README.md"]}) as endpoint:
        ((kind, said),) = ask(tmp_path / "home", endpoint, {})
    assert kind == "refused" and said.startswith(f"{NAME}: cannot be loaded") and not ran.exists()


@pytest.mark.parametrize(
    "files", [{}, {"README.md": b"x"}, {"train.jsonl": b"{broken\n"}], ids=["none", "empty", "broken"]
)
def test_a_data_set_that_cannot_be_loaded_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    with hub_server("org/set", COMMIT, files) as endpoint:
        ((kind, said),) = ask(tmp_path, endpoint, {})
    assert kind == "refused" and said.startswith(f"{NAME}: cannot be loaded") and len(said) < 700
