"""Which of our sources a step runs, and their digest: found by following imports in the syntax tree, nothing is run."""

import ast
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

from training.digest import Digest, digest_file, digest_json

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("training", "evaluation", "tasks", "flows")


def code_digest(*modules: str) -> Digest:
    """The digest of all project sources that ``modules`` import, directly or not, those modules included."""
    return digest_json(
        {path.relative_to(ROOT).as_posix(): str(digest_file(path)) for path in sorted(closure(*modules))}
    )


def closure(*modules: str) -> set[Path]:
    """The project files that ``modules`` reach by imports, at any depth and inside functions too."""
    found: set[Path] = set()
    waiting = [path for module in modules for path in _files(module)]
    if not waiting:
        raise ValueError(f"no project source stands behind {', '.join(modules)}")
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [target for module in imports(path) for target in _files(module)]
    return found


@cache
def imports(path: Path) -> frozenset[str]:
    """The absolute names that a source file imports; ``from a import b`` gives both ``a`` and ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def _files(module: str) -> list[Path]:
    """A module's file and its packages' ``__init__.py``; nothing for what is not ours."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return []
    inits = [ROOT.joinpath(*parts[:i], "__init__.py") for i in range(1, len(parts) + 1)]
    return [path for path in [*inits, ROOT.joinpath(*parts).with_suffix(".py")] if path.is_file()]


@cache
def packages(*names: str) -> dict[str, str]:
    """Versions of Python and of installed packages; what is not installed reads "absent"."""
    return {"python": python_version()} | {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
