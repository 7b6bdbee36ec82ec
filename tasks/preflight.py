"""What can be refused before anything is started or written: missing files, unknown benchmarks, rules about nothing."""

from pathlib import Path

from evaluation.catalogue import find_benchmark
from evaluation.gate import CHOSEN_LOGPS, COLLAPSE_METRICS, check_rules
from evaluation.heldout import BENCHMARK as HOLDOUT
from evaluation.heldout import METRICS
from evaluation.settings import BenchmarkSettings, GateSettings
from evaluation.settings import Refused as BenchmarkRefused
from tasks.benchmarks import include_folder
from tasks.data import parts_of
from training.data.settings import DataSettings
from training.models import check_local, local_folder
from training.settings import ModelSettings
from training.strict import Refused


def preflight(
    root: Path, model: ModelSettings, data: DataSettings, benchmarks: BenchmarkSettings, gate: GateSettings
) -> None:
    """Raise Refused with everything that is wrong, at once."""
    problems = [*data_problems(root, data), *_model(root, model), *_benchmarks(root, benchmarks, gate)]
    if problems:
        raise Refused("\n".join(problems))


def data_problems(root: Path, data: DataSettings) -> list[str]:
    """What is wrong with the sources' files. A hub data set is left to the snapshot: it may have to be fetched."""
    from training.data.files import expand

    problems = []
    for sources in parts_of(data).values():
        for source in sources:
            if source.path is None:
                continue
            try:
                expand(source, root)
            except Refused as refusal:
                problems.append(_missing(root / source.path) or f"data: {refusal}")
    return problems


def _missing(path: Path) -> str:
    """What stands beside a file that does not exist; empty where the path is a pattern, or it exists."""
    if path.exists() or set("*?[") & set(str(path)):
        return ""
    near = sorted(p.name for p in path.parent.iterdir() if p.is_file())[:8] if path.parent.is_dir() else []
    beside = f"; beside it are {', '.join(near)}" if near else ""
    return f"data: {path} does not exist{beside}; paths are relative to the experiment file"


def _model(root: Path, model: ModelSettings) -> list[str]:
    if model.new is not None:
        return []
    folder = local_folder(model, root)
    if folder is None:
        return []
    try:
        check_local(folder)
    except Refused as refusal:
        return [str(refusal)]
    return []


def _benchmarks(root: Path, settings: BenchmarkSettings, gate: GateSettings) -> list[str]:
    include = include_folder(settings, root)
    known = {f"{HOLDOUT}/{metric}" for metric in METRICS} | {CHOSEN_LOGPS, *COLLAPSE_METRICS}
    open_benchmarks, problems = set(), []
    if include is not None and not include.is_dir():
        return [f"benchmarks.include: {include} is no folder; name the one with your benchmark YAML files"]
    for name in settings.names:
        try:
            found = find_benchmark(name, include)
        except BenchmarkRefused as refusal:
            problems.append(f"benchmarks.names: {refusal}")
            continue
        known |= set(found.names)
        open_benchmarks |= {name} if found.open_metrics else set()
    if not problems:
        try:
            check_rules(gate, known, open_benchmarks)
        except BenchmarkRefused as refusal:
            problems.append(str(refusal))
    return problems
