"""Derives conditions and phase from the rest of the status, at the end of each pass, so that they cannot contradict it.

Nothing here fails. What is not known yet becomes a condition with status `Unknown`. A missing pool or cluster becomes
`False`, with the reason.
"""

from __future__ import annotations

from deepcoder_contracts.api.attempt_status import AttemptState, Outcome
from deepcoder_contracts.api.condition import ConditionStatus
from deepcoder_contracts.api.run_status import Phase, RunStatus
from deepcoder_operator.domain.conditions import find_condition, is_true
from deepcoder_operator.domain.draft import Draft
from deepcoder_operator.domain.names import pool_name
from deepcoder_operator.domain.owners import NAME_CONFLICT, STILL_ENDING
from deepcoder_operator.domain.world import World

CONDITIONS = (
    "Accepted", "QuotaReserved", "ClusterReady", "SandboxReady", "Progressing", "CheckpointCurrent", "Stalled",
    "Suspended", "Complete", "Failed",
)  # fmt: skip

_NOT_YET = "NotYetObserved"


def initialise(draft: Draft) -> None:
    """Set all conditions from the start."""
    for name in CONDITIONS:
        if find_condition(draft.status.conditions, name) is None:
            draft.condition(name, ConditionStatus.UNKNOWN, _NOT_YET)


def summarise(draft: Draft, world: World) -> None:
    """Set the derived conditions, the phase and the number of GPUs."""
    if draft.run.metadata.deletion_timestamp is None:
        draft.update(observed_generation=draft.run.metadata.generation)
    _children(draft, world)
    _checkpoint(draft)
    _stalled(draft)
    phase = phase_of(draft)
    suspended = phase is Phase.SUSPENDED
    draft.condition("Suspended", suspended, "Suspended" if suspended else "NotSuspended")
    for name in ("Complete", "Failed"):
        condition = find_condition(draft.status.conditions, name)
        if condition is not None and condition.status is ConditionStatus.UNKNOWN:
            draft.condition(name, False, "NotFinished")
    attempt = draft.status.attempt
    draft.update(phase=phase, gpus=attempt.gpus if attempt else 0)


def phase_of(draft: Draft) -> Phase:
    """Return the phase, for display."""
    status = draft.status
    if is_true(status.conditions, "Complete"):
        return Phase.COMPLETE
    if is_true(status.conditions, "Failed"):
        return Phase.FAILED
    if draft.run.metadata.deletion_timestamp:
        return Phase.DRAINING
    attempt = status.attempt
    if attempt is None:
        return _idle_phase(draft, status)
    match attempt.state:
        case AttemptState.INTENDED:
            return Phase.QUEUED
        case AttemptState.STARTING:
            return Phase.STARTING if attempt.admitted_time else Phase.QUEUED
        case AttemptState.RUNNING:
            return Phase.RUNNING
        case AttemptState.DRAINING:
            return Phase.DRAINING
        case AttemptState.LEAVING:
            ended = {Outcome.SUCCEEDED: Phase.PROMOTING, Outcome.FAILED: Phase.BACKOFF}
            return ended.get(attempt.outcome or Outcome.DRAINED, Phase.DRAINING)


def _idle_phase(draft: Draft, status: RunStatus) -> Phase:
    if draft.run.spec.suspend:
        return Phase.SUSPENDED
    if status.held:
        return Phase.HELD
    if status.backoff is not None and draft.now < status.backoff.until:
        return Phase.BACKOFF
    return Phase.QUEUED if is_true(status.conditions, "Accepted") else Phase.PENDING


def _children(draft: Draft, world: World) -> None:
    attempt = draft.status.attempt
    alive = attempt is not None and attempt.state is not AttemptState.LEAVING
    if attempt is None or not alive:
        draft.condition("QuotaReserved", False, "NoAttempt", "no pods are requested")
        draft.condition("ClusterReady", False, "NoAttempt", "no pods are requested")
    else:
        if attempt.admitted_time:
            draft.condition("QuotaReserved", True, "Admitted")
        else:
            draft.condition(
                "QuotaReserved", False, "Waiting", "the attempt waits to be created or admitted by its queue"
            )
        now = find_condition(draft.status.conditions, "Progressing")
        if now is not None and now.reason in (NAME_CONFLICT, STILL_ENDING):
            pass  # the RayJob that was seen, and its cluster, are another's: ClusterReady says so already
        elif world.cluster is not None and world.cluster.ready:
            draft.condition("ClusterReady", True, "Provisioned", "all pods of the Ray cluster are ready")
        else:
            text = world.with_waits("not all pods of the Ray cluster are ready", attempt.ordinal)
            draft.condition("ClusterReady", False, "NotReady", text)
    pool = world.pool
    if pool is not None and pool.ready:
        # Without the number of judges: each change of it would be a status write for every run of the pool.
        draft.condition("SandboxReady", True, "PoolReady", f"SandboxPool {pool.name} is ready")
    elif pool is not None:
        draft.condition("SandboxReady", False, "PoolNotReady", pool.trouble())
    elif (name := pool_name(draft.run)) is None:
        text = "Together Code Interpreter judges; only the trainer sees whether it works, in its metric judge_errors"
        draft.condition("SandboxReady", ConditionStatus.UNKNOWN, "Hosted", text)
    elif draft.run.spec.sandbox.template is None:
        draft.condition("SandboxReady", False, "PoolNotFound", f"there is no SandboxPool {name} in this namespace")
    else:
        text = "the run's own SandboxPool is created once an attempt has a head pod, and deleted when it is not needed"
        draft.condition("SandboxReady", False, "PoolNotMade", text)


def _checkpoint(draft: Draft) -> None:
    status = draft.status
    latest = status.latest_checkpoint
    if latest is None:
        draft.condition(
            "CheckpointCurrent", ConditionStatus.UNKNOWN, "NoCheckpoint", "no checkpoint has been verified yet"
        )
        return
    step = (
        status.progress.step
        if status.progress and status.current_stage and status.current_stage.name == latest.stage
        else 0
    )
    behind = step - latest.step
    bound = 2 * draft.run.spec.checkpoint.every_steps
    if behind > bound:
        text = f"step {step} is {behind} steps beyond {latest.uri}, more than 2 × everySteps"
        draft.condition("CheckpointCurrent", False, "Behind", text)
    else:
        draft.condition("CheckpointCurrent", True, "Verified", latest.uri)


def _stalled(draft: Draft) -> None:
    attempt = draft.status.attempt
    stalled = attempt is not None and attempt.reason == "Stalled" and attempt.state is AttemptState.LEAVING
    backoff = draft.status.backoff
    waiting = attempt is None and backoff is not None and backoff.reason == "Stalled"
    if stalled or waiting:
        draft.condition("Stalled", True, "NoProgress", attempt.evidence or "" if attempt else _last_failure(draft))
    else:
        draft.condition("Stalled", False, "Progressing" if attempt else "NoAttempt")


def _last_failure(draft: Draft) -> str:
    """Return how the last attempt of the current stage failed, from the stage's message."""
    status = draft.status
    return (status.stages[status.stage_index].message if status.stages else None) or "the last attempt stalled"
