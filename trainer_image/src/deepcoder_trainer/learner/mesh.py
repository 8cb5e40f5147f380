"""Which ranks do what: `dp` groups of `sp` ranks, each group sharing the tokens of its micro-batches.

Ranks of a group are neighbours (rank = dp_rank * sp + sp_rank), so that their all-to-all stays within a machine where
one holds a whole group. Parameters are sharded over all ranks alike, whatever the group. Nothing here is arithmetic: a
checkpoint knows neither dp nor sp. Fails with ValueError where the ranks do not divide into groups.
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

    dp: int = 1
    """Number of groups."""

    sp: int = 1
    """Ranks of one group."""

    dp_rank: int = 0
    """Which group this rank is of."""

    sp_rank: int = 0
    """Its place in the group, and which slice of each row of tokens it has."""

    sp_group: dist.ProcessGroup | None = None
    """The ranks of its group; None where it is alone in it."""


def build_meshes(device_type: str, world: int, rank: int, sp: int, timeout: timedelta | None = None) -> Meshes:
    """Collective. The place of `rank` among `world`; without a process group that of a rank alone."""
    if world % sp:
        raise ValueError(f"{world} learner ranks do not divide into groups of recipe.sequenceParallel = {sp}")
    if not dist.is_initialized():
        return Meshes()
    group = dist.new_subgroups(sp, timeout=timeout)[0] if sp > 1 else None
    return Meshes(init_device_mesh(device_type, (world,)), world // sp, sp, rank // sp, rank % sp, group)
