"""Local wheels that pip or uv are configured to use, kept in the cache because they determine the trainer image.

A shell without that configuration then builds the same image. Fails with OSError if they cannot be copied.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_VARIABLES = ("UV_FIND_LINKS", "PIP_FIND_LINKS")


def found(cache: Path) -> list[Path]:
    """Wheels in the cache, and those that the environment names."""
    named = (word for variable in _VARIABLES for word in os.environ.get(variable, "").replace(",", " ").split())
    return [wheel for place in (_kept(cache), *map(Path, named)) for wheel in sorted(place.glob("*.whl"))]


def folder(cache: Path) -> Path | None:
    """The folder in the cache with all of them, or None if there never were any."""
    kept = _kept(cache)
    for wheel in found(cache):
        if not (kept / wheel.name).exists():
            kept.mkdir(parents=True, exist_ok=True)
            making = kept / f".{wheel.name}.{os.getpid()}"
            shutil.copyfile(wheel, making)
            making.rename(kept / wheel.name)
    return kept if kept.is_dir() else None


def _kept(cache: Path) -> Path:
    return cache / "wheels"
