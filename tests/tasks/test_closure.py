"""The digest of a step's sources follows every import and sees every byte."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.lineage import closure

TREE = {
    "training/__init__.py": "",
    "training/top.py": "import json\nimport torch\n\ndef run():\n    from training import deep\n    deep.run()\n",
    "training/deep.py": "import training.data.rows as rows\nif rows:\n    from tasks.lineage import store\n",
    "training/data/__init__.py": "# a package\n",
    "training/data/rows.py": "from training import top\n",
    "training/stranger.py": "",
    "tasks/__init__.py": "",
    "tasks/lineage/__init__.py": "",
    "tasks/lineage/store.py": "",
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small project: ``top`` imports ``deep`` inside a function, ``deep`` imports ``rows``, which imports ``top``."""
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(closure, "ROOT", tmp_path)
    closure.imports.cache_clear()
    yield tmp_path
    closure.imports.cache_clear()


def test_the_closure_follows_imports_inside_functions_and_in_circles(tree: Path) -> None:
    found = {path.relative_to(tree).as_posix() for path in closure.closure("training.top")}
    assert found == set(TREE) - {"training/stranger.py"}


def test_the_closure_of_a_leaf_is_it_and_its_packages(tree: Path) -> None:
    found = {path.relative_to(tree).as_posix() for path in closure.closure("tasks.lineage.store")}
    assert found == {"tasks/__init__.py", "tasks/lineage/__init__.py", "tasks/lineage/store.py"}


@pytest.mark.parametrize("name", sorted(set(TREE) - {"training/stranger.py"}))
def test_a_changed_byte_of_an_imported_file_changes_the_digest(tree: Path, name: str) -> None:
    before = closure.code_digest("training.top")
    (tree / name).write_text(TREE[name] + "#")
    assert closure.code_digest("training.top") != before
    (tree / name).write_text(TREE[name])
    assert closure.code_digest("training.top") == before


def test_a_file_that_is_not_imported_changes_nothing(tree: Path) -> None:
    before = closure.code_digest("training.top")
    (tree / "training" / "stranger.py").write_text("changed = True\n")
    assert closure.code_digest("training.top") == before


def test_a_renamed_file_changes_the_digest_and_the_place_of_the_tree_does_not(tree: Path, tmp_path: Path) -> None:
    import shutil

    before = closure.code_digest("training.top")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closure, "ROOT", Path(shutil.copytree(tree, tmp_path / "elsewhere")))
        assert closure.code_digest("training.top") == before
    closure.imports.cache_clear()
    (tree / "training" / "data" / "rows.py").rename(tree / "training" / "data" / "lines.py")
    (tree / "training" / "deep.py").write_text(TREE["training/deep.py"].replace("rows as", "lines as"))
    assert closure.code_digest("training.top") != before


def test_several_modules_are_one_digest_in_any_order(tree: Path) -> None:
    one = closure.code_digest("training.stranger", "tasks.lineage.store")
    assert (
        one
        == closure.code_digest("tasks.lineage.store", "training.stranger")
        != closure.code_digest("training.stranger")
    )


def test_a_module_that_is_not_ours_has_no_digest() -> None:
    with pytest.raises(ValueError, match="no project source stands behind json, torch"):
        closure.code_digest("json", "torch")


def test_the_real_training_step_covers_its_losses_and_not_the_tasks() -> None:
    found = {path.relative_to(closure.ROOT).as_posix() for path in closure.closure("training.preference")}
    assert {"training/losses/dpo.py", "training/loop.py", "training/data/encode.py", "training/models.py"} <= found
    assert not any(name.startswith(("tasks/", "flows/", "evaluation/")) for name in found)


def test_versions_name_python_and_what_is_absent() -> None:
    import platform

    found = closure.packages("pytest", "no-such-package")
    assert found == {"python": platform.python_version(), "pytest": pytest.__version__, "no-such-package": "absent"}
