"""What bounds a live attempt that nothing else ends: its stage's deadline, its time to start, its time for a step.

Before any of them, judges that refuse to start: what is waited for then does not come (`outage`).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from deepcoder_contracts.api.attempt_status import AttemptState, AttemptStatus, Outcome
from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.stage import Stage
from deepcoder_contracts.stage import StageType
from deepcoder_operator.domain.classify import Failure
from deepcoder_operator.domain.draft import Draft
from deepcoder_operator.domain.leaving import leave
from deepcoder_operator.domain.outage import end_without_judges, stall
from deepcoder_operator.domain.world import World

DEAF_FACTOR = 3
"""How many times longer a silent attempt is waited for while none of the others is heard."""

SKEW_SECONDS = 300.0
"""How far ahead of ours storage's clock may be; what it dates later says nothing."""


def check_deadlines(draft: Draft, world: World) -> None:
    """Give the attempt up if one of its bounds has passed; if none has, look again when one does."""
    attempt = draft.attempt
    stage = draft.stage(attempt.stage_index)
    entry = draft.status.stages[attempt.stage_index]
    end_without_judges(draft, world)
    if draft.attempt.state is AttemptState.LEAVING:
        return
    if attempt.running_time and stage.active_deadline_seconds:
        bound = stage.active_deadline_seconds
        if draft.due(attempt.running_time, bound - entry.active_seconds):
            text = f"stage {stage.name} has run for its activeDeadlineSeconds of {bound}"
            leave(draft, Outcome.FAILED, Failure(FailureReason.DEADLINE_EXCEEDED, text))
            return
    if attempt.state is AttemptState.STARTING and attempt.admitted_time:
        bound = stage.pre_running_deadline_seconds
        if draft.due(attempt.admitted_time, bound):
            text = f"not running {bound} s after its quota was granted (preRunningDeadlineSeconds)"
            text = world.with_waits(text, attempt.ordinal)
            leave(draft, Outcome.FAILED, Failure(FailureReason.PRE_RUNNING_DEADLINE_EXCEEDED, text))
        return
    if attempt.state is AttemptState.RUNNING:
        since = last_sign_of_life(attempt, world, draft.now)
        if since is not None and draft.due(since, stall_seconds(stage, world, draft.now)):
            what = "step" if stage.type is StageType.TRAIN else "sign of life"
            text = f"no {what} for {stage.stall_seconds} s (stallSeconds), the last at {since:%Y-%m-%d %H:%M:%S} UTC"
            text = world.with_waits(text, attempt.ordinal)
            leave(draft, Outcome.FAILED, stall(draft, world, text, stage.stall_seconds))


def stall_seconds(stage: Stage, world: World, now: datetime) -> float:
    """How long an attempt may be without a sign of life: longer while no other attempt that runs is heard either.

    Then it is this operator that is deaf (its Service, a network policy, its certificate), and the runs may be well.
    """
    deaf = world.heard is not None and now - world.heard >= timedelta(seconds=stage.stall_seconds)
    return stage.stall_seconds * (DEAF_FACTOR if deaf else 1)


def last_sign_of_life(attempt: AttemptStatus, world: World, now: datetime) -> datetime | None:
    """When the attempt last got on: a finished step or a new checkpoint; outside of training a heartbeat is enough.

    Never before this process could watch: what happened while the operator was down is not known.
    """
    newest = world.stored.newest if world.stored else None
    committed = newest.committed_time if newest else None
    if committed is not None and committed > now + timedelta(seconds=SKEW_SECONDS):
        committed = None
    beat = world.beat_of(attempt.ordinal)
    signs = [beat.alive if beat else None, attempt.running_time, attempt.step_time, world.watching_since, committed]
    return max((s for s in signs if s is not None), default=None)
