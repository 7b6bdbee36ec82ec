"""The cache of reference numbers: by content, for every later run; whole or passed over; the same bytes after any kill."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training import naive
from tests.training.tiny import LORA, Tiny, job, preference_settings, profile, weights
from tests.training.workers import ignore
from training import preference, reference
from training.models import load_model
from training.processes import World
from training.reference import Cache, check_start, keys, model_digest, reference_totals, row_key, score_rows
from training.scorer import Scorer, make_scorer
from training.settings import Profile

HERE = Path(__file__).resolve().parents[2]
ROWS = naive.rows()
IDS = st.lists(st.integers(0, 2**40), max_size=5)


def numbers(start: int, count: int) -> dict[bytes, float]:
    return {hashlib.sha256(str(i).encode()).digest(): -0.5 * i for i in range(start, start + count)}


def cache(folder: Path) -> tuple[Cache, list[str]]:
    told: list[str] = []
    return Cache(folder, lambda event: told.append(event["message"])), told


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return make_scorer(naive.model("llama"), ROWS, Profile(threads=1), ignore)


# ------------------------------------------------------------------------------------------------ keys


@given(IDS, IDS, IDS, IDS)
def test_a_key_is_the_ids_and_where_the_prompt_ends(a: list[int], b: list[int], c: list[int], d: list[int]) -> None:
    assert (row_key(a, b) == row_key(c, d)) == (a == c and b == d)
    assert len(row_key(a, b)) == 32 and row_key(tuple(a), tuple(b)) == row_key(a, b)


def test_a_key_is_the_one_that_is_written_down_here() -> None:
    # Whoever changes it throws every stored number away: SHA-256 of 8-byte little-endian numbers 2 | 5 6 | 7.
    stem = b"".join(n.to_bytes(8, "little") for n in (2, 5, 6, 7))
    assert row_key([5, 6], [7]) == hashlib.sha256(stem).digest()


def test_the_digest_is_of_the_weights_and_not_of_the_path(tiny: Tiny, tmp_path: Path) -> None:
    def digest(folder: Path, attention: str = "x", bits: int | None = None, **other: Any) -> str:
        return model_digest(folder, Profile(**other), attention, bits)

    copied = Path(shutil.copytree(tiny.base, tmp_path / "elsewhere" / "under another name"))
    same = digest(tiny.base)
    assert digest(copied) == same
    assert digest(copied, threads=1, layout="packed", token_budget=99, processes=1) == same  # these change no number
    others = [
        digest(copied, dtype="bfloat16"),
        digest(copied, dtype="pure-bfloat16"),
        digest(copied, device="cuda"),
        digest(copied, attention="y"),
        digest(copied, bits=4),
    ]
    (copied / "generation_config.json").write_text("{}")
    (copied / "notes.txt").write_text("later")
    assert digest(copied) == same
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    others.append(digest(copied))
    shutil.copy(tiny.base / "config.json", copied / "config.json")
    data = bytearray(weights(copied))
    data[-1] ^= 1
    (copied / "model.safetensors").write_bytes(bytes(data))
    others.append(digest(copied))
    (copied / "model.safetensors").write_bytes(weights(tiny.base))
    assert digest(copied) == same and len({same, *others}) == 8


# ------------------------------------------------------------------------------------------------ files


def test_what_was_added_is_found_in_any_part_and_any_order(tmp_path: Path) -> None:
    stored, _ = cache(tmp_path / "new" / "folder")
    first, second = numbers(0, 50), numbers(40, 30)
    assert stored.find(first) == {}
    stored.add(first)
    stored.add(second)
    assert stored.find([*reversed(first)]) == first
    some = [*list(second)[::3], *numbers(900, 3)]
    assert stored.find(some) == {key: second[key] for key in list(second)[::3]}
    assert stored.find([]) == {} and len(files(tmp_path)) == 2


@given(st.lists(st.floats(width=32, allow_nan=False, allow_subnormal=False), min_size=1, max_size=20))
def test_float32_numbers_come_back_bit_by_bit(values: list[float]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        stored, _ = cache(Path(folder))
        given = {hashlib.sha256(str(i).encode()).digest(): value for i, value in enumerate(values)}
        stored.add(given)
        found = stored.find(given)
        assert {key: value.hex() for key, value in found.items()} == {key: float(v).hex() for key, v in given.items()}


DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "one bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "one bit of a key": lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
    "something else": lambda data: b"not a tensor" * 9,
    "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_passed_over_with_a_message_and_the_rest_is_used(tmp_path: Path, damage: Any) -> None:
    stored, told = cache(tmp_path)
    stored.add(numbers(0, 9))
    (damaged,) = files(tmp_path)
    stored.add(numbers(9, 9))
    damaged.write_bytes(damage(damaged.read_bytes()))
    assert stored.find(numbers(0, 18)) == numbers(9, 9)
    assert told == [f"reference cache: {damaged} is damaged and is passed over"]
    stored.add(numbers(0, 9))  # computed again, it takes the damaged one's place
    assert stored.find(numbers(0, 18)) == numbers(0, 18) and len(told) == 1


def test_a_half_written_file_is_none(tmp_path: Path) -> None:
    stored, told = cache(tmp_path)
    stored.add(numbers(0, 3))
    (path,) = files(tmp_path)
    (tmp_path / f".partial-{path.name}-77").write_bytes(path.read_bytes()[:50])
    assert stored.find(numbers(0, 3)) == numbers(0, 3) and told == []


def child(code: str, *given: Any, **other: Any) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, given)]
    return subprocess.Popen(command, env=environment, cwd=HERE, stdout=subprocess.PIPE, text=True, **other)


WRITER = """
import sys
from pathlib import Path
from tests.training.test_reference import numbers
from training.reference import Cache
folder, first = Path(sys.argv[1]), int(sys.argv[2])
cache = Cache(folder, lambda event: print(event["message"]))
for i in range(first, first + 60, 2):
    cache.add(numbers(i, 4))
    found = cache.find(numbers(0, 400))
    assert all(found[key] == value for key, value in numbers(i, 4).items())
