"""Identifies the code that grades, so that clients never take a result of other code for one of this."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from pathlib import Path

from deepcoder_contracts import judge
from deepcoder_sandbox import submission

_DIGITS = 16
_CONTRACTS = ("judge.py", "judge_time.py", "judgeable.py", "strict.py")
"""The contracts that decide on verdicts: `strict` compares, the others say what is judged and for how long."""


def hashed_files() -> list[Path]:
    """Return the source files that the version depends on."""
    contracts, own = Path(judge.__file__).parent, Path(submission.__file__).parent
    return [*(contracts / name for name in _CONTRACTS), *sorted(own.rglob("*.py"))]


@cache
def judge_version() -> str:
    """Return a digest of this package and of the contracts on judging, and the Python version that runs programs."""
    digest = hashlib.sha256()
    for path in hashed_files():
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return f"sha256:{digest.hexdigest()[:_DIGITS]} python {platform.python_version()}"
