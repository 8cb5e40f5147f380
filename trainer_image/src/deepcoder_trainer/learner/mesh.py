"""Groups of `sp` ranks that share the tokens of their micro-batches.

Ranks of a group are neighbours (rank = group * sp + place in it), so their all-to-all stays within a machine that holds
a whole group. Parameters are sharded over all ranks, regardless of groups, so a checkpoint does not depend on groups.
Raises ValueError if the ranks do not divide into groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@dataclass(frozen=True)
class Meshes:
    """A rank's process groups."""

    fsdp: DeviceMesh | None = None
    """All ranks, over which parameters are sharded; None without a process group."""

    sp_group: dist.ProcessGroup | None = None
    """The ranks of its group, by whose order each has a slice of a row of tokens; None where it is alone in it."""


def build_meshes(device_type: str, world: int, sp: int, timeout: timedelta | None = None) -> Meshes:
    """Collective. This rank's among `world`; without a process group those of a rank alone."""
    if world % sp:
        raise ValueError(f"{world} learner ranks do not divide into groups of recipe.sequenceParallel = {sp}")
    if not dist.is_initialized():
        return Meshes()
    group = dist.new_subgroups(sp, timeout=timeout)[0] if sp > 1 else None
    return Meshes(init_device_mesh(device_type, (world,)), group)
