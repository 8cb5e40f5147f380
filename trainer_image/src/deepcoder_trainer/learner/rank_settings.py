"""Settings, sums and file names that the driver and the learner ranks share.

This module does not import torch, which would cost the driver seconds at the start of every attempt.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.rope import RopeScaling

LEARNER_DIR = "learner"
"""Folder of a checkpoint that holds the learner's files."""

METADATA = "metadata.json"
"""File that lists the tensors of a checkpoint and their files."""

Sums = dict[str, list[float]]
"""Sums over tokens by metric, to be added over ranks. Each is a list: of one, or of histogram bins."""


@dataclass(frozen=True)
class RankSettings:
    """Settings that are the same on all ranks."""

    model_dir: str
    recipe: Recipe
    run_seed: int
    accelerators: bool
    threads: int | None
    """CPU threads; None: the container's limit."""
    collective_timeout_s: float
    rope: RopeScaling | None = None
    """Scaling of rotary positions beyond the length that the model was trained for."""


@dataclass(frozen=True)
class Rendezvous:
    """Address at which rank 0 listens for the other ranks."""

    host: str
    port: int


def rank_prefix(rank: int) -> str:
    """Return the prefix of the names of a rank's files."""
    return f"rank-{rank:05d}-"
