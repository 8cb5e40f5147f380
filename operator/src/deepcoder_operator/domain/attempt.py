"""The live attempt, from the intent to the end of its RayJob.

The attempt is bound to its head pod. If the head is replaced, restarted or gone, the attempt has failed, whatever the
RayJob says. A head that is being deleted has not failed yet: its preStop hook has the trainer save, and the operator
waits for that as for a requested drain. A queue that withdraws the quota also ends the attempt. The RayJob is then
deleted before the queue can admit it again, because a second head with the same ordinal would write while the first one
still saves.

An attempt that has ended, successfully or not, is first marked Leaving with what was seen from outside. Its RayJob is
deleted, and only when no pod is left is the result settled from storage (`settle`). So no GPU is held while S3 is
unavailable.
"""

from __future__ import annotations

from datetime import timedelta

from deepcoder_contracts.api.attempt_status import AttemptState, AttemptStatus, DrainCause, Outcome
from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.run_status import StagePhase
from deepcoder_operator.domain.admission import lay_out_stages
from deepcoder_operator.domain.attempt_end import end_attempt
from deepcoder_operator.domain.bounds import CONFLICT_SECONDS, POLL_SECONDS, UNREACHABLE_SECONDS
from deepcoder_operator.domain.classify import (
    Failure,
    head_failure,
    head_leaves,
    job_failure,
    lost_after,
    pod_failure,
    survived_loss,
)
from deepcoder_operator.domain.conditions import find_condition
from deepcoder_operator.domain.deadlines import check_deadlines
from deepcoder_operator.domain.draft import CreateAttempt, DeleteRayJob, Draft, EnsureRunObjects
from deepcoder_operator.domain.lineage import parent_of
from deepcoder_operator.domain.names import MAX_ORDINAL, attempt_name, requested_judges
from deepcoder_operator.domain.own_pool import keep_pool, pool_is_ending
from deepcoder_operator.domain.owners import NAME_CONFLICT, STILL_ENDING
from deepcoder_operator.domain.provenance import forget_attempt, note_head
from deepcoder_operator.domain.world import RAYJOB_INVALID, Problem, RayJobView, World

_WITHDRAWN_LENGTH = 700
"""Characters kept of why an attempt's pods were not ready when its queue withdrew the quota."""


def intend(draft: Draft, world: World) -> None:
    """Record the next attempt of the current stage, and create it once that is written."""
    status = draft.status
    index = status.stage_index
    ordinal = status.ordinal + 1
    if ordinal > MAX_ORDINAL:
        raise AssertionError("ordinals are bounded by MAX_ORDINAL; plan() fails the run before")
    draft.update(
        ordinal=ordinal,
        attempt=AttemptStatus(
            ordinal=ordinal,
            stage_index=index,
            name=attempt_name(draft.run.metadata.name, index, ordinal),
            intended_time=draft.now,
            parent=parent_of(draft.run, status, index),
        ),
    )
    forget_attempt(draft)
    entry = status.stages[index]
    draft.update_stage(
        index, phase=StagePhase.ACTIVE, start_time=entry.start_time or draft.now, attempts=entry.attempts + 1
    )
    lay_out_stages(draft)
    _create(draft, world)


def follow(draft: Draft, world: World, *, stop: DrainCause | None) -> None:
    """Advance the live attempt by one pass. `stop` is why it should drain, if it should."""
    attempt = draft.attempt
    if attempt.state is AttemptState.LEAVING:
        return
    job = world.rayjob
    if job is not None and job.owner_uid != draft.run.metadata.uid and attempt.uid is None:
        if stop is None:
            _name_conflict(draft, job)
        else:
            _call_off(draft, stop)
        return
    has_pods = bool(world.pods_of(attempt.ordinal))
    if attempt.uid is None and job is None and not has_pods:
        _make(draft, world, stop)
        return
    if attempt.uid is None and job is not None:
        attempt = draft.update_attempt(uid=job.uid, state=AttemptState.STARTING)
    if job is None or job.uid != attempt.uid or job.deleting:
        _deleted(draft, world, stop)
        return
    _note_pods(draft, world)
    if attempt.evicted_time is not None or (job.suspended and (attempt.admitted_time is not None or has_pods)):
        _evicted(draft, world, job, stop)
        return
    if job.suspended:
        _queued(draft, job, stop)
        return
    _admitted(draft, world, job)
    if _ended(draft, world, job):
        return
    cause = _why_stop(draft.attempt, world, stop)
    if cause is not None:
        _drain(draft, world, cause, f"head pod {draft.attempt.head_pod} is being deleted")
    else:
        check_deadlines(draft, world)
        if draft.attempt.state is not AttemptState.LEAVING:
            keep_pool(draft, world)


