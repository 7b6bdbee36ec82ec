"""Arrows point down: who may import whom, read from the syntax tree of every file."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("flows", "tasks", "training", "evaluation")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# A folder (its innermost entry counts) and what no file in it imports, at any depth of any function.
FORBIDDEN = {
    "training": {"prefect", "mlflow", "tasks", "flows", "evaluation"},
    "evaluation": {"prefect", "mlflow", "tasks", "flows", "training"},
    "tasks": {"flows"},
    "tasks/lineage": {"flows", "prefect", "mlflow", "torch"},
    "flows": {"torch", "mlflow"},
}
# Names of modules of the standard library that are taken on purpose: each is reached through its package only.
TAKEN = {"training/data/profile.py"}


def imported(source: str) -> set[str]:
    """The first part of every name that a source imports; "." for a relative import."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else str(node.module).split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            found.update(str(a.value).split(".")[0] for a in node.args if isinstance(a, ast.Constant))
    return found


def wrong(folder: str, source: str) -> set[str]:
    """What a source in ``folder`` imports and may not."""
    while folder not in FORBIDDEN:
        folder = folder.rpartition("/")[0]
    return imported(source) & FORBIDDEN[folder]


@pytest.mark.parametrize("name", NAMES)
def test_no_import_points_up_or_sideways(name: str) -> None:
    assert wrong(name.rpartition("/")[0], (ROOT / name).read_text()) == set()


@pytest.mark.parametrize("name", NAMES)
def test_imports_are_absolute(name: str) -> None:
    # The digest of a step's code follows absolute names.
    assert "." not in imported((ROOT / name).read_text())


def test_the_rule_sees_an_import_wherever_it_hides() -> None:
    assert wrong("training/data", "def f():\n    if True:\n        from mlflow.tracking import x") == {"mlflow"}
    assert wrong("tasks/lineage", "import os, torch.nn as nn") == {"torch"}
    assert wrong("evaluation", "import importlib\nimportlib.import_module('training.loop')") == {"training"}
    assert wrong("tasks", "import torch") == set()


LIGHT = {
    "training.digest, tasks.lineage.step": ("torch", "mlflow", "prefect", "pandas", "transformers", "pyarrow"),
    "tasks, tasks.child, tasks.jobs": ("torch", "mlflow", "prefect", "pandas", "transformers"),
    "training, training.data, training.losses, training.settings": ("torch", "mlflow", "prefect", "pandas"),
    "evaluation, evaluation.gate": ("torch", "mlflow", "prefect", "pandas", "lm_eval", "transformers"),
    "flows": ("torch", "mlflow", "prefect", "pandas", "pydantic"),
}


@pytest.mark.parametrize("modules, heavy", LIGHT.items(), ids=LIGHT)
def test_light_modules_import_nothing_heavy(modules: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys\nimport {modules}\nprint(*sorted(set({heavy!r}) & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.split() == []


def test_every_package_folder_is_installed() -> None:
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in FILES}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders
    assert all((ROOT / folder.replace(".", "/") / "__init__.py").is_file() for folder in folders)


def test_no_file_has_the_name_of_another_module() -> None:
    distributions = (re.split(r"[\[<>=,; ]", text)[0] for text in PROJECT["project"]["dependencies"])
    dependencies = {name.replace("-", "_") for name in distributions} | {"yaml"}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    taken = sys.stdlib_module_names | dependencies | folders
    assert "mlflow" in taken and "tasks" in taken and "json" in taken
    clash = {name for name, path in zip(NAMES, FILES, strict=True) if path.stem in taken and path.stem != "__init__"}
    assert clash <= TAKEN


@pytest.mark.parametrize("name", NAMES)
def test_every_file_says_what_it_is_for_and_only_what_speaks_to_a_person_prints(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text())
    assert ast.get_docstring(tree)
    if name.startswith("flows/") or name.rpartition("/")[0] == "tasks":
        return
    names = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert "print" not in names
