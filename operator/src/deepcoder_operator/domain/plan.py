"""The reconcile as a pure function: a run and the observed world in, actions and a status out.

    Pending ─Accepted→ Queued ─QuotaReserved→ Starting ─job runs→ Running
    Running ─job succeeded, manifest verified→ Promoting ─gate met→ next stage (Queued) | Complete
    Promoting ─gate unmet→ by `otherwise`: next | Held | Failed        Held ─approved→ next stage
    Running ─suspend, deletion→ Draining (bounded) → Suspended | gone    Suspended ─resume→ Queued
    Queued, Starting, Running ─failure, deadline, stall→ Backoff → Queued | Failed

It is level-triggered: every pass decides from the status and the world alone, so events may be lost, repeated or late.
Each decision is written to the status before it is carried out. Carrying it out twice changes nothing, because child
objects are named after the intent. Complete and Failed are final.
"""

from __future__ import annotations

from datetime import datetime

from deepcoder_contracts.api.attempt_status import AttemptState, DrainCause
from deepcoder_contracts.api.run import FINALIZER, MANAGER, DeepCoderRun, Metadata
from deepcoder_contracts.api.run_status import RunStatus
from deepcoder_operator.domain.admission import admit, is_past_the_end, lay_out_stages
from deepcoder_operator.domain.attempt import follow, intend
from deepcoder_operator.domain.attempt_end import clean_up_attempt, end_pods, is_over
from deepcoder_operator.domain.conditions import find_condition, set_condition
from deepcoder_operator.domain.deletion import finish_deletion, hold_or_release
from deepcoder_operator.domain.draft import AddFinalizer, DeleteRayJob, Draft, EndPods, EnsurePool, Plan
from deepcoder_operator.domain.heartbeat import note_progress
from deepcoder_operator.domain.lineage import note_checkpoint
from deepcoder_operator.domain.names import MAX_ORDINAL
from deepcoder_operator.domain.own_pool import release_pool
from deepcoder_operator.domain.policy import Policy
from deepcoder_operator.domain.promotion import release_or_wait
from deepcoder_operator.domain.provenance import note_manifest
from deepcoder_operator.domain.sandbox_usage import account_sandbox
from deepcoder_operator.domain.settle import settle
from deepcoder_operator.domain.summary import initialise, summarise
from deepcoder_operator.domain.terminal import complete_run, expire, fail_run, is_terminal
from deepcoder_operator.domain.times import clamp_future_times
from deepcoder_operator.domain.usage import account, settle_usage
from deepcoder_operator.domain.world import World

UNREADABLE = "SpecUnreadable"
"""Reason of a run whose spec this operator cannot read."""


def is_ours(run: DeepCoderRun) -> bool:
    """Whether this operator manages the run."""
    return run.spec.managed_by in (None, MANAGER)


def plan(run: DeepCoderRun, world: World, now: datetime, policy: Policy) -> Plan:
    """Decide what this pass does. `now` is in whole seconds."""
    if not is_ours(run):
        return Plan(run.status)
    draft = Draft(run=run, now=now, status=run.status)
    clamp_future_times(draft)
    initialise(draft)
    _delete_strays(draft, world)
    account(draft, world, policy)
    account_sandbox(draft, world)
    if run.metadata.deletion_timestamp:
        _delete(draft, world)
    elif is_terminal(draft.status):
        expire(draft)
        hold_or_release(draft)
    elif FINALIZER not in run.metadata.finalizers:
        draft.do(AddFinalizer())  # before anything that needs a drain is created
        draft.look_again(1)
        if draft.status.attempt is None and world.storage is not None:
            _idle(draft, world, policy)
    elif draft.status.attempt is not None:
        _live(draft, world)
    else:
        _idle(draft, world, policy)
    release_pool(draft, world)
    settle_usage(draft, world)
    summarise(draft, world)
    _say_obstacle(draft, world)
    return draft.plan()