def _call_off(draft: Draft, cause: DrainCause) -> None:
    """Stop the attempt before its program has run. It has nothing to save."""
    draft.update_attempt(drain_cause=cause)
    end_attempt(draft, Outcome.DRAINED)


def _name_conflict(draft: Draft, job: RayJobView) -> None:
    """Wait for the name of the attempt's RayJob, which another RayJob has, within the time to start."""
    met = _conflict(draft, job)
    attempt = draft.attempt
    bound = draft.stage(attempt.stage_index).pre_running_deadline_seconds
    if draft.due(attempt.intended_time, bound):
        end_attempt(draft, Outcome.FAILED, _not_created(bound, met))
        return
    old = find_condition(draft.status.conditions, "Progressing")
    if old is None or old.reason != met.reason:
        draft.event(met.reason, met.message, warning=True)
    draft.condition("ClusterReady", False, met.reason, met.message)
    draft.progressing(False, met.reason, met.message)
    draft.hindered = met.reason
    draft.look_again(CONFLICT_SECONDS)


def _conflict(draft: Draft, job: RayJobView) -> Problem:
    """Return why a name is taken. A RayJob of a deleted run with the run's name is as good as being deleted."""
    if job.run_name == draft.run.metadata.name:
        text = f"RayJob {job.name} of the run that had this name before is still being removed"
        return Problem(STILL_ENDING, f"{text}: if it stays, check KubeRay, which has to let it go")
    if job.deleting:
        text = f"RayJob {job.name} is not this run's and is being deleted"
        return Problem(STILL_ENDING, f"{text}: if it stays, check KubeRay, or whoever set its finalizers")
    text = f"RayJob {job.name} exists and is not this run's: delete or rename it; the operator never adopts it"
    return Problem(NAME_CONFLICT, text)


def _not_created(bound: int, met: Problem) -> Failure:
    text = f"could not be created within {bound} s (preRunningDeadlineSeconds): {met.message}"
    return Failure(FailureReason.PRE_RUNNING_DEADLINE_EXCEEDED, text)


def _make(draft: Draft, world: World, stop: DrainCause | None) -> None:
    attempt = draft.attempt
    if stop is not None:
        _call_off(draft, stop)
        return
    if world.obstacle is not None and world.obstacle.reason == RAYJOB_INVALID:
        end_attempt(draft, Outcome.FAILED, Failure(FailureReason.VALIDATION_FAILED, world.obstacle.message))
        return
    bound = draft.stage(attempt.stage_index).pre_running_deadline_seconds
    if world.obstacle is not None and draft.due(attempt.intended_time, bound):
        end_attempt(draft, Outcome.FAILED, _not_created(bound, world.obstacle))
        return
    _create(draft, world)


def _create(draft: Draft, world: World) -> None:
    """Create the RayJob and what it needs, unless the previous pool is in the way.

    What judges for the attempt is recorded each time, because the spec may change until the RayJob is created.
    """
    judges = requested_judges(draft.run)
    attempt = draft.update_attempt(pool=judges.pool, judge_secret=judges.secret)
    queued = bool(draft.run.spec.scheduling.queue_name)
    if not queued and pool_is_ending(draft, world):
        draft.progressing(True, "PoolEnding", "waiting for the previous SandboxPool to be deleted")
        draft.look_again(POLL_SECONDS)
        return
    draft.do(EnsureRunObjects())
    draft.do(CreateAttempt(attempt))
    draft.progressing(True, "Creating", f"RayJob {attempt.name} is being created")
    draft.look_again(POLL_SECONDS)


