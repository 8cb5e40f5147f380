"""The end of a run that is deleted: artifacts as asked, then the finalizer; children go by garbage collection.

Both are bounded: storage that cannot be reached must not keep an object undeletable for ever. Credentials that are gone
do not come back while a namespace is being deleted, which removes Secrets and runs in no order: the folder is left, at
once without the Secret, after a minute where it may not be read.
"""

from __future__ import annotations

from datetime import datetime

from deepcoder_contracts.api.run import FINALIZER
from deepcoder_contracts.api.run_spec import Artifacts
from deepcoder_operator.domain.conditions import find_condition
from deepcoder_operator.domain.draft import AddFinalizer, DeleteArtifacts, Draft, RemoveFinalizer
from deepcoder_operator.domain.resolve import storage_uri
from deepcoder_operator.domain.world import World, parse_time

ARTIFACT_SECONDS = 600.0
"""Time that deleting artifacts may take, retries included, from the end of draining."""

FORBIDDEN_SECONDS = 60.0
"""Time for which a Secret that may not be read may still come back, once its folder is to go: roles are replaced one by
one in an upgrade."""


def let_go(draft: Draft, world: World) -> None:
    """Delete artifacts if that is asked for, then release the object."""
    if FINALIZER not in draft.run.metadata.finalizers:
        return
    if world.obstacle is not None and world.obstacle.action == RemoveFinalizer.__name__:
        draft.do(RemoveFinalizer())  # what is to be done before was done, or told
        return
    asked = parse_time(draft.run.metadata.deletion_timestamp)
    wanted = draft.run.spec.cleanup.artifacts is Artifacts.DELETE and draft.status.provenance is not None
    if wanted and asked is not None:
        bound = ARTIFACT_SECONDS + draft.run.spec.checkpoint.drain_seconds * 2
        obstacle, where = world.obstacle, storage_uri(draft.run)
        draft.progressing(False, "DeletingArtifacts", f"the run's folder {where} is being deleted")
        if obstacle is not None and _credentials_are_gone(draft, obstacle.reason, asked):
            text = f"the run's folder {where} stays: {obstacle.message}"
            draft.event("ArtifactsLeft", text, warning=True)
        elif not draft.due(asked, bound):
            draft.do(DeleteArtifacts())
            draft.look_again(15)
        else:
            text = f"the run's folder {where} could not be deleted in time; it stays"
            draft.event("ArtifactsLeft", text, warning=True)
    draft.do(RemoveFinalizer())


def _credentials_are_gone(draft: Draft, reason: str, asked: datetime) -> bool:
    """Whether nobody waits for the run's credentials any more."""
    if reason == "SecretForbidden":
        stopped = find_condition(draft.run.status.conditions, "Progressing")  # at its drain's end at the latest
        return draft.due(max(asked, stopped.last_transition_time if stopped else asked), FORBIDDEN_SECONDS)
    return reason == "SecretNotFound"


def hold_or_release(draft: Draft) -> None:
    """A finished run is held only for its artifacts: without the operator, say uninstalled, it can then be deleted."""
    held = FINALIZER in draft.run.metadata.finalizers
    needed = draft.run.spec.cleanup.artifacts is Artifacts.DELETE and draft.status.provenance is not None
    if needed and not held:
        draft.do(AddFinalizer())
    elif held and not needed:
        draft.do(RemoveFinalizer())
