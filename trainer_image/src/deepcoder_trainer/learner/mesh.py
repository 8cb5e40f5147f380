"""Builds the sequence-parallel groups: `sp` ranks that share the tokens of their micro-batches.

Ranks of a group are neighbours (rank = group * sp + position in the group), so their all-to-all stays on one machine if
that holds the whole group. Parameters are sharded over all ranks regardless of groups, so a checkpoint does not depend
on `sp`. Raises ValueError if the number of ranks is not a multiple of `sp`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@dataclass(frozen=True)
class Meshes:
    """The process groups of one rank."""

    fsdp: DeviceMesh | None = None
    """All ranks, over which parameters are sharded; None without a process group."""

    sp_group: dist.ProcessGroup | None = None
    """The ranks that share a row of tokens, in the order of their slices; None if `sp` is 1."""


def build_meshes(device_type: str, world: int, sp: int, timeout: timedelta | None = None) -> Meshes:
    """Collective. Build this rank's groups among `world` ranks; empty if torch.distributed is not initialized."""
    if world % sp:
        raise ValueError(f"{world} learner ranks do not divide into groups of recipe.sequenceParallel = {sp}")
    if not dist.is_initialized():
        return Meshes()
    group = dist.new_subgroups(sp, timeout=timeout)[0] if sp > 1 else None
    return Meshes(init_device_mesh(device_type, (world,)), group)