"""


def test_two_processes_may_write_at_the_same_time(tmp_path: Path) -> None:
    """They overlap, so that both also write the very same file."""
    children = [child(WRITER, tmp_path, first) for first in (0, 40)]
    assert [process.communicate()[0] for process in children] == ["", ""]
    assert [process.returncode for process in children] == [0, 0]
    stored, told = cache(tmp_path)
    assert stored.find(numbers(0, 102)) == numbers(0, 102) and told == []
    assert all(not path.name.startswith(".partial") for path in tmp_path.iterdir())


def test_two_threads_of_one_process_may_write_the_same_numbers(tmp_path: Path) -> None:
    """As two containers may in one folder: the number of the process does not tell them apart."""
    errors: list[BaseException] = []

    def write() -> None:
        try:
            for i in range(60):
                Cache(tmp_path, ignore).add(numbers(i, 2))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and cache(tmp_path)[0].find(numbers(0, 61)) == numbers(0, 61)


# ------------------------------------------------------------------------------------------------ totals


def computed(scorer: Scorer, rows: Sequence[Any], caches: Sequence[Cache]) -> tuple[dict[bytes, float], int, int]:
    """(totals, computed, cached)."""
    events: list[dict[str, Any]] = []
    totals = reference_totals(scorer, scorer, rows, profile(), World(), caches, events.append)
    (facts,) = [event["facts"] for event in events if event["type"] == "facts"]
    return totals, facts["reference_computed"], facts["reference_cached"]


def test_totals_are_the_naive_ones_and_are_computed_once(scorer: Scorer, tmp_path: Path) -> None:
    stored, _ = cache(tmp_path)
    totals, fresh, known = computed(scorer, ROWS, [stored])
    wanted = {key for row in ROWS for key in keys(row)}
    assert totals.keys() == wanted and (fresh, known) == (len(wanted), 0)
    for row, expected in zip(ROWS, naive.scored(scorer.model, ROWS), strict=True):
        assert [totals[key] for key in keys(row)] == pytest.approx(expected.tolist(), abs=2e-4)
    assert computed(scorer, ROWS, [stored]) == (totals, 0, len(wanted))
    assert computed(scorer, ROWS[::-1], [stored]) == (totals, 0, len(wanted))  # in another order
    part, fresh, known = computed(scorer, ROWS[3:5], [stored])
    assert fresh == 0 and part == {key: totals[key] for row in ROWS[3:5] for key in keys(row)}
    more = naive.rows([(4, [3, 5], [1.0, 0.0])], seed=9)
    both, fresh, _ = computed(scorer, [*ROWS, *more], [stored])
    assert fresh == 2 and {key: both[key] for key in wanted} == totals


def test_a_row_of_which_something_is_known_keeps_what_is_known(scorer: Scorer, tmp_path: Path) -> None:
    stored, _ = cache(tmp_path)
    first, *others = keys(ROWS[5])
    stored.add({first: -1234.5})
    totals, fresh, known = computed(scorer, [ROWS[5]], [stored])
    assert totals[first] == -1234.5 and (fresh, known) == (len(set(others)), 1)


def test_the_first_cache_wins_and_what_is_computed_goes_to_all(scorer: Scorer, tmp_path: Path) -> None:
    near, far = cache(tmp_path / "near")[0], cache(tmp_path / "far")[0]
    (key,) = keys(ROWS[2])
    near.add({key: -1.0})
    far.add({key: -2.0})
    totals, fresh, _ = computed(scorer, ROWS, [near, far])
    assert totals[key] == -1.0
    assert near.find(totals) == totals and {**far.find(totals), key: -1.0} == totals and fresh == len(totals) - 1


def test_chunks_change_no_bit_and_are_kept_one_by_one(
    scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "CHUNK", 3)
    whole, _, _ = computed(scorer, ROWS, [cache(tmp_path / "quiet")[0]])
    assert len(files(tmp_path / "quiet")) == 3  # eight rows in chunks of three
    for stop in (1, 2):
        stored, seen = cache(tmp_path / f"killed-{stop}")[0], []

        def log(event: dict[str, Any], seen: list[Any] = seen, stop: int = stop) -> None:
            seen.append(event)
            if len(seen) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            reference_totals(scorer, scorer, ROWS, profile(), World(), [stored], log)
        again, fresh, known = computed(scorer, ROWS, [stored])
        assert again == whole and fresh > 0 and known > 0
        assert [path.name for path in files(stored.folder)] == [path.name for path in files(tmp_path / "quiet")]


def test_several_processes_score_a_share_each_and_one_writes(scorer: Scorer, tmp_path: Path) -> None:
    import copy

    whole, _, _ = computed(scorer, ROWS, [])
    told: list[list[Any]] = [[], [], []]

    def one(world: World) -> dict[bytes, float]:
        mine = copy.deepcopy(scorer)
        stored = [Cache(tmp_path / str(world.rank), ignore)]
        return reference_totals(mine, mine, ROWS, profile(), world, stored, told[world.rank].append)

    for found in naive.together(3, one):
        assert found == pytest.approx(whole, abs=1e-4)
    assert [path.parent.name for path in files(tmp_path)] == ["0"]

    def again(world: World) -> dict[bytes, float]:  # the others see an empty folder, and believe the first
        mine = copy.deepcopy(scorer)
        return reference_totals(
            mine, mine, ROWS, profile(), world, [Cache(tmp_path / str(world.rank), ignore)], told[world.rank].append
        )

    found = naive.together(3, again)
    assert found[0] == found[1] == found[2]
    assert all(events[-1]["facts"]["reference_computed"] == 0 for events in told)


def test_a_micro_batch_that_memory_is_too_small_for_is_cut_in_two(scorer: Scorer) -> None:
    asked: list[int] = []

    class Small(torch.nn.Module):
        """Has memory for so many tokens."""

        def __init__(self, limit: int) -> None:
            super().__init__()
            self.limit = limit

        def forward(self, batch: Any) -> Any:
            asked.append(batch.tokens)
            if batch.tokens > self.limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return scorer(batch)

    rows = [row for row in ROWS if scorer.batch([row]).tokens <= 40]
    whole = score_rows(scorer, scorer, rows, Profile(threads=1), World())
    halved = score_rows(Small(40), scorer, rows, Profile(threads=1), World())
    assert len(rows) > 2 and max(asked) > 40 >= min(asked)
    for one, other in zip(whole, halved, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    with pytest.raises(torch.OutOfMemoryError):
        score_rows(Small(0), scorer, rows, Profile(threads=1), World())


def test_a_wrong_number_in_a_whole_file_is_noticed_at_the_start(scorer: Scorer, tmp_path: Path) -> None:
    stored, _ = cache(tmp_path)
    stored.add({keys(ROWS[0])[0]: -7.0})
    totals, _, _ = computed(scorer, ROWS, [stored])
    with pytest.raises(RuntimeError, match="the reference is not the initial policy"):
        check_start(scorer, scorer, ROWS, totals, profile(), World())


# ------------------------------------------------------------------------------------------------ jobs


def run(tiny: Tiny, root: Path, output: str, settings: Any = None, log: Any = None, **other: Any) -> tuple[int, int]:
    """Run a job; (computed, cached)."""
    events: list[dict[str, Any]] = []
    given = job(tiny, settings or preference_settings(2), root, output, **{"cache": str(root / "cache"), **other})
    preference.run(given, log or events.append)
    found = [event["facts"] for event in events if "reference_computed" in event.get("facts", {})]
    return (found[0]["reference_computed"], found[0]["reference_cached"]) if found else (-1, -1)


def layout(name: Any, **other: Any) -> str:
    return profile().model_copy(update={"layout": name, **other}).model_dump_json()


def test_a_second_run_computes_nothing_whatever_its_loss_order_budget_layout_and_name(tiny: Tiny, root: Path) -> None:
    assert run(tiny, root, "first") == (24, 0)
    moved = Tiny(Path(shutil.copytree(tiny.folder, root / "moved")))
    assert run(tiny, root, "other loss", preference_settings(3, loss={"name": "ipo"})) == (0, 24)
    assert run(tiny, root, "lora", preference_settings(2, LORA)) == (0, 24)
    assert run(tiny, root, "other seed", seed=99) == (0, 24)
    assert run(tiny, root, "other batch", preference_settings(2, batch=3)) == (0, 24)
    assert run(tiny, root, "packed", profile=layout("packed", token_budget=64)) == (0, 24)
    assert run(moved, root, "other place") == (0, 24)
    assert run(tiny, root, "held out", preference_settings(2, early_stop={"every": 1, "share": 0.3})) == (0, 24)
    assert run(tiny, root, "without", preference_settings(2, loss={"name": "simpo"})) == (-1, -1)
    assert run(tiny, root, "cut", preference_settings(2, max_tokens=30))[1] > 0  # rows that the cut leaves alone


def test_mismatched_rows_are_cached_too(tiny: Tiny, root: Path) -> None:
    kto = preference_settings(3, loss={"name": "kto"})
    run(tiny, root, "dpo")
    fresh, known = run(tiny, root, "kto", kto)
    assert fresh > 0 and known == 24
    assert run(tiny, root, "kto again", kto) == (0, fresh + 24)
    assert run(tiny, root, "ipo", preference_settings(2, loss={"name": "ipo"})) == (0, 24)
    fewer, _ = run(tiny, root, "longer", preference_settings(6, loss={"name": "kto"}))
    assert fewer > 0  # later steps have neighbours of their own
    # The rows that were cached are the ones that a fresh run computes: the same bytes come out.
    run(tiny, root, "alone", kto, cache=str(root / "another"))
    assert weights(root / "kto again") == weights(root / "alone") == weights(root / "kto")


def test_other_weights_in_the_same_folder_find_nothing(tiny: Tiny, root: Path) -> None:
    """A retrained warm start, same path, same checkpoints folder."""
    mine = Tiny(Path(shutil.copytree(tiny.folder, root / "data")))
    assert run(mine, root, "first") == (24, 0)
    before = weights(root / "first")
    model = load_model(mine.base)
    naive.moved(model, size=0.2)
    shutil.rmtree(mine.base)
    shutil.copytree(tiny.base, mine.base)
    model.save_pretrained(mine.base)
    events: list[dict[str, Any]] = []
    shutil.rmtree(root / "first")
    shutil.rmtree(next((root / "checkpoints-first").glob("step-*")))
    assert run(mine, root, "first") == (24, 0)
    assert weights(root / "first") != before
    shutil.rmtree(mine.base)
    shutil.copytree(tiny.base, mine.base)
    assert run(mine, root, "back", log=events.append) == (-1, -1)
    assert {"reference_computed": 0, "reference_cached": 24} in [event.get("facts") for event in events]
    assert weights(root / "back") == before


@pytest.mark.parametrize("changed", [layout("shared", dtype="bfloat16"), layout("padded")], ids=["dtype", "attention"])
def test_another_dtype_or_attention_finds_nothing_in_the_same_checkpoints_either(
    tiny: Tiny, root: Path, changed: str
) -> None:
    settings = preference_settings(2, learning_rate=1e-3)
    assert run(tiny, root, "model", settings) == (24, 0)
    for step in (root / "checkpoints-model").glob("step-*"):
        shutil.rmtree(step)
    shutil.rmtree(root / "model")
    assert run(tiny, root, "model", settings, profile=changed) == (24, 0)


def test_a_damaged_cache_is_computed_again_with_a_message(tiny: Tiny, root: Path) -> None:
    run(tiny, root, "first")
    for path in files(root / "cache"):
        path.write_bytes(path.read_bytes()[:100])
    events: list[dict[str, Any]] = []
    run(tiny, root, "second", log=events.append)
    messages = [event["message"] for event in events if event["type"] == "milestone"]
    assert any("is damaged and is passed over" in message for message in messages)
    assert {"reference_computed": 24, "reference_cached": 0} in [event.get("facts") for event in events]
    assert weights(root / "second") == weights(root / "first")


KILLED = """
import json, os, signal, sys
from training import preference, reference
reference.CHUNK = 5
seen = []

