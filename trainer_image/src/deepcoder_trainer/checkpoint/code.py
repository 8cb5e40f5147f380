"""A digest of the trainer's own source, so that a manifest says which code made it."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import deepcoder_trainer


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
