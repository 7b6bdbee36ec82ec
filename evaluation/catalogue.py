"""Which benchmark a name means and which bytes define it, without importing lm-eval or torch.

lm-eval's own index parses 14,000 YAML files (15 s). Here the top-level ``task:`` line is looked for in their text,
which takes well under a second, and only the one file that is meant (with what it includes) is parsed.
"""

import difflib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from evaluation.settings import Refused

_DECLARED = re.compile(rb"""^["']?(task|group)["']?:[ \t]*["']?([^\s"'#\[{|>]+)["']?[ \t]*(?:#.*)?\r?$""", re.MULTILINE)
_REMOTE = re.compile(r"^[a-z0-9+.-]+://", re.IGNORECASE)
_IGNORED = {"__pycache__", ".ipynb_checkpoints"}
# lm_eval.api.registry.DEFAULT_METRIC_REGISTRY: what is measured where a YAML has no metric_list.
_DEFAULT_METRICS = {
    "loglikelihood": ("perplexity", "acc"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "multiple_choice": ("acc", "acc_norm"),
    "generate_until": ("exact_match",),
}
# Readers inside the datasets library: with these, dataset_path names a format and data_files the data.
_FORMATS = {"json", "csv", "parquet", "arrow", "text", "xml"}


class Function(str):
    """The target of a ``!function`` tag, ``module.name``, not imported."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's definition: its YAML, and every local file a score depends on.

    ``metrics`` are the names that the YAML declares (``metric``, or ``metric,filter`` where there are several filters);
    ``open_metrics`` says that code of the benchmark may name others. ``remote`` is the hub data set it reads, if any:
    those bytes are not among the files. ``dataset`` holds lm-eval's dataset settings with absolute local paths.
    """

    name: str
    yaml: Path
    root: Path
    built_in: bool
    output_type: str
    metrics: tuple[str, ...]
    open_metrics: bool
    definitions: tuple[Path, ...]
    functions: tuple[Path, ...]
    data: tuple[Path, ...]
    remote: str | None
    dataset: Mapping[str, Any] = field(repr=False, hash=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """All local files: YAMLs, Python files behind ``!function``, data."""
        return (*self.definitions, *self.functions, *self.data)

    @property
    def names(self) -> tuple[str, ...]:
        """``benchmark/metric`` for each declared metric, as a gate's rules name them."""
        return tuple(f"{self.name}/{metric}" for metric in self.metrics)


def find_benchmark(name: str, include: Path | None = None) -> Benchmark:
    """The benchmark called ``name``: in the folder ``include`` first, else among lm-eval's own.

    Raises Refused where no YAML has this name (with the nearest names), where two have it, where it is a group, and
    where a file that it needs does not exist.
    """
    local: dict[str, list[Path]] = {}
    if include is not None:
        include = include.resolve()
        if not include.is_dir():
            raise Refused(f"benchmarks.include: {include} is no folder; it should hold the benchmarks' YAML files")
        local = _local_names(include)
    if name in local:
        if len(local[name]) > 1:
            found = ", ".join(str(path.relative_to(include or path)) for path in local[name])
            raise Refused(f"benchmark {name!r} is defined twice in {include}: {found}; rename one of them")
        return _describe(name, local[name][0], include or local[name][0].parent, built_in=False)
    shipped = _built_in_root()
    if (path := _built_in_names().get(name)) is not None:
        return _describe(name, path, shipped, built_in=True)
    raise Refused(_unknown(name, sorted(local), include))


def benchmark_digest_parts(benchmark: Benchmark) -> tuple[list[tuple[str, Path]], dict[str, str]]:
    """What to digest for a benchmark: (name relative to its folder, file) in order of name, and versions.

    A changed YAML, data file or metrics function changes a part; lm-eval's code stands in with its version.
    """
    prefix = "lm_eval/tasks/" if benchmark.built_in else ""
    parts = {prefix + Path(os.path.relpath(path, benchmark.root)).as_posix(): path for path in benchmark.files}
    return sorted(parts.items()), {"lm_eval": importlib.metadata.version("lm_eval")}


def _unknown(name: str, local: list[str], include: Path | None) -> str:
    near = difflib.get_close_matches(name, [*local, *_built_in_names()], n=3, cutoff=0.6)
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    where = f"{include} has: {', '.join(local) or 'none'}" if include else "no benchmarks.include folder is named"
    return f"benchmark {name!r} is not known.{guess} {where}; lm-eval ships {len(_built_in_names())} more"


def _local_names(root: Path) -> dict[str, list[Path]]:
    names: dict[str, list[Path]] = {}
    for path in _yamls(root):
        text = path.read_bytes()
        found = [match[2].decode("utf-8", "replace") for match in _DECLARED.finditer(text)]
        # A name can come from an include, or stand in a style that the pattern does not know.
        if not found and re.search(rb"\b(task|group|include)\b", text):
            try:
                merged = _merged(path)[0]
            except (Refused, yaml.YAMLError):
                continue
            found = [str(value) for key in ("task", "group") if isinstance(value := merged.get(key), str)]
        for name in found[:1]:
            names.setdefault(name, []).append(path)
    return names


@cache
def _built_in_root() -> Path:
    spec = importlib.util.find_spec("lm_eval")  # finds the package without running it
    if spec is None or spec.origin is None:
        raise Refused("lm-eval is not installed; install it with: pip install lm-eval")
    return Path(spec.origin).parent / "tasks"


@cache
def _built_in_names() -> dict[str, Path]:
    names: dict[str, Path] = {}
    for path in _yamls(_built_in_root()):
        for match in _DECLARED.finditer(path.read_bytes()):
            names.setdefault(match[2].decode("utf-8", "replace"), path)
            break
    return names


def _yamls(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - _IGNORED)
        for file in sorted(files):
            if file.endswith(".yaml"):
                yield Path(folder, file)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    pass


_Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))


