"""The end of a run that is being deleted: artifacts if requested, then the finalizer. Children are garbage-collected.

The work is bounded, so that unreachable storage cannot keep an object undeletable forever. When a namespace is deleted,
Secrets and runs go in any order, and a deleted Secret does not come back. The run's folder is then left behind: at once
if the Secret is gone, after a minute if it may not be read.
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
"""Longest time for deleting artifacts, including retries, from the end of draining."""

FORBIDDEN_SECONDS = 60.0
"""Time to wait for permission to read a Secret before its folder is left behind. An upgrade replaces roles one by
one."""


def finish_deletion(draft: Draft, world: World) -> None:
    """Delete artifacts if requested, then remove the finalizer."""
    if FINALIZER not in draft.run.metadata.finalizers:
        return
    if world.obstacle is not None and world.obstacle.action == RemoveFinalizer.__name__:
        draft.do(RemoveFinalizer())  # everything before this step was done or reported
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
    """Whether to stop waiting for the run's credentials."""
    if reason == "SecretForbidden":
        # Progressing changes its status when the drain ends, or earlier.
        stopped = find_condition(draft.run.status.conditions, "Progressing")
        return draft.due(max(asked, stopped.last_transition_time if stopped else asked), FORBIDDEN_SECONDS)
    return reason == "SecretNotFound"


def hold_or_release(draft: Draft) -> None:
    """Keep the finalizer on a finished run only for its artifacts, so that it can be deleted without an operator."""
    held = FINALIZER in draft.run.metadata.finalizers
    needed = draft.run.spec.cleanup.artifacts is Artifacts.DELETE
    if needed and not held:
        draft.do(AddFinalizer())
    elif held and not needed:
        draft.do(RemoveFinalizer())
