"""Which ranks do what: groups of `sp` ranks, each group sharing the tokens of its micro-batches.

Ranks of a group are neighbours (rank = group * sp + place in it), so that their all-to-all stays within a machine where
one holds a whole group. Parameters are sharded over all ranks alike, whatever the group. Nothing here is arithmetic: a
checkpoint knows nothing of groups. Fails with ValueError where the ranks do not divide into groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@dataclass(frozen=True)
class Meshes:
    """A rank's place among all, and whom it talks to."""

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
