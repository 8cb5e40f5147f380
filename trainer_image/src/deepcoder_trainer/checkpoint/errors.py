"""Errors of durable data, distinguished by what the caller must do."""

from __future__ import annotations

from deepcoder_trainer.errors import BadConfig


class StorageError(Exception):
    """Base of all storage failures; the message names the object and never a credential."""


class StorageUnavailable(StorageError):
    """No answer within the deadline after all retries, or a server error: may work later."""


class StorageDenied(StorageError):
    """Credentials are missing or wrong, lack a permission, or there is no such bucket: retrying does not help."""


class ObjectMissing(StorageError):
    """There is no such object."""


class ObjectExists(StorageError):
    """A conditional put found another object there."""


class ChecksumMismatch(StorageError):
    """What arrived is not what was sent, by SHA-256."""


class CheckpointDamaged(Exception):
    """A committed checkpoint cannot be used: a file is missing, truncated or altered. An older one may serve."""


class OtherModel(CheckpointDamaged):
    """A checkpoint is whole, and of another model than the one that is there."""


class CheckpointFailed(Exception):
    """A checkpoint could not be written; the message says why. Training has not lost anything yet."""


class ExportRuined(CheckpointFailed):
    """What a stage exported is not the model of its checkpoint, which stands; the next attempt exports it anew."""


class ConfigMismatch(BadConfig):
    """What is stored belongs to another run or another configuration: it is never resumed from."""


class NewerSchema(BadConfig):
    """A document of a checkpoint has a layout that only a newer release knows: an older checkpoint must not serve."""


class NothingWhole(BadConfig):
    """The stage has checkpoints and none of them can be used: starting over unasked would throw its steps away."""


def refuse_newer(what: str, version: object, known: int) -> None:
    """Raise `NewerSchema` for a schemaVersion above the known one."""
    if isinstance(version, int) and version > known:
        raise NewerSchema(
            f"{what} has schemaVersion {version}, this release reads {known} at most: use the trainer image that wrote "
            "it, or a newer one",
            field="provenance.image",
        )