def _live(draft: Draft, world: World) -> None:
    """Follow the live attempt, and settle it when it is gone."""
    lay_out_stages(draft)
    note_progress(draft, world)
    stored = world.stored
    if stored and stored.newest:
        note_checkpoint(draft, draft.attempt.stage_index, stored.newest)
        note_manifest(draft, stored)
    follow(draft, world, stop=DrainCause.SUSPEND if draft.run.spec.suspend else None)
    if _has_left(draft):
        clean_up_attempt(draft, world)
        if is_over(draft.attempt, draft.run.metadata.uid, world, draft.now):
            settle(draft, world)


def _idle(draft: Draft, world: World, policy: Policy) -> None:
    """Handle a run without an attempt: wait, or intend the next one."""
    if draft.status.stages:
        over = is_past_the_end(draft)
        lay_out_stages(draft)
        if over:
            complete_run(draft)
            return
        if draft.status.held:
            release_or_wait(draft)
            return
    if draft.run.spec.suspend:
        draft.progressing(False, "Suspended", "spec.suspend is true; set it to false to continue")
        return
    if draft.status.backoff is not None and draft.now < draft.status.backoff.until:
        draft.look_again(draft.status.backoff.until)
        return
    if draft.status.ordinal >= MAX_ORDINAL:
        fail_run(draft, "AttemptsExhausted", f"{MAX_ORDINAL} attempts were made, the most a run may have")
        return
    if admit(draft, world, policy):
        intend(draft, world)


def _delete(draft: Draft, world: World) -> None:
    """Handle a run that is being deleted: drain within bounds, then remove the finalizer."""
    if draft.status.attempt is not None:
        follow(draft, world, stop=DrainCause.DELETION)
        if not _has_left(draft):
            return
        clean_up_attempt(draft, world)
        if not is_over(draft.attempt, draft.run.metadata.uid, world, draft.now):
            return
        draft.update(attempt=None)
    finish_deletion(draft, world)


def _has_left(draft: Draft) -> bool:
    """Whether the attempt's end was written to the status before this pass."""
    written = draft.run.status.attempt
    return written is not None and written.state is AttemptState.LEAVING


def _delete_strays(draft: Draft, world: World) -> None:
    """Delete RayJobs and pods of the run that do not belong to the live attempt.

    Pods are normally ended when their attempt's time is up. But the operator may be killed after it recorded that it
    continues without them, and before it ended them. A higher ordinal than the status knows means that our view is old.
    """
    for job in world.strays:
        if job.ordinal <= draft.status.ordinal and not job.deleting:
            draft.do(DeleteRayJob(job.name, job.uid))
            draft.event("StrayDeleted", f"RayJob {job.name} belongs to no live attempt", warning=True)
    live, refused = draft.status.attempt, world.obstacle is not None and world.obstacle.action == EndPods.__name__
    if not refused:  # if it is refused forever, the run still does everything else, and tries again
        over = (p for p in world.pods if 0 < p.ordinal <= draft.status.ordinal)
        end_pods(draft, (p for p in over if live is None or p.ordinal != live.ordinal))


def _say_obstacle(draft: Draft, world: World) -> None:
    """Report what the last plan could not do, for as long as it is retried.

    If only the pool cannot be created, a running attempt continues. The condition SandboxReady then reports it, and not
    Progressing.
    """
    obstacle = world.obstacle
    if obstacle is None or not draft.actions:
        return
    about = "SandboxReady" if draft.actions == [EnsurePool()] else "Progressing"
    told = find_condition(draft.run.status.conditions, about)
    if told is None or told.reason != obstacle.reason:
        draft.event(obstacle.reason, obstacle.message, warning=True)
    draft.condition(about, False, obstacle.reason, obstacle.message)


def refuse_unreadable(metadata: Metadata, status: RunStatus, message: str, now: datetime) -> RunStatus:
    """Return the status of a run whose spec this operator cannot read, because its CRD is newer or was edited."""
    conditions = status.conditions
    for name in ("Accepted", "Progressing"):
        conditions = set_condition(
            conditions, name, False, UNREADABLE, message, generation=metadata.generation, now=now
        )
    return status.model_copy(update={"conditions": conditions, "observed_generation": metadata.generation})
