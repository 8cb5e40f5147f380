"""Judges that cannot be there: what an attempt's GPUs wait for then, and for how long.

Without judges no batch is ever whole, so GPUs that wait for them are paid for nothing. Some do not come before somebody
mends what their pool says: a judge that refuses to start (its memory, its node's kernel) does so at each restart, and a
name that is taken stays taken. The attempt ends at once then, with those words as evidence, and no other asks for a GPU
meanwhile. That is no fault of the run, and does not count against maxAttempts; but each time its GPUs were had for
nothing, so ten failures after its last checkpoint it does.

Judges that are missing for another reason (no room, an image that cannot be pulled, a node that is lost) may come by
themselves: an attempt waits for them as long as its trainer and its stage's stallSeconds do, and the one after it asks
for no GPU before one of them is ready, or its time to start has passed. A run that waits has its pool try a judge, also
one that may have none: a pool that was scaled to zero does not know whether its judges start.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from deepcoder_contracts.api.attempt_status import AttemptStatus, Outcome
from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.progress import TrainerPhase
from deepcoder_operator.domain.classify import Failure
from deepcoder_operator.domain.conditions import find_condition
from deepcoder_operator.domain.draft import Draft, EnsurePool
from deepcoder_operator.domain.leaving import leave
from deepcoder_operator.domain.pool_status import JUDGES_REFUSE
from deepcoder_operator.domain.world import PoolView, Problem, World

JUDGES_NOT_READY = "JudgesNotReady"
"""Reason of a run whose last attempt had no judges, and that waits until one is ready."""

FREE_IN_ROW = 10
"""Failures in a row, without a new checkpoint between them, of which those for judges that refuse do not count."""

_TRAINS = (TrainerPhase.TRAINING, TrainerPhase.CHECKPOINTING)
"""Phases of a trainer that says how many programs it will have judged."""


def cannot_be_judged(run: DeepCoderRun, attempt: AttemptStatus, world: World) -> bool:
    """Whether none of an attempt's judges can start, and its trainer does not say that it needs none."""
    pool = judging_pool(run, world)
    return pool is not None and bool(pool.unmended) and not _needs_none(attempt, world)


def end_without_judges(draft: Draft, world: World) -> None:
    """Give the attempt up if none of its judges can start."""
    pool = judging_pool(draft.run, world)
    if pool is not None and cannot_be_judged(draft.run, draft.attempt, world):
        text = f"no GPU is held for judges that cannot start. {pool.trouble()}"
        draft.update_attempt(judges_refused=True)
        leave(draft, Outcome.FAILED, Failure(FailureReason.SANDBOX_UNAVAILABLE, text))


def stall(draft: Draft, world: World, text: str, bound: float) -> Failure:
    """What an attempt that does not get on is given up for: want of judges, if that has lasted for half of `bound`."""
    pool = judging_pool(draft.run, world)
    if pool is None or pool.ready:
        return Failure(FailureReason.STALLED, text)
    since = pool.unready_since
    long = since is not None and draft.now - since >= timedelta(seconds=bound / 2)
    return Failure(FailureReason.SANDBOX_UNAVAILABLE if long else FailureReason.STALLED, f"{text}. {pool.trouble()}")


def in_their_words(draft: Draft, world: World, failure: Failure) -> Failure:
    """A trainer that leaves for want of judges knows of no pool: what that says of itself is evidence, too."""
    pool = judging_pool(draft.run, world)
    if failure.reason is not FailureReason.SANDBOX_UNAVAILABLE or pool is None or pool.ready:
        return failure
    told = pool.trouble()
    return failure if told in failure.evidence else replace(failure, evidence=f"{failure.evidence}. {told}")


def is_free(draft: Draft, world: World, failure: Failure, in_row: int) -> bool:
    """Whether a failure is for judges that cannot be there before somebody mends what their pool says, and not one too
    many: the operator ended the attempt for it, or the trainer was the first to leave."""
    pool = judging_pool(draft.run, world)
    refused = draft.attempt.judges_refused or (pool is not None and bool(pool.unmended))
    return failure.reason is FailureReason.SANDBOX_UNAVAILABLE and refused and in_row <= FREE_IN_ROW


def waits_for_judges(run: DeepCoderRun) -> bool:
    """Whether a run asks for no GPU before a judge of its pool is ready, and would then."""
    waits = find_condition(run.status.conditions, "Progressing")
    going = run.status.attempt is None and run.metadata.deletion_timestamp is None
    return going and waits is not None and waits.reason in (JUDGES_REFUSE, JUDGES_NOT_READY)


def wait_for_judges(draft: Draft, world: World) -> Problem | None:
    """Why no GPU is asked for yet; the run's own pool is made meanwhile where the last attempt had no judges."""
    if draft.run.spec.sandbox.together is not None:
        return None
    pool = judging_pool(draft.run, world)
    if pool is not None and pool.unmended:
        mend = f"kubectl -n {draft.run.metadata.namespace} edit sandboxpool {pool.name}"
        text = f"no GPU is asked for while no judge can start: mend what is said, or the pool ({mend})"
        return Problem(pool.unmended, f"{text}. {pool.trouble()}")
    backoff = draft.status.backoff
    serves = pool is not None and pool.ready and not pool.idle
    if backoff is None or backoff.reason is not FailureReason.SANDBOX_UNAVAILABLE or serves:
        return None
    if draft.due(backoff.until, draft.stage(draft.status.stage_index).pre_running_deadline_seconds):
        return None
    if world.pool is None:
        draft.do(EnsurePool())
    why = pool.trouble() if pool is not None else "There is no pool that could"
    text = "the last attempt had no judges: the next one asks for GPUs once one is ready"
    return Problem(JUDGES_NOT_READY, f"{text}. {why}")


def judging_pool(run: DeepCoderRun, world: World) -> PoolView | None:
    """The pool that judges for the run, not one that goes or is somebody else's under its name."""
    pool, own = world.pool, run.spec.sandbox.template is not None
    if pool is None or pool.deleting or (own and pool.owner_uid != run.metadata.uid):
        return None
    return pool


def _needs_none(attempt: AttemptStatus, world: World) -> bool:
    """Whether the trainer trains and has announced no program: on mathematics, with a reward that asks no judge, or
    since it saves what its last step has made. Evaluations are not announced: of those it is not known."""
    beat = world.beat_of(attempt.ordinal)
    if beat is None:  # one that has reported told the operator before this one, and tells this one in seconds
        return attempt.heartbeat_time is not None
    report = beat.report
    if report.phase not in _TRAINS or report.expected_submissions is None:
        return False
    return report.expected_submissions.count == 0
