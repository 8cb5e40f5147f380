"""The bounds of a live attempt: its stage's deadline, its time to start, and its time without progress.

Judges that refuse to start end an attempt before any of these, because waiting for them is in vain (`judge_outage`).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from deepcoder_contracts.api.attempt_status import AttemptState, AttemptStatus, Outcome
from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.stage import Stage
from deepcoder_contracts.stage import StageType
from deepcoder_operator.domain.attempt_end import end_attempt
from deepcoder_operator.domain.classify import Failure
from deepcoder_operator.domain.draft import Draft
from deepcoder_operator.domain.judge_outage import end_without_judges, stall
from deepcoder_operator.domain.world import World

DEAF_FACTOR = 3
"""Factor on the time that a silent attempt gets while no other attempt is heard either."""

SKEW_SECONDS = 300.0
"""How far storage's clock may be ahead of ours. Times later than that are ignored."""


def check_deadlines(draft: Draft, world: World) -> None:
    """Give up the attempt if one of its bounds has passed. Otherwise look again when the next one does."""
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
            end_attempt(draft, Outcome.FAILED, Failure(FailureReason.DEADLINE_EXCEEDED, text))
            return
    if attempt.state is AttemptState.STARTING and attempt.admitted_time:
        bound = stage.pre_running_deadline_seconds
        if draft.due(attempt.admitted_time, bound):
            text = f"not running {bound} s after its quota was granted (preRunningDeadlineSeconds)"
            text = world.with_waits(text, attempt.ordinal)
            end_attempt(draft, Outcome.FAILED, Failure(FailureReason.PRE_RUNNING_DEADLINE_EXCEEDED, text))
        return
    if attempt.state is AttemptState.RUNNING:
        since = last_sign_of_life(attempt, world, draft.now)
        if since is not None and draft.due(since, stall_seconds(stage, world, draft.now)):
            what = "step" if stage.type is StageType.TRAIN else "sign of life"
            text = f"no {what} for {stage.stall_seconds} s (stallSeconds), the last at {since:%Y-%m-%d %H:%M:%S} UTC"
            text = world.with_waits(text, attempt.ordinal)
            end_attempt(draft, Outcome.FAILED, stall(draft, world, text, stage.stall_seconds))


def stall_seconds(stage: Stage, world: World, now: datetime) -> float:
    """Return how long an attempt may go without a sign of life. It is longer while no other attempt is heard either.

    In that case the operator itself may be unreachable (its Service, a network policy, its certificate), and the runs
    may be fine.
    """
    deaf = world.heard is not None and now - world.heard >= timedelta(seconds=stage.stall_seconds)
    return stage.stall_seconds * (DEAF_FACTOR if deaf else 1)


def last_sign_of_life(attempt: AttemptStatus, world: World, now: datetime) -> datetime | None:
    """Return the time of the attempt's last progress: a step or a checkpoint, or outside of training a heartbeat.

    It is never before this process began to watch, because what happened while the operator was down is unknown.
    """
    newest = world.stored.newest if world.stored else None
    committed = newest.committed_time if newest else None
    if committed is not None and committed > now + timedelta(seconds=SKEW_SECONDS):
        committed = None
    beat = world.beat_of(attempt.ordinal)
    signs = [beat.alive if beat else None, attempt.running_time, attempt.step_time, world.watching_since, committed]
    return max((s for s in signs if s is not None), default=None)
