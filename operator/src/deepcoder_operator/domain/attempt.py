"""The live attempt, from intent to its RayJob's end.

The head is the attempt: another head, a restarted one or none means that it failed, whatever the RayJob says. An
attempt that ended, well or not, is first marked Leaving with what was seen from outside; its RayJob is deleted, and
only when no pod is left is the end settled with what storage says (`settle`). So no GPU is held while S3 is away.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from deepcoder_contracts.progress import TrainerPhase
from deepcoder_contracts.stage import StageType
from deepcoder_operator.api.attempt_status import AttemptState, AttemptStatus, DrainCause, Outcome
from deepcoder_operator.api.failure import FailureReason
from deepcoder_operator.api.run_status import StagePhase
from deepcoder_operator.domain.admission import lay_out_stages
from deepcoder_operator.domain.bounds import CONFLICT_SECONDS, END_SECONDS, LEAVE_SECONDS, POLL_SECONDS
from deepcoder_operator.domain.classify import Failure, head_failure, job_failure, pod_failure
from deepcoder_operator.domain.conditions import find_condition
from deepcoder_operator.domain.draft import CreateAttempt, DeleteRayJob, Draft, EndPods, EnsureFoundation
from deepcoder_operator.domain.lineage import parent_of
from deepcoder_operator.domain.names import MAX_ORDINAL, attempt_name
from deepcoder_operator.domain.world import RayJobView, World


def intend(draft: Draft) -> None:
    """Write down the next attempt of the current stage; its RayJob is made by the next pass."""
    status = draft.status
    index = status.current_stage.index if status.current_stage else 0
    ordinal = status.ordinal + 1
    if ordinal > MAX_ORDINAL:
        raise AssertionError("ordinals are bounded by MAX_ORDINAL; plan() fails the run before")
    stage = draft.stage(index)
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
    entry = status.stages[index]
    draft.update_stage(
        index, phase=StagePhase.ACTIVE, start_time=entry.start_time or draft.now, attempts=entry.attempts + 1
    )
    lay_out_stages(draft)
    draft.progressing(True, "AttemptIntended", f"attempt {ordinal} of stage {stage.name} is being made")
    draft.event("AttemptIntended", f"attempt {ordinal} of stage {stage.name} at {stage.context_tokens} tokens")
    draft.look_again(0)


def follow(draft: Draft, world: World, *, stop: DrainCause | None) -> None:
    """Take one look at the live attempt; `stop` is why it should drain, if it should."""
    attempt = draft.attempt
    if attempt.state is AttemptState.LEAVING:
        return
    job = world.rayjob
    if job is not None and job.owner_uid != draft.run.metadata.uid:
        if stop is None:
            _name_conflict(draft, job)
        else:
            draft.update_attempt(drain_cause=stop)
            leave(draft, Outcome.DRAINED)
        return
    if attempt.uid is None:
        if job is None:
            _make(draft, world, stop)
            return
        attempt = draft.update_attempt(uid=job.uid, state=AttemptState.STARTING)
    if job is None or job.uid != attempt.uid or job.deleting:
        what = "is being deleted" if job is not None and job.deleting else "was deleted"
        leave(draft, Outcome.DRAINED if attempt.drain_cause else Outcome.FAILED,
              Failure(FailureReason.HEAD_LOST, f"RayJob {attempt.name} {what} by someone else"))  # fmt: skip
        return
    _note_pods(draft, world)
    if job.suspended:
        _queued(draft, world, stop)
        return
    _admitted(draft, world, job)
    if _ended(draft, world, job):
        return
    if stop is not None:
        _drain(draft, world, stop)
    elif draft.attempt.state is AttemptState.DRAINING:
        draft.progressing(True, "Draining", "the attempt was asked to stop and cannot be called back; it resumes after")
        _drain(draft, world, draft.attempt.drain_cause or DrainCause.SUSPEND)
    else:
        _check_deadlines(draft, world)


def leave(draft: Draft, outcome: Outcome, failure: Failure | None = None) -> None:
    """The attempt is over as seen from outside: note how, and delete its RayJob."""
    attempt = draft.attempt
    worse = failure and (
        attempt.reason is None or failure.reason not in (FailureReason.HEAD_LOST, FailureReason.APPLICATION)
    )
    evidence = [e for e in (attempt.evidence, failure.evidence if failure else None) if e]
    bound = timedelta(seconds=draft.run.spec.checkpoint.drain_seconds + LEAVE_SECONDS)
    draft.update_attempt(
        state=AttemptState.LEAVING,
        outcome=outcome,
        reason=failure.reason if failure and worse else attempt.reason,
        evidence="; ".join(dict.fromkeys(evidence))[:1000] or None,
        drain_deadline=draft.now + bound,
    )
    if outcome is Outcome.FAILED and failure:
        draft.event("AttemptFailed", f"attempt {attempt.ordinal}: {failure.reason}: {failure.evidence}", warning=True)
    if attempt.uid:
        draft.do(DeleteRayJob(attempt.name, attempt.uid))
    draft.look_again(0)


def gone(draft: Draft, world: World) -> bool:
    """Whether a leaving attempt's RayJob and pods are gone, or have had all the time they may have."""
    attempt, job = draft.attempt, world.rayjob
    ours = job is not None and job.owner_uid == draft.run.metadata.uid
    left = [p for p in world.pods if p.ordinal == attempt.ordinal]
    pods = [p.name for p in left]
    if job is not None and ours:
        if not job.deleting:
            draft.do(DeleteRayJob(job.name, job.uid))
        draft.progressing(True, "Leaving", f"waiting for RayJob {job.name} to be deleted")
        draft.look_again(POLL_SECONDS)
        return False
    if not pods:
        return True
    draft.progressing(True, "Leaving", f"waiting for {len(pods)} pods of attempt {attempt.ordinal} to end")
    if attempt.drain_deadline and draft.now >= attempt.drain_deadline:
        draft.event(
            "PodsLeftBehind", f"pods that do not end are left to their node: {', '.join(pods[:5])}", warning=True
        )
        return True
    slow = tuple(p.name for p in left if not p.deleting or (p.grace or 0) > END_SECONDS)
    if slow:
        draft.do(EndPods(slow))
    draft.look_again(POLL_SECONDS)
    return False


