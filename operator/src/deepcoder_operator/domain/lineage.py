"""Parents of stages and checkpoints, and the chain of checkpoints in the status.

Storage may lose a verified checkpoint. The chain then continues from the newest complete one, and an event reports the
loss.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.api.run_status import MAX_CHECKPOINTS, CheckpointStatus, RunStatus
from deepcoder_contracts.manifest import ParentRef
from deepcoder_contracts.stage import StageType
from deepcoder_operator.domain.draft import Draft
from deepcoder_operator.domain.heartbeat import at_step
from deepcoder_operator.domain.numbers import decimal
from deepcoder_operator.domain.usage import invested, write_off


def parent_of(run: DeepCoderRun, status: RunStatus, index: int) -> ParentRef | None:
    """Return what a stage without checkpoints starts from: an earlier Train stage's last checkpoint, else spec.from."""
    for stage, entry in reversed(list(zip(run.spec.stages, status.stages, strict=False))[:index]):
        if stage.type is StageType.TRAIN and entry.checkpoint is not None:
            return ParentRef(uri=entry.checkpoint.uri, digest=entry.checkpoint.digest)
    return status.provenance.from_ if status.provenance else None


def note_checkpoint(draft: Draft, index: int, checkpoint: CheckpointStatus) -> None:
    """Record the newest verified checkpoint of a stage, if it is new.

    If it does not follow the newest known checkpoint, storage has lost that one.
    """
    status, latest = draft.status, draft.status.latest_checkpoint
    if latest is not None and latest.digest == checkpoint.digest:
        return
    known = next((c for c in status.checkpoints if c.digest == checkpoint.digest), None)
    before = _before(status.checkpoints, checkpoint)
    kept = known or next(iter(before), None)
    if latest is not None and latest not in before:
        write_off(draft, latest, kept)
        draft.event(
            "CheckpointLost", f"{latest.uri} is lost or damaged; the newest one is now {checkpoint.uri}", warning=True
        )
    spent = invested(draft, checkpoint)
    gpu_seconds = (kept.gpu_seconds if kept else None) if spent is None else decimal(spent, 0)
    checkpoint = known or checkpoint.model_copy(update={"gpu_seconds": gpu_seconds})
    draft.update(latest_checkpoint=checkpoint, checkpoints=[checkpoint, *before][:MAX_CHECKPOINTS])
    entry = draft.status.stages[index]
    draft.update_stage(index, checkpoint=checkpoint, step=max(entry.step, checkpoint.step))
    progress = draft.status.progress
    if progress is not None and progress.step < checkpoint.step <= progress.max_steps:
        # A stage's last report may come too soon after the previous one to be written, or reach an operator that exits.
        draft.update(progress=at_step(progress, checkpoint.step))
    draft.event("CheckpointVerified", f"{checkpoint.uri} ({checkpoint.digest})")


def _before(known: Sequence[CheckpointStatus], checkpoint: CheckpointStatus) -> list[CheckpointStatus]:
    """Return the known ancestors of a checkpoint, newest first: by stage and step if its parent is unknown."""
    digests = [c.digest for c in known]
    if checkpoint.parent_digest in digests:
        return list(known[digests.index(checkpoint.parent_digest) :])
    return [c for c in known if c.stage != checkpoint.stage or c.step < checkpoint.step]
