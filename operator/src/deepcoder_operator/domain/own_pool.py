"""The life of a run's own SandboxPool: it exists only while there is work for it.

Its judges hold CPUs. So the operator deletes the pool when the run is over, while the run is suspended or held, and
while its attempt has had no head pod for more than a moment (its queue grants no quota, or a quota or policy refuses
the pod). It creates the pool, from the run's template, when the head pod exists, so that judges start together with the
cluster, but not for an attempt that cannot start.

A pool that somebody has edited is kept for an attempt without a head, with as few judges as it may have. A new pool
would have the run's immutable template again, perhaps the very one whose judges did not start. A pool that the run only
refers to belongs to somebody else and is never touched.
"""

from __future__ import annotations

from deepcoder_operator.domain.bounds import POLL_SECONDS
from deepcoder_operator.domain.draft import DeletePool, Draft, EnsurePool
from deepcoder_operator.domain.terminal import is_terminal
from deepcoder_operator.domain.world import World

KEPT_SECONDS = 60.0
"""How long the previous attempt's judges are kept for one without a head. A queue with room and KubeRay are faster."""


def keep_pool(draft: Draft, world: World) -> None:
    """Create the run's own pool if it does not exist and the attempt has a head pod."""
    pool = world.pool
    if draft.run.spec.sandbox.template is None or draft.attempt.head_uid is None:
        return
    if pool_is_ending(draft, world):
        draft.look_again(POLL_SECONDS)
    elif pool is None or pool.owner_uid != draft.run.metadata.uid:
        draft.do(EnsurePool())


def release_pool(draft: Draft, world: World) -> None:
    """Delete the run's own pool if the run does not need it now."""
    pool = world.pool
    if pool is None or pool.deleting or pool.owner_uid != draft.run.metadata.uid:
        return
    idle = is_terminal(draft.status) or draft.status.held or draft.run.spec.suspend
    if (_waits_for_head(draft) and not pool.edited) or (draft.status.attempt is None and idle):
        draft.do(DeletePool(pool.name, pool.uid))


def pool_is_ending(draft: Draft, world: World) -> bool:
    """Whether the previous pool is still being deleted. The next attempt's pool has the same name."""
    return world.pool is not None and world.pool.deleting and world.pool.owner_uid == draft.run.metadata.uid


def _waits_for_head(draft: Draft) -> bool:
    attempt = draft.status.attempt
    if attempt is None or attempt.head_uid is not None:
        return False
    return draft.due(attempt.intended_time, KEPT_SECONDS)
