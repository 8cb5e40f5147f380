"""Errors of durable data, distinguished by what the caller must do."""

from __future__ import annotations

from deepcoder_trainer.errors import BadConfig


class StorageError(Exception):
    """Base of all storage failures; the message names the object and never a credential."""


class StorageUnavailable(StorageError):
    """No answer within the deadline after all retries, or a server error. A later try may succeed."""


class StorageDenied(StorageError):
    """Credentials are missing, wrong or lack a permission, or the bucket does not exist. Retrying does not help."""


class ObjectMissing(StorageError):
    """The object does not exist."""


class ObjectExists(StorageError):
    """A conditional put found another object under its key."""


class ChecksumMismatch(StorageError):
    """The stored content has another SHA-256 than the content that was sent."""


class CheckpointDamaged(Exception):
    """A committed checkpoint cannot be used: a file is missing, truncated or altered. An older one may be usable."""


class OtherModel(CheckpointDamaged):
    """A checkpoint is complete, but of another model than the learner's."""


class CheckpointFailed(Exception):
    """A checkpoint could not be written; the message says why. Training has not lost anything yet."""


class ExportRuined(CheckpointFailed):
    """A stage's export is not the model of its checkpoint. The checkpoint is kept; the next attempt exports again."""


class ConfigMismatch(BadConfig):
    """The stored checkpoint belongs to another run or configuration. It is never resumed from."""


class NewerSchema(BadConfig):
    """Only a newer release can read a document of a checkpoint. An older checkpoint must not be used instead."""


class NothingWhole(BadConfig):
    """The stage has checkpoints, but none of them is usable. Starting over unasked would discard its steps."""


def refuse_newer(what: str, version: object, known: int) -> None:
    """Raise `NewerSchema` for a schemaVersion above the known one."""
    if isinstance(version, int) and version > known:
        raise NewerSchema(
            f"{what} has schemaVersion {version}, this release reads {known} at most: use the trainer image that wrote "
            "it, or a newer one",
            field="provenance.image",
        )
