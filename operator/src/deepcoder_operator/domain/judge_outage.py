"""Judges that are unavailable: how long an attempt's GPUs wait for them.

Without judges no batch is ever complete, so GPUs that wait for judges are wasted.

Some judges do not start until somebody fixes what their pool reports. A judge that refuses to start (because of its
memory or its node's kernel) does so at each restart, and a name conflict does not resolve itself. The attempt then ends
at once, with the pool's message as evidence, and no other attempt requests a GPU meanwhile. The run is not at fault, so
the failure does not count against maxAttempts. But each time GPUs were wasted, so from the eleventh failure after the
last checkpoint on, it does.

Judges that are missing for another reason (no room, an image that cannot be pulled, a lost node) may come back by
themselves. An attempt waits for them as long as its trainer and its stage's stallSeconds allow. The next attempt
requests no GPUs until a judge is ready, or until its time to start has passed. A waiting run makes its pool try a
judge, even in a pool scaled to zero, which cannot know whether its judges would start.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from deepcoder_contracts.api.attempt_status import AttemptStatus, Outcome
from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.progress import TrainerPhase
from deepcoder_operator.domain.attempt_end import end_attempt
from deepcoder_operator.domain.classify import Failure
from deepcoder_operator.domain.conditions import find_condition
from deepcoder_operator.domain.draft import Draft, EnsurePool
from deepcoder_operator.domain.pool_status import JUDGES_REFUSE
from deepcoder_operator.domain.world import PoolView, Problem, World

JUDGES_NOT_READY = "JudgesNotReady"
"""Reason of a run whose last attempt had no judges and that waits until one is ready."""

UNCOUNTED_IN_ROW = 10
"""Number of failures in a row, without a new checkpoint, up to which failures for lack of judges do not count."""

_TRAINS = (TrainerPhase.TRAINING, TrainerPhase.CHECKPOINTING)
"""Phases in which a trainer announces how many programs it will submit."""


def cannot_be_judged(run: DeepCoderRun, attempt: AttemptStatus, world: World) -> bool:
    """Whether none of an attempt's judges can start, and its trainer has not said that it needs none."""
    pool = judging_pool(run, world)
    return pool is not None and bool(pool.stuck_reason) and not _needs_none(attempt, world)


def end_without_judges(draft: Draft, world: World) -> None:
    """Give up the attempt if none of its judges can start."""
    pool = judging_pool(draft.run, world)
    if pool is not None and cannot_be_judged(draft.run, draft.attempt, world):
        text = f"no GPU is held for judges that cannot start. {pool.trouble()}"
        draft.update_attempt(judges_refused=True)
        end_attempt(draft, Outcome.FAILED, Failure(FailureReason.SANDBOX_UNAVAILABLE, text))


def stall(draft: Draft, world: World, text: str, bound: float) -> Failure:
    """Return why a stalled attempt is given up: lack of judges if that has lasted for half of `bound`, else a stall."""
    pool = judging_pool(draft.run, world)
    if pool is None or pool.ready:
        return Failure(FailureReason.STALLED, text)
    since = pool.unready_since
    long = since is not None and draft.now - since >= timedelta(seconds=bound / 2)
    return Failure(FailureReason.SANDBOX_UNAVAILABLE if long else FailureReason.STALLED, f"{text}. {pool.trouble()}")


def with_pool_message(draft: Draft, world: World, failure: Failure) -> Failure:
    """Add the pool's message to the evidence of a trainer that left for lack of judges and does not know the pool."""
    pool = judging_pool(draft.run, world)
    if failure.reason is not FailureReason.SANDBOX_UNAVAILABLE or pool is None or pool.ready:
        return failure
    told = pool.trouble()
    return failure if told in failure.evidence else replace(failure, evidence=f"{failure.evidence}. {told}")


def is_uncounted(draft: Draft, world: World, failure: Failure, in_row: int) -> bool:
    """Whether a failure does not count: its judges cannot start before somebody fixes the pool, and there have not been
    too many. Either the operator ended the attempt for this, or the trainer left first."""
    pool = judging_pool(draft.run, world)
    refused = draft.attempt.judges_refused or (pool is not None and bool(pool.stuck_reason))
    return failure.reason is FailureReason.SANDBOX_UNAVAILABLE and refused and in_row <= UNCOUNTED_IN_ROW


def waits_for_judges(run: DeepCoderRun) -> bool:
    """Whether a run waits for a judge of its pool before it requests GPUs."""
    waits = find_condition(run.status.conditions, "Progressing")
    going = run.status.attempt is None and run.metadata.deletion_timestamp is None
    return going and waits is not None and waits.reason in (JUDGES_REFUSE, JUDGES_NOT_READY)


def wait_for_judges(draft: Draft, world: World) -> Problem | None:
    """Return why no GPU is requested yet. After an attempt without judges, the run's own pool is created meanwhile."""
    if draft.run.spec.sandbox.together is not None:
        return None
    pool = judging_pool(draft.run, world)
    if pool is not None and pool.stuck_reason:
        command = f"kubectl -n {draft.run.metadata.namespace} edit sandboxpool {pool.name}"
        text = f"no GPU is requested while no judge can start: fix the cause below, or the pool ({command})"
        return Problem(pool.stuck_reason, f"{text}. {pool.trouble()}")
    backoff = draft.status.backoff
    serves = pool is not None and pool.ready and not pool.idle
    if backoff is None or backoff.reason is not FailureReason.SANDBOX_UNAVAILABLE or serves:
        return None
    if draft.due(backoff.until, draft.stage(draft.status.stage_index).pre_running_deadline_seconds):
        return None
    if world.pool is None:
        draft.do(EnsurePool())
    why = pool.trouble() if pool is not None else "There is no pool yet"
    text = "the last attempt had no judges: the next one requests GPUs once a judge is ready"
    return Problem(JUDGES_NOT_READY, f"{text}. {why}")


def judging_pool(run: DeepCoderRun, world: World) -> PoolView | None:
    """Return the run's pool, unless it is being deleted or belongs to something else."""
    pool, own = world.pool, run.spec.sandbox.template is not None
    if pool is None or pool.deleting or (own and pool.owner_uid != run.metadata.uid):
        return None
    return pool


def _needs_none(attempt: AttemptStatus, world: World) -> bool:
    """Whether the trainer trains and announces no programs: on mathematics, with a reward that needs no judge, or while
    it saves the last step. Evaluations do not announce their programs, so nothing is known about those."""
    beat = world.beat_of(attempt.ordinal)
    if beat is None:  # a trainer that reported to the previous operator process reports to this one within seconds
        return attempt.heartbeat_time is not None
    report = beat.report
    if report.phase not in _TRAINS or report.expected_submissions is None:
        return False
    return report.expected_submissions.count == 0
