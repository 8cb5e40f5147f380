"""Which checkpoint comes from which: the parent of a stage, and the chain that the status shows.

Storage may lose what was verified: the chain then goes on from the newest that is whole, and an event says what is
gone.
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
    """What a stage without checkpoints starts from: the newest earlier Train stage's, else spec.from."""
    for stage, entry in reversed(list(zip(run.spec.stages, status.stages, strict=False))[:index]):
        if stage.type is StageType.TRAIN and entry.checkpoint is not None:
            return ParentRef(uri=entry.checkpoint.uri, digest=entry.checkpoint.digest)
    return status.provenance.from_ if status.provenance else None


def note_checkpoint(draft: Draft, index: int, checkpoint: CheckpointStatus) -> None:
    """Record the newest verified checkpoint of a stage, if it is news.

    Where it does not come after the newest one that was known, storage has lost that one.
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
            "CheckpointLost", f"{latest.uri} is not there as it was verified; {checkpoint.uri} stands", warning=True
        )
    spent = invested(draft, checkpoint)
    gpu_seconds = (kept.gpu_seconds if kept else None) if spent is None else decimal(spent, 0)
    checkpoint = known or checkpoint.model_copy(update={"gpu_seconds": gpu_seconds})
    draft.update(latest_checkpoint=checkpoint, checkpoints=[checkpoint, *before][:MAX_CHECKPOINTS])
    entry = draft.status.stages[index]
    draft.update_stage(index, checkpoint=checkpoint, step=max(entry.step, checkpoint.step))
    progress = draft.status.progress
    if progress is not None and progress.step < checkpoint.step <= progress.max_steps:
        # A stage's last report may come too soon after the one before to be written, or to an operator that ends.
        draft.update(progress=at_step(progress, checkpoint.step))
    draft.event("CheckpointVerified", f"{checkpoint.uri} ({checkpoint.digest})")


def _before(known: Sequence[CheckpointStatus], checkpoint: CheckpointStatus) -> list[CheckpointStatus]:
    """Of the known checkpoints, newest first, those that one comes from: by stage and step if its parent is none."""
    digests = [c.digest for c in known]
    if checkpoint.parent_digest in digests:
        return list(known[digests.index(checkpoint.parent_digest) :])
    return [c for c in known if c.stage != checkpoint.stage or c.step < checkpoint.step]