def log(event):
    if event.get("message") == "reference":
        seen.append(event)
        if len(seen) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

preference.run(json.loads(open(sys.argv[1]).read()), log)
"""


def test_a_kill_in_the_middle_of_the_reference_changes_no_byte(
    tiny: Tiny, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = preference_settings(2, loss={"name": "kto"})  # whose mismatched rows come last
    monkeypatch.setattr(reference, "CHUNK", 5)
    run(tiny, root, "quiet", settings, cache=str(root / "quiet-cache"))
    given = job(tiny, settings, root, "killed", cache=str(root / "cache"))
    (root / "job.json").write_text(json.dumps(given))
    process = child(KILLED, root / "job.json", 2)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (root / "killed").exists()
    kept = {path.name for path in files(root / "cache")}
    assert len(kept) == 2
    fresh, known = run(tiny, root, "killed", settings)
    assert known >= 20 and fresh > 0
    assert weights(root / "killed") == weights(root / "quiet")
    assert {path.name for path in files(root / "cache")} == {path.name for path in files(root / "quiet-cache")} > kept


def test_numbers_are_float32_and_survive_the_way_through_a_file(scorer: Scorer, tmp_path: Path) -> None:
    fresh, _, _ = computed(scorer, ROWS, [cache(tmp_path)[0]])
    read, _, _ = computed(scorer, ROWS, [cache(tmp_path)[0]])
    assert fresh == read
    assert all(value == float(torch.tensor(value, dtype=torch.float32)) for value in fresh.values())
