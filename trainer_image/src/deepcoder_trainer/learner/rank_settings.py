"""What the driver and the learner ranks share: settings, sums, file names.

It does not import torch, which costs seconds at the start of every attempt: the driver holds no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.rope import RopeScaling

LEARNER_DIR = "learner"
"""Folder of a checkpoint that holds the learner's files."""

METADATA = "metadata.json"
"""Names the tensors of a checkpoint and the files they lie in."""

Sums = dict[str, list[float]]
"""Sums over tokens, each a list (of one, or of histogram bins), that add up over ranks."""


@dataclass(frozen=True)
class RankSettings:
    """What a rank needs to know, the same on all ranks."""

    model_dir: str
    recipe: Recipe
    run_seed: int
    accelerators: bool
    threads: int | None
    """CPU threads; None: as many as the container allows."""
    collective_timeout_s: float
    rope: RopeScaling | None = None
    """Rotary positions scaled past those that the model was trained for."""


@dataclass(frozen=True)
class Rendezvous:
    """Where rank 0 listens for the others."""

    host: str
    port: int


def rank_prefix(rank: int) -> str:
    """What the names of a rank's files begin with."""
    return f"rank-{rank:05d}-"
