"""The end of a run that is deleted: artifacts as asked, then the finalizer; children go by garbage collection.

Both are bounded: storage that cannot be reached must not keep an object undeletable for ever.
"""

from __future__ import annotations

from deepcoder_operator.api.run import FINALIZER
from deepcoder_operator.api.run_spec import Artifacts
from deepcoder_operator.domain.draft import DeleteArtifacts, Draft, RemoveFinalizer
from deepcoder_operator.domain.world import parse_time

ARTIFACT_SECONDS = 600.0
"""Time that deleting artifacts may take, retries included, from the end of draining."""


def let_go(draft: Draft) -> None:
    """Delete artifacts if that is asked for, then release the object."""
    if FINALIZER not in draft.run.metadata.finalizers:
        return
    asked = parse_time(draft.run.metadata.deletion_timestamp)
    wanted = draft.run.spec.cleanup.artifacts is Artifacts.DELETE and draft.status.provenance is not None
    if wanted and asked is not None:
        bound = ARTIFACT_SECONDS + draft.run.spec.checkpoint.drain_seconds * 2
        if not draft.due(asked, bound):
            draft.do(DeleteArtifacts())
            draft.look_again(15)
        else:
            draft.event("ArtifactsLeft", "the run's folder could not be deleted in time; it stays", warning=True)
    draft.do(RemoveFinalizer())
