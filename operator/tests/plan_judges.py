"""Pools of a simulated cluster whose judges refuse to start, or do not come."""

from __future__ import annotations

from dataclasses import replace

from plan_world import Cluster

from deepcoder_operator.domain.pool_status import JUDGES_REFUSE
from deepcoder_operator.domain.world import PoolView

WORDS = "no judge can start; 1 of 1 pods: CrashLoopBackOff: exit code 64: the root is read-only"
PULL = "no judge is ready; 1 of 1 pods: ErrImagePull: no such image"


def refusing(pool: PoolView | None) -> PoolView:
    assert pool is not None
    return replace(pool, ready=False, stuck_reason=JUDGES_REFUSE, message=WORDS)


def without_judges(cluster: Cluster) -> None:
    """The pool's image cannot be pulled, from now on."""
    assert cluster.pool is not None
    cluster.pool = replace(cluster.pool, ready=False, message=PULL, unready_since=cluster.now)
