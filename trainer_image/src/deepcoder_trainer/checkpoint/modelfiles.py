"""Computes the digest of a model folder without a manifest: a model from a hub, or a researcher's own."""

from __future__ import annotations

import hashlib
from pathlib import Path

from deepcoder_trainer.checkpoint.storage import file_sha256

_WEIGHTS_AND_WORDS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


def model_digest(directory: Path) -> str:
    """Return a digest over names and contents of a model's weights, configuration and tokenizer."""
    files = sorted({f for pattern in _WEIGHTS_AND_WORDS for f in directory.glob(pattern)})
    lines = "".join(f"{f.name} {file_sha256(f)}\n" for f in files)
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()
