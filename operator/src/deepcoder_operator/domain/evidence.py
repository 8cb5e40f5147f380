"""Which reports and exit records speak of the attempt as it is now.

A queue may take an attempt's quota back and later admit the same RayJob again: under one ordinal there then are
several incarnations, each with a head of its own. What an earlier one said last (a heartbeat, "saved and left") would
otherwise be taken for the word of the one that runs, or crashes, after it.
"""

from __future__ import annotations

from deepcoder_contracts.exit import ExitRecord
from deepcoder_operator.api.attempt_status import MAX_PAST_HEADS, AttemptStatus
from deepcoder_operator.domain.world import Beat, StoredStage, World


def beat_of(attempt: AttemptStatus, world: World) -> Beat | None:
    """The newest report, if it is of this ordinal, came after the quota did, and from no head of before.

    Those may go on reporting for as long as their grace lasts.
    """
    beat = world.beat
    if beat is None or beat.report.ordinal != attempt.ordinal:
        return None
    if attempt.admitted_time is None or beat.received < attempt.admitted_time or beat.pod_uid in attempt.past_heads:
        return None
    return beat


def exit_of(attempt: AttemptStatus, stored: StoredStage) -> ExitRecord | None:
    """The exit record, unless the head of an earlier incarnation wrote it."""
    record = stored.exit
    return None if record is not None and record.pod_uid in attempt.past_heads else record


def past_heads(attempt: AttemptStatus) -> list[str]:
    """Heads of earlier incarnations, now that this one is over too."""
    mine = [attempt.head_uid] if attempt.head_uid else []
    return [*attempt.past_heads, *mine][-MAX_PAST_HEADS:]