def _merged(path: Path, seen: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, Path], list[Path]]:
    """A YAML with its includes as lm-eval merges them: settings, the folder each key came from, the files read."""
    path = path.resolve()
    if path in seen:
        raise Refused(f"{path} includes itself: {' > '.join(p.name for p in (*seen, path))}")
    try:
        own = yaml.load(path.read_bytes(), Loader=_Loader)
    except OSError as error:
        raise Refused(
            f"{path} cannot be read ({error.strerror}); {seen[-1] if seen else 'a benchmark'} needs it"
        ) from None
    if not isinstance(own, dict):
        raise Refused(f"{path} holds a {type(own).__name__}; a benchmark is a mapping of settings")
    settings: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    files = [path]
    includes = own.pop("include", [])
    for name in includes if isinstance(includes, list) else [includes]:
        inherited, folders, read = _merged(path.parent / name, (*seen, path))
        inherited.pop("task_list", None)
        settings |= inherited
        origin |= folders
        files += [file for file in read if file not in files]
    settings |= own
    origin |= dict.fromkeys(own, path.parent)
    return settings, origin, files


def _describe(name: str, path: Path, root: Path, built_in: bool) -> Benchmark:
    try:
        settings, origin, definitions = _merged(path)
    except yaml.YAMLError as error:
        raise Refused(f"benchmark {name!r}: {path} is no valid YAML: {' '.join(str(error).split())}") from None
    if "group" in settings and "class" not in settings:
        members = ", ".join(m if isinstance(m, str) else str(m.get("task", m)) for m in settings.get("task") or [])
        raise Refused(f"benchmark {name!r} is a group; name its benchmarks one by one: {members}")
    if settings.get("unsafe_code"):
        raise Refused(
            f"benchmark {name!r} runs code that the model wrote (unsafe_code); there is no sandbox for it here"
        )
    choices = settings.get("doc_to_choice")
    if isinstance(choices, list) and any("{{" in str(choice) for choice in choices):
        # lm-eval takes a list as it stands: every item would offer the same braces, and the score mean nothing.
        raise Refused(
            f"benchmark {name!r}: lm-eval fills no templates inside a doc_to_choice list; found {choices}. "
            "Write one template that gives the list, such as doc_to_choice: '{{[good, bad]}}'"
        )
    metrics, open_metrics = _metrics(settings)
    data: list[Path] = []
    dataset = _dataset(name, settings, origin, data)
    remote = dataset.get("dataset_path") if not data and settings.get("custom_dataset") is None else None
    return Benchmark(
        name=name,
        yaml=path,
        root=root,
        built_in=built_in,
        output_type=str(settings.get("output_type", "generate_until")),
        metrics=metrics,
        open_metrics=open_metrics,
        definitions=tuple(definitions),
        functions=tuple(_functions(settings, origin)),
        data=tuple(data),
        remote=remote if remote not in _FORMATS else None,
        dataset=dataset,
    )


