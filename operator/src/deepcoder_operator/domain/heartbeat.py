"""Copies a trainer's report into the status, at most every `FIGURES_SECONDS`, and derives the reply from the status.

Reports may be lost, late, or from attempts that are over. Only the newest report of the live attempt counts. A figure
that a status cannot hold is left out. An unknown attempt is told to stop.
"""

from __future__ import annotations

from datetime import datetime

from deepcoder_contracts.api.attempt_status import AttemptState
from deepcoder_contracts.api.run_status import ProgressStatus, RunStatus
from deepcoder_contracts.progress import Desired, ProgressReply, ProgressReport
from deepcoder_operator.domain.draft import Draft
from deepcoder_operator.domain.numbers import measured, measurements
from deepcoder_operator.domain.provenance import note_accelerator
from deepcoder_operator.domain.world import World
from deepcoder_operator.progress_board import FIGURES_SECONDS

MAX_METRICS = 64


def note_progress(draft: Draft, world: World) -> None:
    """Copy the newest report of the live attempt into the status, if it is time."""
    attempt, old = draft.status.attempt, draft.status.progress
    beat = world.beat_of(attempt.ordinal) if attempt is not None else None
    if beat is None or attempt is None:
        return
    if old is not None and old.time >= beat.received:
        return
    if old is not None and not draft.due(old.time, FIGURES_SECONDS):
        return
    report = beat.report
    note_accelerator(draft, report.accelerator)
    stepped = old is None or report.step != old.step
    draft.update(progress=_progress(report, beat.received))
    draft.update_attempt(
        heartbeat_time=beat.received, step_time=beat.received if stepped else attempt.step_time or attempt.running_time
    )
    entry = draft.status.stages[attempt.stage_index]
    reward = report.metrics.get("reward_mean")
    draft.update_stage(
        attempt.stage_index,
        step=max(entry.step, report.step),
        reward=(measured(reward) if reward is not None else None) or entry.reward,
    )


def _progress(report: ProgressReport, received: datetime) -> ProgressStatus:
    metrics = measurements((k[:128], v) for k, v in sorted(report.metrics.items())[:MAX_METRICS])
    return ProgressStatus(
        step=report.step,
        max_steps=report.max_steps,
        display=_display(report.step, report.max_steps),
        reward=metrics.get("reward_mean"),
        truncated_ratio=metrics.get("truncated_ratio"),
        metrics=metrics,
        verdicts={k[:128]: v for k, v in sorted(report.verdicts.items())[:MAX_METRICS]},
        phase=report.phase,
        time=received,
    )


def at_step(progress: ProgressStatus, step: int) -> ProgressStatus:
    """Return the reported progress with a later step, which a checkpoint has proven."""
    return progress.model_copy(update={"step": step, "display": _display(step, progress.max_steps)})


def _display(step: int, max_steps: int) -> str:
    return f"{step}/{max_steps}"


def reply(status: RunStatus, now: datetime) -> ProgressReply:
    """Return the reply to a report of the live attempt."""
    wish, provenance = _wish(status, now), status.provenance
    return wish.model_copy(update={"image_id": provenance.image_id if provenance else None})


def _wish(status: RunStatus, now: datetime) -> ProgressReply:
    attempt = status.attempt
    if attempt is None or attempt.state is AttemptState.LEAVING:
        return ProgressReply(desired=Desired.DRAIN, deadline_seconds=0)
    if attempt.state is AttemptState.DRAINING and attempt.drain_deadline:
        left = (attempt.drain_deadline - now).total_seconds()
        return ProgressReply(desired=Desired.DRAIN, deadline_seconds=max(left, 0.0))
    return ProgressReply(desired=Desired.RUN)
