"""What a pass must know from storage before it can plan. Queries are slow, so there are as few as possible."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from deepcoder_contracts.api.attempt_status import AttemptState, AttemptStatus
from deepcoder_contracts.api.run import FINALIZER, DeepCoderRun
from deepcoder_contracts.stage import StageType
from deepcoder_operator.domain.attempt_end import is_over
from deepcoder_operator.domain.classify import head_failure, job_failure
from deepcoder_operator.domain.deadlines import last_sign_of_life, stall_seconds
from deepcoder_operator.domain.judge_outage import cannot_be_judged
from deepcoder_operator.domain.terminal import is_terminal
from deepcoder_operator.domain.world import World
from deepcoder_operator.progress_board import FIGURES_SECONDS


@dataclass(frozen=True)
class StorageQuery:
    """A query to storage."""

    admission: bool = False
    """Check credentials, bucket and the owner of the run's folder; resolve spec.from."""

    stage_index: int | None = None
    """Find this stage's newest verified checkpoint, or its evaluation."""

    ordinal: int | None = None
    """Also read this attempt's exit.json."""


def storage_query(run: DeepCoderRun, world: World, now: datetime) -> StorageQuery | None:
    """Return what this pass needs, or None."""
    status, attempt = run.status, run.status.attempt
    if is_terminal(status) or (attempt is not None and _ends_anyway(run, attempt, world)):
        return None
    if run.metadata.deletion_timestamp:
        saves = attempt is not None and attempt.state is AttemptState.DRAINING
        return StorageQuery(stage_index=attempt.stage_index, ordinal=attempt.ordinal) if attempt and saves else None
    if attempt is not None and FINALIZER not in run.metadata.finalizers:
        return None
    if attempt is None:
        waiting = status.backoff is not None and now < status.backoff.until
        return None if waiting or status.held or run.spec.suspend else StorageQuery(admission=True)
    question = StorageQuery(stage_index=attempt.stage_index, ordinal=attempt.ordinal)
    if attempt.state is AttemptState.LEAVING:
        return question if is_over(attempt, run.metadata.uid, world, now) else None
    succeeded = world.rayjob is not None and world.rayjob.job_status == "SUCCEEDED"
    if attempt.state is AttemptState.DRAINING or succeeded:
        return question
    if run.spec.stages[attempt.stage_index].type is StageType.TRAIN and _new_checkpoint(run, attempt, world, now):
        return question
    if attempt.state is AttemptState.RUNNING:
        since = last_sign_of_life(attempt, world, now)
        bound = timedelta(seconds=stall_seconds(run.spec.stages[attempt.stage_index], world, now))
        if since is not None and now >= since + bound:
            return question
    return None


def _new_checkpoint(run: DeepCoderRun, attempt: AttemptStatus, world: World, now: datetime) -> bool:
    """Whether a report names a checkpoint that the status does not have, and it is time for a write."""
    progress, latest = run.status.progress, run.status.latest_checkpoint
    beat = world.beat_of(attempt.ordinal)
    if beat is None or beat.report.latest_checkpoint is None:
        return False
    if progress is not None and now < progress.time + timedelta(seconds=FIGURES_SECONDS):
        return False
    return latest is None or latest.digest != beat.report.latest_checkpoint.digest


def _ends_anyway(run: DeepCoderRun, attempt: AttemptStatus, world: World) -> bool:
    """Whether a live attempt must drain or leave regardless of storage, so that a slow bucket cannot delay that."""
    job = world.rayjob
    if attempt.state is AttemptState.LEAVING or (job is not None and job.job_status == "SUCCEEDED"):
        return False
    evicted = job is not None and job.suspended and attempt.admitted_time is not None and attempt.evicted_time is None
    failed = job is not None and job_failure(job) is not None
    saves = attempt.state is AttemptState.DRAINING or run.metadata.deletion_timestamp is not None
    if not saves and cannot_be_judged(run, attempt, world):
        return True
    return evicted or failed or head_failure(attempt, world.head(attempt)) is not None


def rayjob_in_doubt(attempt: AttemptStatus, world: World) -> bool:
    """Whether the RayJob appears suspended although the attempt has pods or had its quota.

    Either its queue has withdrawn the quota, or our view of the RayJob is older than its admission: RayJobs and pods
    have separate watches, and one may be minutes behind the other.
    """
    job = world.rayjob
    has_pods = bool(world.pods_of(attempt.ordinal))
    return (
        job is not None
        and job.suspended
        and attempt.evicted_time is None
        and attempt.state is not AttemptState.LEAVING
        and (has_pods or attempt.admitted_time is not None)
    )