def _name_conflict(draft: Draft, job: RayJobView) -> None:
    message = f"RayJob {job.name} exists and is not this run's: delete or rename it; it is never adopted"
    old = find_condition(draft.status.conditions, "Progressing")
    if old is None or old.reason != "NameConflict":
        draft.event("NameConflict", message, warning=True)
    draft.condition("ClusterReady", False, "NameConflict", message)
    draft.progressing(False, "NameConflict", message)
    draft.look_again(CONFLICT_SECONDS)


def _make(draft: Draft, world: World, stop: DrainCause | None) -> None:
    attempt = draft.attempt
    if stop is not None:
        draft.update_attempt(drain_cause=stop)
        leave(draft, Outcome.DRAINED)
        return
    if world.refusal is not None and world.refusal.reason == "RayJobInvalid":
        leave(draft, Outcome.FAILED, Failure(FailureReason.VALIDATION_FAILED, world.refusal.message))
        return
    draft.do(EnsureFoundation())
    draft.do(CreateAttempt(attempt))
    if world.refusal is not None:
        draft.progressing(False, world.refusal.reason, world.refusal.message)
    else:
        draft.progressing(True, "Creating", f"RayJob {attempt.name} is being made")
    draft.look_again(POLL_SECONDS)


def _note_pods(draft: Draft, world: World) -> None:
    """Keep what only pods tell, since they go: GPUs asked for, the image's digest, and how they failed."""
    attempt = draft.attempt
    mine = [p for p in world.pods if p.ordinal == attempt.ordinal]
    gpus = sum(p.gpus for p in mine if not p.finished)
    if gpus != attempt.gpus:
        draft.update_attempt(gpus=gpus)
    failure = pod_failure(mine, attempt.ordinal)
    if failure and failure.evidence != attempt.evidence:
        draft.update_attempt(reason=failure.reason, evidence=failure.evidence)
    head = world.head(attempt.ordinal)
    provenance = draft.status.provenance
    if head and head.image_id and provenance and provenance.image_id != head.image_id:
        draft.update(provenance=provenance.model_copy(update={"image_id": head.image_id}))


def _queued(draft: Draft, world: World, stop: DrainCause | None) -> None:
    """The RayJob is suspended: its queue has not admitted it, or has taken its quota back."""
    attempt = draft.attempt
    if attempt.admitted_time is not None:
        if attempt.running_time is not None:
            entry = draft.status.stages[attempt.stage_index]
            draft.update_stage(attempt.stage_index, preemptions=entry.preemptions + 1)
        draft.event("Evicted", f"attempt {attempt.ordinal} lost its quota; it goes on when it is admitted again")
        draft.update_attempt(
            state=AttemptState.STARTING, admitted_time=None, running_time=None, cluster_uid=None,
            head_pod=None, head_uid=None, reason=None, evidence=None,
        )  # fmt: skip
    if stop is not None:
        draft.update_attempt(drain_cause=stop)
        leave(draft, Outcome.DRAINED)
        return
    draft.progressing(True, "WaitingForQuota", f"attempt {attempt.ordinal} waits in its queue")


