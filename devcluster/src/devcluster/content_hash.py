"""Content hashes: what was built from the same inputs is never built again.

Pure, except that it reads the named files. A missing file is an error, never an empty hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

LENGTH = 16
_GENERATED = ("__pycache__", ".egg-info", ".mypy_cache", ".ruff_cache", ".pytest_cache")


def digest(*parts: str | bytes) -> str:
    """Hash of `parts` in order; lengths are hashed too, so that moving a boundary changes the result."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()[:LENGTH]


def source_files(root: Path, relative: str) -> list[Path]:
    """Files under `root/relative`, or that file itself, sorted, without files that tools generate among sources."""
    start = root / relative
    if start.is_file():
        return [start]
    if not start.is_dir():
        raise FileNotFoundError(f"{relative} does not exist in {root}")
    return sorted(
        path
        for path in start.rglob("*")
        if path.is_file() and not any(part.endswith(_GENERATED) for part in path.relative_to(root).parts)
    )


def tree_digest(root: Path, relatives: Iterable[str], *extra: str) -> str:
    """Hash of names, modes (executable or not) and contents of all files under `relatives`, and of `extra`."""
    parts: list[str | bytes] = [*extra]
    for relative in relatives:
        for path in source_files(root, relative):
            executable = "x" if path.stat().st_mode & 0o100 else "-"
            parts += [f"{path.relative_to(root)}:{executable}", path.read_bytes()]
    return digest(*parts)
