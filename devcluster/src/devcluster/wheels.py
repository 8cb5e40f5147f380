"""Local wheels that pip or uv are configured to use, kept in the cache because they determine the trainer image.

A shell without that configuration then builds the same image. A wheel has hundreds of megabytes, so at each start only
its size and time are looked at: a copy has those of what it was made of, and is made again when they differ. An image
depends on the content all the same, which is read once for each copy. Fails with OSError if they cannot be copied.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

_VARIABLES = ("UV_FIND_LINKS", "PIP_FIND_LINKS")


def found(cache: Path) -> list[Path]:
    """Wheels in the cache, and those that the environment names."""
    return [*sorted(_kept(cache).glob("*.whl")), *_offered()]


def folder(cache: Path) -> Path | None:
    """The folder in the cache with all of them, or None if there never were any."""
    kept = _kept(cache)
    first = {wheel.name: wheel for wheel in reversed(_offered())}
    for name, wheel in first.items():
        if not (kept / name).exists() or _state(kept / name) != _state(wheel):
            kept.mkdir(parents=True, exist_ok=True)
            making = kept / f".{name}.{os.getpid()}"
            shutil.copy2(wheel, making)
            making.rename(kept / name)
    return kept if kept.is_dir() else None


def contents(kept: Path) -> list[str]:
    """Name and content hash of each wheel in the folder; the hashes are remembered beside it."""
    memory = kept.with_suffix(".json")
    known = _remembered(memory)
    read: dict[str, list[str]] = {}
    for wheel in sorted(kept.glob("*.whl")):
        state = _state(wheel)
        before = known.get(wheel.name, [])
        read[wheel.name] = before if before[:1] == [state] else [state, _digest(wheel)]
    if read != known:
        making = memory.with_suffix(f".{os.getpid()}")
        making.write_text(json.dumps(read))
        making.rename(memory)
    return [f"{name} {digest}" for name, (_, digest) in read.items()]


def _offered() -> list[Path]:
    named = (word for variable in _VARIABLES for word in os.environ.get(variable, "").replace(",", " ").split())
    return [wheel for place in map(Path, named) for wheel in sorted(place.glob("*.whl"))]


def _state(wheel: Path) -> str:
    state = wheel.stat()
    return f"{state.st_size} {state.st_mtime_ns}"


def _digest(wheel: Path) -> str:
    with wheel.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _remembered(memory: Path) -> dict[str, list[str]]:
    try:
        known: dict[str, list[str]] = json.loads(memory.read_text())
    except (FileNotFoundError, ValueError):  # damaged as by a loss of power: read again
        return {}
    return known


def _kept(cache: Path) -> Path:
    return cache / "wheels"
