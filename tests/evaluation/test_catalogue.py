"""Which benchmark a name means and which files define it, told without lm-eval or torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.catalogue import benchmark_digest_parts, find_benchmark
from evaluation.settings import Refused


def test_a_benchmark_is_its_yaml_its_includes_its_functions_and_its_data(include: Path) -> None:
    found = find_benchmark("echo", include)
    parts, versions = benchmark_digest_parts(found)
    assert [name for name, _ in parts] == ["_base", "echo.yaml", "judge.py", "pairs.jsonl"]
    assert all(path.is_file() for _, path in parts)
    assert set(versions) == {"lm_eval"}
    assert found.names == ("echo/long",)
    assert not found.open_metrics and not found.built_in and found.remote is None


def test_data_files_are_found_from_the_yaml_not_from_where_one_stands(include: Path) -> None:
    found = find_benchmark("pairs", include)
    assert found.dataset["dataset_kwargs"]["data_files"] == {"test": str((include / "pairs.jsonl").resolve())}


def test_an_unknown_name_is_refused_with_the_nearest_and_the_local_names(include: Path) -> None:
    with pytest.raises(Refused, match="Did you mean pairs") as refusal:
        find_benchmark("pairz", include)
    assert "has: echo, pairs, prose" in str(refusal.value)


def test_a_built_in_benchmark_is_found_without_the_index() -> None:
    found = find_benchmark("blimp_anaphor_number_agreement")
    assert found.built_in and found.remote == "nyu-mll/blimp" and found.metrics == ("acc",)
    assert benchmark_digest_parts(found)[0][0][0].startswith("lm_eval/tasks/blimp/")


def test_a_local_benchmark_hides_a_built_in_one(include: Path) -> None:
    (include / "own.yaml").write_text("include: _base\ntask: hellaswag\ndoc_to_target: ''\n")
    assert not find_benchmark("hellaswag", include).built_in


def test_a_group_names_its_benchmarks(include: Path) -> None:
    (include / "all.yaml").write_text("group: all\ntask: [pairs, echo]\n")
    with pytest.raises(Refused, match="name its benchmarks one by one: pairs, echo"):
        find_benchmark("all", include)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: new\ndataset_path: json\ndataset_kwargs: {data_files: gone.jsonl}\n", "'gone.jsonl' does not exist"),
        ("task: new\ninclude: gone\n", "cannot be read"),
        ("task: new\nunsafe_code: true\n", "no sandbox"),
        ("task: new\ninclude: new.yaml\n", "includes itself"),
        ("task: new\n  bad: [\n", "no valid YAML"),
        ("task: pairs\n", "defined twice"),
        ("task: new\ndoc_to_choice: ['{{good}}', '{{bad}}']\n", "fills no templates inside a doc_to_choice list"),
    ],
)
def test_a_wrong_definition_is_refused_with_its_reason(include: Path, text: str, message: str) -> None:
    (include / "new.yaml").write_text(text)
    with pytest.raises(Refused, match=message):
        find_benchmark("pairs" if "twice" in message else "new", include)


def test_several_filters_name_several_metrics(include: Path) -> None:
    (include / "two.yaml").write_text(
        "include: _base\ntask: two\nmetric_list: [{metric: exact_match}]\n"
        "filter_list: [{name: strict, filter: []}, {name: loose, filter: []}]\n"
    )
    assert find_benchmark("two", include).metrics == ("exact_match,strict", "exact_match,loose")


def test_nothing_heavy_is_imported(include: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import evaluation.benchmarks, evaluation.samples, evaluation.gate\n"
        f"evaluation.benchmarks.find_benchmark('pairs', Path({str(include)!r}))\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & "
        "{'torch', 'transformers', 'lm_eval', 'datasets', 'numpy', 'scipy', 'prefect', 'mlflow', 'training', 'tasks'}))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"


HELPDESK = Path(__file__).parents[2] / "deployments" / "helpdesk" / "benchmarks"


@pytest.mark.parametrize("path", sorted(HELPDESK.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_benchmark_is_complete(path: Path) -> None:
    found = find_benchmark(path.stem, HELPDESK)
    assert found.names == (f"{path.stem}/acc",) and found.remote is None
    assert found.data and all(file.is_file() for file in found.files)
    assert bool(found.functions) == (found.output_type == "generate_until")
