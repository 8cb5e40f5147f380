"""Commits a checkpoint or an export: putting its manifest, after all other files, makes it exist."""

from __future__ import annotations

from dataclasses import dataclass

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.layout import MANIFEST
from deepcoder_contracts.manifest import Manifest, ParentRef
from deepcoder_trainer.checkpoint.errors import CheckpointFailed, ObjectExists
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.checkpoint.transfer import put_new


@dataclass(frozen=True)
class CommittedCheckpoint:
    """A manifest that storage has accepted."""

    ref: ParentRef
    """URI of its folder, and digest of the manifest."""

    manifest: Manifest


def put_manifest(store: ObjectStore, prefix: str, manifest: Manifest) -> CommittedCheckpoint:
    """Put the manifest of the files below `prefix`. Raises `CheckpointFailed` if another process has put a manifest."""
    data = manifest.to_json()
    try:
        put_new(store, f"{prefix}/{MANIFEST}", data)
    except ObjectExists as e:
        raise CheckpointFailed(f"{prefix} was committed by another process: is this attempt running twice?") from e
    return committed(store, prefix, sha256_digest(data), manifest)


def committed(store: ObjectStore, prefix: str, digest: str, manifest: Manifest) -> CommittedCheckpoint:
    """Return the reference to the folder `prefix`, whose manifest has this digest."""
    return CommittedCheckpoint(ParentRef(uri=f"{store.uri}/{prefix}", digest=digest), manifest)
