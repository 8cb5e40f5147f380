"""Which checkpoint comes from which: the parent of a stage, and the chain that the status shows."""

from __future__ import annotations

from deepcoder_contracts.manifest import ParentRef
from deepcoder_contracts.stage import StageType
from deepcoder_operator.api.run import DeepCoderRun
from deepcoder_operator.api.run_status import MAX_CHECKPOINTS, CheckpointStatus, RunStatus
from deepcoder_operator.domain.draft import Draft


def parent_of(run: DeepCoderRun, status: RunStatus, index: int) -> ParentRef | None:
    """What a stage without checkpoints starts from: the newest earlier Train stage's, else spec.from."""
    for stage, entry in reversed(list(zip(run.spec.stages, status.stages, strict=False))[:index]):
        if stage.type is StageType.TRAIN and entry.checkpoint is not None:
            return ParentRef(uri=entry.checkpoint.uri, digest=entry.checkpoint.digest)
    return status.provenance.from_ if status.provenance else None


def note_checkpoint(draft: Draft, index: int, checkpoint: CheckpointStatus) -> bool:
    """Record a verified checkpoint; whether it is new."""
    status = draft.status
    if any(c.digest == checkpoint.digest for c in status.checkpoints[:1]):
        return False
    known = [c for c in status.checkpoints if c.digest != checkpoint.digest]
    draft.update(latest_checkpoint=checkpoint, checkpoints=[checkpoint, *known][:MAX_CHECKPOINTS])
    entry = draft.status.stages[index]
    draft.update_stage(index, checkpoint=checkpoint, step=max(entry.step, checkpoint.step))
    draft.event("CheckpointVerified", f"{checkpoint.uri} ({checkpoint.digest})")
    return True
