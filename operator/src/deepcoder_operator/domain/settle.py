"""Settles how an attempt ended, once its pods are gone and storage can be read, and decides what follows.

An attempt succeeds only if the job succeeded *and* the stage's final manifest exists and is verified. Without storage
nothing is settled: the run reports that and waits, without holding GPUs.
"""

from __future__ import annotations

from datetime import timedelta

from deepcoder_contracts.api.attempt_status import AttemptStatus, BackoffStatus, Outcome
from deepcoder_contracts.api.condition import MAX_MESSAGE
from deepcoder_contracts.api.failure import FailureAction, FailureReason
from deepcoder_contracts.api.run_status import StagePhase
from deepcoder_contracts.exit import ExitCode, ExitRecord
from deepcoder_contracts.stage import StageType
from deepcoder_operator.domain import eviction, judge_outage
from deepcoder_operator.domain.bounds import RECHECK_SECONDS
from deepcoder_operator.domain.classify import Failure, backoff_seconds, decide, refine
from deepcoder_operator.domain.draft import Draft, fitted
from deepcoder_operator.domain.eviction import waits_for_event, with_queue_message
from deepcoder_operator.domain.judge_outage import with_pool_message
from deepcoder_operator.domain.lineage import note_checkpoint
from deepcoder_operator.domain.promotion import promote
from deepcoder_operator.domain.provenance import note_manifest
from deepcoder_operator.domain.terminal import fail_run
from deepcoder_operator.domain.usage import note_waste
from deepcoder_operator.domain.world import StoredStage, World


def settle(draft: Draft, world: World) -> None:
    """Settle an attempt whose RayJob and pods are gone."""
    attempt = draft.attempt
    view = world.storage
    if view is None or view.stage is None:
        problem = view.problem if view else None
        reason = problem.reason if problem else "StorageNotChecked"
        text = problem.message if problem else "the bucket has not been checked yet"
        draft.progressing(False, reason, f"attempt {attempt.ordinal} has ended; its result cannot be read: {text}")
        draft.look_again(RECHECK_SECONDS if problem else 0)
        return
    stored = view.stage
    if stored.newest is not None:
        note_checkpoint(draft, attempt.stage_index, stored.newest)
    note_manifest(draft, stored)
    record = stored.exit
    if _finished(draft, attempt, stored, record):
        draft.update(attempt=None, backoff=None)
        draft.event(
            "AttemptSucceeded", f"attempt {attempt.ordinal} finished stage {draft.stage(attempt.stage_index).name}"
        )
        promote(draft, attempt.stage_index, stored)
        return
    exited_on_request = record is not None and record.code == ExitCode.DRAINED
    if attempt.outcome in (Outcome.DRAINED, Outcome.DRAIN_TIMED_OUT):
        _drained(draft, attempt, saved=exited_on_request)
        return
    if attempt.outcome is Outcome.SUCCEEDED:
        why = "; ".join(stored.rejected) or "no final manifest"
        failure = Failure(FailureReason.MANIFEST_MISSING, f"the job succeeded, but {why}")
        if record is not None and record.code != ExitCode.DONE:
            failure = refine(attempt, record)
    else:
        failure = refine(attempt, record)
    if waits_for_event(draft, world):
        return
    failure = with_queue_message(attempt, world, failure)
    _failed(draft, world, with_pool_message(draft, world, failure))


def _finished(draft: Draft, attempt: AttemptStatus, stored: StoredStage, record: ExitRecord | None) -> bool:
    done = record is not None and record.code == ExitCode.DONE
    if attempt.outcome is not Outcome.SUCCEEDED and not (attempt.drain_cause and done):
        return False
    return stored.ends(draft.stage(attempt.stage_index).type)


def _drained(draft: Draft, attempt: AttemptStatus, *, saved: bool) -> None:
    draft.update(attempt=None, backoff=None)
    if attempt.running_time is None:
        text = f"attempt {attempt.ordinal} was stopped before it ran"
    elif saved:
        text = f"attempt {attempt.ordinal} saved and stopped"
    else:
        text = f"attempt {attempt.ordinal} was stopped without a last checkpoint; the newest earlier one is kept"
    if not saved or draft.stage(attempt.stage_index).type is StageType.EVALUATE:
        note_waste(draft, attempt)
    if attempt.outcome is not Outcome.DRAIN_TIMED_OUT:  # an event reported that when the time was up
        draft.event("Drained", text, warning=not saved and attempt.running_time is not None)
    draft.progressing(False, "Drained", text)
    draft.look_again(0)


def _failed(draft: Draft, world: World, failure: Failure) -> None:
    attempt = draft.attempt
    index = attempt.stage_index
    entry = draft.status.stages[index]
    policy = draft.run.spec.failure_policy
    latest, backoff = draft.status.latest_checkpoint, draft.status.backoff
    progressed = latest is not None and latest.ordinal == attempt.ordinal
    row = 1 if progressed or backoff is None else backoff.failures_in_row + 1
    free = judge_outage.is_uncounted(draft, world, failure, row) or eviction.is_uncounted(attempt, failure, row)
    action, rule = decide(policy, failure, free=free)
    note_waste(draft, attempt)
    counted = action is FailureAction.RETRY
    entry = draft.update_stage(
        index,
        failures=entry.failures + counted,
        preemptions=entry.preemptions + (failure.reason is FailureReason.PREEMPTED),
        message=f"attempt {attempt.ordinal}: {failure.reason}: {failure.evidence}"[:1000],
    )
    draft.update(attempt=None)
    told, follows = f"attempt {attempt.ordinal} failed: {failure.reason}: {failure.evidence}", f" ({rule}: {action})"
    draft.event(failure.reason, fitted(told, follows), warning=True)
    if action is FailureAction.FAIL_RUN or (counted and entry.failures >= policy.max_attempts):
        draft.update_stage(index, phase=StagePhase.FAILED, completion_time=draft.now)
        spent = f"; {entry.failures} of {policy.max_attempts} attempts failed" if counted else ""
        fail_run(draft, failure.reason, f"stage {entry.name}: {failure.evidence}{spent}")
        return
    pause = backoff_seconds(policy, row)
    draft.update(
        backoff=BackoffStatus(until=draft.now + timedelta(seconds=pause), failures_in_row=row, reason=failure.reason)
    )
    text = fitted(told, f"{follows}; next attempt in {pause:.0f} s", MAX_MESSAGE)
    draft.progressing(True, failure.reason, text)
    draft.look_again(pause)
