"""The SandboxPool that a run has of its own lives while there is work for it.

Its judges hold CPUs, so it goes when the run is over and while it waits for a person (suspended, held); the next
attempt makes it anew from the run's template. A pool that the run refers to is somebody else's and is never touched.
"""

from __future__ import annotations

from deepcoder_contracts.api.run_status import StagePhase
from deepcoder_operator.domain.draft import DeletePool, Draft
from deepcoder_operator.domain.terminal import is_terminal
from deepcoder_operator.domain.world import World


def release_pool(draft: Draft, world: World) -> None:
    """Delete the run's own pool if the run has no use for it now."""
    pool = world.pool
    if pool is None or pool.deleting or pool.owner_uid != draft.run.metadata.uid:
        return
    if draft.status.attempt is None and (is_terminal(draft.status) or _waits(draft)):
        draft.do(DeletePool(pool.name, pool.uid))


def pool_is_ending(draft: Draft, world: World) -> bool:
    """Whether the pool from before is still there: the next attempt's is made under the same name."""
    return world.pool is not None and world.pool.deleting and world.pool.owner_uid == draft.run.metadata.uid


def _waits(draft: Draft) -> bool:
    current, stages = draft.status.current_stage, draft.status.stages
    held = current is not None and bool(stages) and stages[current.index].phase is StagePhase.HELD
    return draft.run.spec.suspend or held