def _admitted(draft: Draft, world: World, job: RayJobView) -> None:
    attempt = draft.attempt
    if attempt.admitted_time is None:
        attempt = draft.update_attempt(admitted_time=draft.now)
    head = world.head(attempt.ordinal)
    if attempt.head_uid is None and head is not None and not head.deleting:
        attempt = draft.update_attempt(head_pod=head.name, head_uid=head.uid)
    if world.cluster is not None and attempt.cluster_uid != world.cluster.uid:
        attempt = draft.update_attempt(cluster_uid=world.cluster.uid)
    reported = world.beat is not None and world.beat.report.ordinal == attempt.ordinal
    if attempt.state is AttemptState.STARTING and (job.job_status == "RUNNING" or reported):
        draft.update_attempt(state=AttemptState.RUNNING, running_time=draft.now)
        entry = draft.status.stages[attempt.stage_index]
        draft.update_stage(attempt.stage_index, running_time=entry.running_time or draft.now)
        draft.event("AttemptRunning", f"attempt {attempt.ordinal} of stage {entry.name} runs")
    if draft.attempt.state is AttemptState.RUNNING:
        draft.progressing(True, "Running", f"attempt {attempt.ordinal} runs")
    elif draft.attempt.state is AttemptState.STARTING:
        waiting = next(
            (f"pod {p.name}: {p.waiting}" for p in world.pods if p.waiting and p.ordinal == attempt.ordinal), ""
        )
        draft.progressing(True, "Starting", f"attempt {attempt.ordinal} starts" + (f"; {waiting}" if waiting else ""))


def _ended(draft: Draft, world: World, job: RayJobView) -> bool:
    """Whether the attempt is over; then it leaves."""
    attempt = draft.attempt
    draining = attempt.drain_cause is not None
    if job.job_status == "SUCCEEDED":
        leave(draft, Outcome.SUCCEEDED)
        return True
    failure = job_failure(job) or head_failure(attempt, world.head(attempt.ordinal))
    if failure is not None:
        leave(draft, Outcome.DRAINED if draining else Outcome.FAILED, failure)
        return True
    exited = world.storage and world.storage.stage and world.storage.stage.exit
    if draining and exited:
        leave(draft, Outcome.DRAINED)
        return True
    return False


def _drain(draft: Draft, world: World, cause: DrainCause) -> None:
    """Ask the trainer to save and stop, through the reply to its next report, and bound the wait."""
    attempt = draft.attempt
    if attempt.state is AttemptState.STARTING:
        draft.update_attempt(drain_cause=cause)
        leave(draft, Outcome.DRAINED)
        return
    if attempt.state is not AttemptState.DRAINING:
        seconds = draft.run.spec.checkpoint.drain_seconds
        attempt = draft.update_attempt(
            state=AttemptState.DRAINING, drain_cause=cause, drain_deadline=draft.now + timedelta(seconds=seconds)
        )
        draft.event("Draining", f"attempt {attempt.ordinal} is asked to save and stop within {seconds} s ({cause})")
    draft.progressing(
        True, "Draining", f"attempt {attempt.ordinal} saves and stops, by {attempt.drain_deadline:%H:%M:%S}"
    )
    if attempt.drain_deadline is None or draft.now >= attempt.drain_deadline:
        draft.event("DrainTimedOut", f"attempt {attempt.ordinal} did not stop in time; its pods go", warning=True)
        leave(draft, Outcome.DRAIN_TIMED_OUT)
        return
    draft.look_again(attempt.drain_deadline)
    draft.look_again(POLL_SECONDS)


def _check_deadlines(draft: Draft, world: World) -> None:
    attempt = draft.attempt
    stage = draft.stage(attempt.stage_index)
    entry = draft.status.stages[attempt.stage_index]
    if entry.running_time and stage.active_deadline_seconds:
        bound = stage.active_deadline_seconds
        if draft.due(entry.running_time, bound):
            text = f"stage {stage.name} has run for its activeDeadlineSeconds of {bound}"
            leave(draft, Outcome.FAILED, Failure(FailureReason.DEADLINE_EXCEEDED, text))
            return
    if attempt.state is AttemptState.STARTING and attempt.admitted_time:
        bound = stage.pre_running_deadline_seconds
        if draft.due(attempt.admitted_time, bound):
            waiting = "; ".join(f"{p.name}: {p.waiting}" for p in world.pods if p.waiting)
            text = f"not running {bound} s after its quota was granted (preRunningDeadlineSeconds). {waiting}".rstrip(
                ". "
            )
            leave(draft, Outcome.FAILED, Failure(FailureReason.PRE_RUNNING_DEADLINE_EXCEEDED, text))
        return
    if attempt.state is AttemptState.RUNNING:
        since = last_sign_of_life(attempt, world)
        if since is not None and draft.due(since, stage.stall_seconds):
            what = "step" if stage.type is StageType.TRAIN else "sign of life"
            text = f"no {what} for {stage.stall_seconds} s (stallSeconds), the last at {since:%Y-%m-%d %H:%M:%S} UTC"
            leave(draft, Outcome.FAILED, Failure(FailureReason.STALLED, text))


def last_sign_of_life(attempt: AttemptStatus, world: World) -> datetime | None:
    """When the attempt last got on: a finished step or a new checkpoint; outside of training a heartbeat is enough.

    Never before this process could watch: what happened while the operator was down is not known.
    """
    storage = world.storage.stage if world.storage else None
    committed = storage.newest.committed_time if storage and storage.newest else None
    beat = world.beat
    alive = beat.received if beat and beat.report.phase is not TrainerPhase.TRAINING else None
    signs = [alive, attempt.running_time, attempt.step_time, world.watching_since, committed]
    return max((s for s in signs if s is not None), default=None)
