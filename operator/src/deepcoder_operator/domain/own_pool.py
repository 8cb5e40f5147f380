"""The SandboxPool that a run has of its own lives while there is work for it.

Its judges hold CPUs, so it goes when the run is over, while it waits for a person (suspended, held), and while its
attempt has no head for longer than a moment: its queue grants no quota, or a quota or a policy refuses the pod. It
comes when the head's pod is there, so that judges start while the cluster does, and for no attempt that cannot; each is
made anew from the run's template. One that somebody has edited is kept for an attempt without a head, with as few
judges as it may have: another would be the template's again, which nobody can change, and perhaps the one whose judges
did not start. A pool that the run refers to is somebody else's and is never touched.
"""

from __future__ import annotations

from deepcoder_operator.domain.bounds import POLL_SECONDS
from deepcoder_operator.domain.draft import DeletePool, Draft, EnsurePool
from deepcoder_operator.domain.terminal import is_terminal
from deepcoder_operator.domain.world import World

KEPT_SECONDS = 60.0
"""How long judges of an attempt before are kept for one without a head: a queue with room, and KubeRay, are quicker."""


def keep_pool(draft: Draft, world: World) -> None:
    """Have the run's own pool made if there is none, and there is an attempt with a head, which may use it."""
    pool = world.pool
    if draft.run.spec.sandbox.template is None or draft.attempt.head_uid is None:
        return
    if pool_is_ending(draft, world):
        draft.look_again(POLL_SECONDS)
    elif pool is None or pool.owner_uid != draft.run.metadata.uid:
        draft.do(EnsurePool())


def release_pool(draft: Draft, world: World) -> None:
    """Delete the run's own pool if the run has no use for it now."""
    pool = world.pool
    if pool is None or pool.deleting or pool.owner_uid != draft.run.metadata.uid:
        return
    idle = is_terminal(draft.status) or draft.status.held or draft.run.spec.suspend
    if (_waits_for_head(draft) and not pool.edited) or (draft.status.attempt is None and idle):
        draft.do(DeletePool(pool.name, pool.uid))


def pool_is_ending(draft: Draft, world: World) -> bool:
    """Whether the pool from before is still there: the next attempt's is made under the same name."""
    return world.pool is not None and world.pool.deleting and world.pool.owner_uid == draft.run.metadata.uid


def _waits_for_head(draft: Draft) -> bool:
    attempt = draft.status.attempt
    if attempt is None or attempt.head_uid is not None:
        return False
    return draft.due(attempt.intended_time, KEPT_SECONDS)