def _note_pods(draft: Draft, world: World) -> None:
    """Keep what only pods show, because pods go away: requested GPUs, the image's digest, and failures."""
    attempt = draft.attempt
    mine = world.pods_of(attempt.ordinal)
    gpus = sum(p.gpus for p in mine if not p.finished and not p.deleting)
    if gpus > attempt.gpus:
        draft.update_attempt(gpus=gpus)
    head = world.head(attempt)
    _note_failure(draft, world, pod_failure([head] if head else []), pod_failure(mine))
    note_head(draft, head)


def _note_failure(draft: Draft, world: World, of_head: Failure | None, of_any: Failure | None) -> None:
    """Keep what pods show as the reason of a failure, until the attempt has survived it.

    A lost sampler is replaced. It explains a failure soon after, but not one that comes days later: a preemption does
    not count, so a run with a fault of its own would be retried forever. A failure of the head itself always explains
    the end better than that of another pod.
    """
    attempt, beat = draft.attempt, world.beat_of(draft.attempt.ordinal)
    step = beat.report.step if beat is not None else None
    preempted = attempt.reason is FailureReason.PREEMPTED
    if preempted and (attempt.evicted_time is not None or attempt.drain_cause is DrainCause.EVICTION):
        return  # the attempt or its head is being evicted: whatever else fails now is an effect of that
    failure = of_head or (None if preempted else of_any)
    if failure is not None:
        draft.update_attempt(reason=failure.reason, evidence=failure.evidence, reason_step=step)
    elif attempt.reason is None or step is None:
        return
    elif of_any is not None or attempt.reason_step is None:
        draft.update_attempt(reason_step=step)
    elif survived_loss(step, attempt.reason_step, draft.run.spec.recipe.max_off_policy):
        draft.update_attempt(reason=None, evidence=None, reason_step=None)


def _queued(draft: Draft, job: RayJobView, stop: DrainCause | None) -> None:
    """Handle a suspended RayJob: its queue has not admitted it yet, or it has none and something else suspended it."""
    attempt, queue = draft.attempt, draft.run.spec.scheduling.queue_name or ""
    if stop is not None:
        _call_off(draft, stop)
        return
    if job.asked_queue not in (None, queue):
        told = f"attempt {attempt.ordinal} waits in queue {job.asked_queue or 'none'}, and scheduling.queueName changed"
        draft.event("QueueChanged", f"{told}: the next attempt asks queue {queue or 'none'}")
        end_attempt(draft, Outcome.DRAINED)
        return
    if queue or job.queue:
        draft.progressing(True, "WaitingForQuota", f"attempt {attempt.ordinal} waits in its queue")
        return
    text = f"RayJob {job.name} was suspended by something else, and no queue will admit it: set scheduling.queueName "
    text += "(Kueue may be configured to manage jobs without a queue), or find out what suspends RayJobs"
    bound = draft.stage(attempt.stage_index).pre_running_deadline_seconds
    if draft.due(attempt.intended_time, bound):
        text = f"not admitted within {bound} s (preRunningDeadlineSeconds): {text}"
        end_attempt(draft, Outcome.FAILED, Failure(FailureReason.PRE_RUNNING_DEADLINE_EXCEEDED, text))
        return
    draft.progressing(False, "NoQueue", text)