def _metrics(settings: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    listed = settings.get("metric_list")
    if listed is None:
        names = list(_DEFAULT_METRICS.get(str(settings.get("output_type", "generate_until")), ()))
    else:
        names = [str(entry["metric"]).rpartition(".")[2] for entry in listed]
    by_function = listed is not None and any(isinstance(entry["metric"], Function) for entry in listed)
    filters = [str(entry["name"]) for entry in settings.get("filter_list") or []]
    if len(filters) > 1:
        names = [f"{name},{filter_}" for name in names for filter_ in filters]
    by_code = by_function or (listed is None and "process_results" in settings) or "class" in settings
    return tuple(names), by_code


def _functions(settings: Mapping[str, Any], origin: Mapping[str, Path]) -> list[Path]:
    """Python files next to the YAML behind ``!function`` tags; a tag for an installed module has no file here."""
    found: list[Path] = []

    def visit(value: Any, folder: Path) -> None:
        if isinstance(value, Function):
            path = (folder / (value.rpartition(".")[0].replace(".", "/") + ".py")).resolve()
            if path.is_file() and path not in found:
                found.append(path)
        elif isinstance(value, Mapping):
            for inner in value.values():
                visit(inner, folder)
        elif isinstance(value, list):
            for inner in value:
                visit(inner, folder)

    for key, value in settings.items():
        visit(value, origin[key])
    return found


def _dataset(name: str, settings: Mapping[str, Any], origin: Mapping[str, Path], data: list[Path]) -> dict[str, Any]:
    """``dataset_path`` and ``dataset_kwargs`` with local paths made absolute; ``data`` collects the files."""
    dataset: dict[str, Any] = {}
    source = settings.get("dataset_path")
    if isinstance(source, str):
        folder = origin["dataset_path"] / source
        if source not in _FORMATS and folder.exists():
            data += sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
            source = str(folder.resolve())
        dataset["dataset_path"] = source
    arguments = dict(settings.get("dataset_kwargs") or {})
    local = source in _FORMATS or source is None

    def absolute(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: absolute(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [absolute(inner) for inner in value]
        if not isinstance(value, str) or _REMOTE.match(value):
            return value
        folder = origin["dataset_kwargs"]
        found = sorted(Path(folder).glob(value)) if any(c in value for c in "*?[") else [folder / value]
        if not found or not all(path.is_file() for path in found):
            raise Refused(f"benchmark {name!r}: data file {value!r} does not exist in {folder}")
        data.extend(path.resolve() for path in found)
        return str(found[0].resolve()) if len(found) == 1 else [str(path.resolve()) for path in found]

    if "data_files" in arguments and local:
        arguments["data_files"] = absolute(arguments["data_files"])
    if arguments:
        dataset["dataset_kwargs"] = arguments
    return dataset
