"""The release before, taken from this repository's history: its chart, and what its operator's image is made of."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

COMMIT = "1f1bb1fa681a1110ca71d25234ded5fffbe1ab70"
"""Whose CRDs lie in `released`, too."""

CHART = "helm/deepcoder-operator"
_REPOSITORY = Path(__file__).resolve().parents[2]


def unpack(directory: Path, *parts: str) -> Path:
    """Folders of its tree, in a directory; skips the test in a checkout without history."""
    command = ["git", "-C", str(_REPOSITORY), "archive", COMMIT, *parts]
    archive = subprocess.run(command, capture_output=True, timeout=60)
    if archive.returncode:
        pytest.skip(f"the release before is not in this checkout's history: {archive.stderr.decode().strip()}")
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive.stdout, check=True, timeout=60)
    return directory