def _evicted(draft: Draft, world: World, job: RayJobView, stop: DrainCause | None) -> None:
    """Handle a queue that withdrew the quota. It could admit the same RayJob again, so that is deleted at once."""
    attempt = draft.attempt
    if attempt.evicted_time is None:
        lost = f"the queue of RayJob {job.name} took its quota back"
        if attempt.running_time is None:
            lost = world.with_waits(lost, attempt.ordinal)[:_WITHDRAWN_LENGTH]
        draft.update_attempt(evicted_time=draft.now, reason=FailureReason.PREEMPTED, evidence=lost)
        draft.event("Evicted", f"attempt {attempt.ordinal} ends: {lost}; the next attempt queues again", warning=True)
    _deleted(draft, world, stop)
    draft.do(DeleteRayJob(job.name, job.uid))


def _admitted(draft: Draft, world: World, job: RayJobView) -> None:
    attempt = draft.attempt
    if attempt.admitted_time is None:
        attempt = draft.update_attempt(admitted_time=draft.now)
    head = world.head(attempt)
    if attempt.head_uid is None and head is not None and not head.deleting:
        attempt = draft.update_attempt(head_pod=head.name, head_uid=head.uid)
    if world.cluster is not None and attempt.cluster_uid != world.cluster.uid:
        attempt = draft.update_attempt(cluster_uid=world.cluster.uid)
    reported = world.beat_of(attempt.ordinal) is not None
    if attempt.state is AttemptState.STARTING and (job.job_status == "RUNNING" or reported):
        draft.update_attempt(state=AttemptState.RUNNING, running_time=draft.now)
        entry = draft.status.stages[attempt.stage_index]
        draft.update_stage(attempt.stage_index, running_time=entry.running_time or draft.now)
        tokens = draft.stage(attempt.stage_index).context_tokens
        draft.event("AttemptRunning", f"attempt {attempt.ordinal} of stage {entry.name} runs at {tokens} tokens")
    if draft.attempt.state is AttemptState.RUNNING:
        draft.progressing(True, "Running", f"attempt {attempt.ordinal} runs")
    elif draft.attempt.state is AttemptState.STARTING:
        text = world.with_waits(f"attempt {attempt.ordinal} starts", attempt.ordinal)
        draft.progressing(True, "Starting", text)


def _ended(draft: Draft, world: World, job: RayJobView) -> bool:
    """Whether the attempt is over. If so, mark it Leaving."""
    attempt = draft.attempt
    if job.job_status == "SUCCEEDED":
        if world.stored is None or not world.stored.ends(draft.stage(attempt.stage_index).type):
            told = "the job succeeded, but its final manifest had not been seen by then"
            draft.update_attempt(reason=FailureReason.MANIFEST_MISSING, evidence=told)
        end_attempt(draft, Outcome.SUCCEEDED)
        return True
    failure = job_failure(job) or head_failure(attempt, world.head(attempt)) or _node_lost(draft, world)
    if failure is None and not (attempt.drain_cause and _has_exited(world)):
        return False
    if attempt.drain_cause is DrainCause.EVICTION:
        lost = Failure(FailureReason.HEAD_LOST, f"head pod {attempt.head_pod} is being deleted")
        end_attempt(draft, Outcome.FAILED, failure or lost)
    else:
        end_attempt(draft, Outcome.DRAINED if attempt.drain_cause else Outcome.FAILED, failure)
    return True


def _node_lost(draft: Draft, world: World) -> Failure | None:
    """Return a failure if the head was lost with its node, so that waiting for it is in vain."""
    head, beat = world.head(draft.attempt), world.beat_of(draft.attempt.ordinal)
    bound = lost_after(head) if head is not None and head_leaves(draft.attempt, head) else None
    if head is None or bound is None:
        return None
    signs = [beat.received if beat else None, draft.attempt.heartbeat_time, world.listening_since or draft.now]
    if not draft.due(max(s for s in signs if s is not None), bound):
        return None
    said = head.disruption or head.reason
    return Failure(FailureReason.NODE_LOST, f"head pod {head.name} lost its node: {said}, and is silent")


