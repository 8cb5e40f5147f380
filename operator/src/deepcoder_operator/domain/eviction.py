"""A queue that withdraws an attempt's quota: for another run, or because the attempt's pods were not ready in time.

Kueue's `waitForPodsReady` withdraws the quota of an attempt whose pods are not all ready after a while. For the
operator this looks like a preemption, which never counts against maxAttempts: a stage whose pods fit no node, or whose
image cannot be pulled, would request its quota forever. Kueue's own bound (`requeuingStrategy.backoffLimitCount`) never
applies, because each attempt has a RayJob, and with it a Workload, of its own. So such an end is classified as a start
that took too long. Waiting for nodes may take several tries, so it counts only from the eleventh failure in a row on.

Only Kueue's event on the RayJob tells the two apart. Kueue posts it after it has withdrawn the quota, so it is waited
for, up to `EVENT_SECONDS`. Without it the end counts as a preemption.
"""

from __future__ import annotations

from dataclasses import replace

from deepcoder_contracts.api.attempt_status import AttemptStatus, Outcome
from deepcoder_contracts.api.failure import FailureReason
from deepcoder_operator.domain.classify import Failure
from deepcoder_operator.domain.draft import Draft
from deepcoder_operator.domain.judge_outage import UNCOUNTED_IN_ROW
from deepcoder_operator.domain.world import World

QUEUE_STOPPED = "Stopped"
"""Reason of the event that Kueue posts on a job whose quota it withdraws."""

EVENT_SECONDS = 5
"""How long after the withdrawal the event is waited for. Without Kueue's event there is nothing else to wait for."""

_NOT_READY_IN_TIME = "PodsReady timeout"
"""In that event's note, if the pods were not ready in time."""


def was_withdrawn_before_it_ran(attempt: AttemptStatus | None) -> bool:
    """Whether the attempt's queue withdrew its quota before its program ran."""
    return attempt is not None and attempt.evicted_time is not None and attempt.running_time is None


def waits_for_event(draft: Draft, world: World) -> bool:
    """Whether the queue may yet say why it withdrew the quota of an attempt that has not run."""
    attempt = draft.attempt
    if attempt.evicted_time is None or attempt.running_time is not None or attempt.outcome is not Outcome.FAILED:
        return False
    return not world.withdrawal and not draft.due(attempt.evicted_time, EVENT_SECONDS)


def with_queue_message(attempt: AttemptStatus, world: World, failure: Failure) -> Failure:
    """Add what the queue said when it withdrew the quota. Pods that were not ready in time are no preemption."""
    if failure.reason is not FailureReason.PREEMPTED or not world.withdrawal:
        return failure
    said = replace(failure, evidence=f"{failure.evidence}: {world.withdrawal}")
    late = was_withdrawn_before_it_ran(attempt) and _NOT_READY_IN_TIME in world.withdrawal
    return replace(said, reason=FailureReason.PRE_RUNNING_DEADLINE_EXCEEDED) if late else said


def is_uncounted(attempt: AttemptStatus, failure: Failure, in_row: int) -> bool:
    """Whether a start that took the queue too long does not count yet."""
    late = failure.reason is FailureReason.PRE_RUNNING_DEADLINE_EXCEEDED and was_withdrawn_before_it_ran(attempt)
    return late and in_row <= UNCOUNTED_IN_ROW
