"""Imports transformers without reading the same files twice.

On import, transformers reads the file list of every installed distribution, to map packages to distributions, and reads
the sources of all its models twice. This is most of the CPU time of the import. Here, the lists are read without making
an object for each path, and each source is read once; the result is the same. A version of transformers without these
functions is imported as it is.
"""

from __future__ import annotations

import csv
import functools
import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

_READS = "transformers.utils.import_utils"
"""The module of transformers that reads these files."""


@contextmanager
def fast_transformers_import() -> Iterator[None]:
    """Context in which an import of transformers reads its files only once."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == _READS else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        whole = importlib.metadata.packages_distributions
        importlib.metadata.packages_distributions = packages_distributions
        try:
            super().exec_module(module)
        finally:
            importlib.metadata.packages_distributions = whole
        read_once(module)


def packages_distributions() -> dict[str, list[str]]:
    """Return the same as `importlib.metadata.packages_distributions`, but faster."""
    found: dict[str, list[str]] = {}
    for distribution in importlib.metadata.distributions():
        packages = (distribution.read_text("top_level.txt") or "").split() or _recorded(distribution)
        name = _name(distribution) if packages else ""
        for package in packages:
            found.setdefault(package, []).append(name)
    return found


def _recorded(distribution: importlib.metadata.Distribution) -> set[str]:
    """Return a distribution's packages from its RECORD file."""
    rows = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    paths = [row[0] for row in rows if row and row[0].endswith(".py")]
    return {path.partition("/")[0] if "/" in path else path.removesuffix(".py") for path in paths}


def _name(distribution: importlib.metadata.Distribution) -> str:
    for line in (distribution.read_text("METADATA") or "").splitlines():
        if line.startswith("Name:"):
            return line.removeprefix("Name:").strip()
    return distribution.metadata["Name"]


def read_once(module: Any) -> None:
    """Patch the module: cache what it reads of each folder, and search `__all__` only at the end of a file.

    Its own cache holds 128 folders, and there are more models than that.
    """
    structure = getattr(module, "create_import_structure_from_path", None)
    if structure is not None and hasattr(structure, "__wrapped__"):
        module.create_import_structure_from_path = functools.cache(structure.__wrapped__)
    names = getattr(module, "fetch__all__", None)
    if names is not None:
        module.fetch__all__ = functools.wraps(names)(lambda text: names(text[text.rfind("\n__all__") + 1 :]))