def _deleted(draft: Draft, world: World, stop: DrainCause | None) -> None:
    """Handle a RayJob that is being deleted. While its head lives the trainer saves, as after an eviction."""
    _note_pods(draft, world)
    attempt = draft.attempt
    preempted = attempt.evidence if attempt.reason is FailureReason.PREEMPTED else None
    lost = preempted or f"RayJob {attempt.name} was deleted by someone else"
    lost_head = head_failure(attempt, world.head(attempt)) or _node_lost(draft, world)
    lives = attempt.head_uid is not None and lost_head is None
    if lives and attempt.running_time is not None and not _has_exited(world):
        _drain(draft, world, _why_stop(attempt, world, stop) or DrainCause.EVICTION, lost)
        return
    asked = (attempt.drain_cause or stop) not in (None, DrainCause.EVICTION)
    reason = FailureReason.PREEMPTED if preempted else FailureReason.HEAD_LOST
    end_attempt(draft, Outcome.DRAINED if asked else Outcome.FAILED, Failure(reason, lost))


def _has_exited(world: World) -> bool:
    return world.stored is not None and world.stored.exit is not None


def _why_stop(attempt: AttemptStatus, world: World, stop: DrainCause | None) -> DrainCause | None:
    """Return why the attempt should save and stop. A drain cannot be revoked, and keeps its first cause."""
    if attempt.state is AttemptState.DRAINING:
        return attempt.drain_cause
    if stop is None and head_leaves(attempt, world.head(attempt)):
        return DrainCause.EVICTION
    return stop


def _drain(draft: Draft, world: World, cause: DrainCause, lost: str) -> None:
    """Have the trainer save and stop, and bound the wait. `lost` says what is being deleted by others.

    The trainer learns of the drain from the reply to its next report. If its head is evicted, the pod's preStop hook
    tells it. If no report arrives, the RayJob is deleted, so that the hook tells it too.
    """
    attempt = draft.attempt
    evicted = cause is DrainCause.EVICTION
    if attempt.state is AttemptState.STARTING:
        if evicted:
            draft.update_attempt(drain_cause=cause)
            end_attempt(draft, Outcome.FAILED, Failure(FailureReason.HEAD_LOST, f"{lost}, before its program ran"))
        else:
            _call_off(draft, cause)
        return
    if attempt.state is not AttemptState.DRAINING:
        seconds = draft.run.spec.checkpoint.drain_seconds
        attempt = draft.update_attempt(
            state=AttemptState.DRAINING, drain_cause=cause, drain_deadline=draft.now + timedelta(seconds=seconds)
        )
        why = lost if evicted else str(cause)
        draft.event("Draining", f"attempt {attempt.ordinal} has {seconds} s to save and stop: {why}", warning=evicted)
    draft.progressing(
        True, "Draining", f"attempt {attempt.ordinal} saves and stops, by {attempt.drain_deadline:%H:%M:%S}"
    )
    job = world.rayjob
    if job is not None and job.uid == attempt.uid and not job.deleting and not evicted and _unreachable(draft, world):
        draft.do(DeleteRayJob(job.name, job.uid))
    if attempt.drain_deadline is None or draft.now >= attempt.drain_deadline:
        draft.event(
            "DrainTimedOut", f"attempt {attempt.ordinal} did not stop in time; its pods are deleted", warning=True
        )
        if evicted:
            end_attempt(draft, Outcome.FAILED, Failure(FailureReason.HEAD_LOST, f"{lost}, and it did not stop in time"))
        else:
            end_attempt(draft, Outcome.DRAIN_TIMED_OUT)
        return
    draft.look_again(attempt.drain_deadline)
    draft.look_again(POLL_SECONDS)


def _unreachable(draft: Draft, world: World) -> bool:
    """Whether the trainer had time to report since the drain began and has not, so that no reply can tell it."""
    attempt, beat = draft.attempt, world.beat_of(draft.attempt.ordinal)
    if attempt.drain_deadline is None or world.listening_since is None:
        return False
    asked = attempt.drain_deadline - timedelta(seconds=draft.run.spec.checkpoint.drain_seconds)
    silent = beat is None or beat.received <= asked
    return silent and draft.due(max(asked, world.listening_since), UNREACHABLE_SECONDS)
