"""The client's errors: classes that a program can distinguish, with messages that say what to do.

Errors of the libraries below (kubernetes, urllib3, botocore) are never raised to a caller. This module loads none of
them, so a caller that only handles errors starts fast.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepcoder_client.permissions import Right


class ClientError(Exception):
    """Base class of the client's errors."""


class NotFound(ClientError):
    """The object does not exist."""


class BadName(ClientError):
    """The name of an object is invalid. An empty name would address a list, and one with a slash a subresource."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} is not the name of an object: use lower-case letters, digits, '-' and '.'")


class Forbidden(ClientError):
    """A permission is missing. The message names the permission, its scope, and the role that grants it."""

    def __init__(self, right: Right) -> None:
        super().__init__(right.sentence())
        self.right = right


class Unknown(ClientError):
    """An object was written by another release, and this build cannot read it."""

    def __init__(self, what: str, why: str, changed: dict[str, Any] | None = None) -> None:
        done = "" if changed is None else "is as you asked for, but "
        super().__init__(
            f"{what} {done}cannot be read: {why}; another release wrote it: use the cluster's release of "
            "deepcoder-client"
        )
        self.why = why
        """The unreadable field and what is wrong with it."""
        self.changed = changed
        """The object as it is after a change that took effect, or was not needed; None if nothing was to change."""


class Refused(ClientError):
    """The API server refused the request because of a field's value or owner."""


class NotStarted(Refused):
    """A container has not started yet, so it has no log."""


class Conflict(Refused):
    """A field has another owner, or the object was changed in the meantime."""


class Unreachable(ClientError):
    """The server did not answer within the deadline, or its answer cannot be used."""


class NoCluster(Unreachable):
    """Neither a kubeconfig nor a pod's own account names a cluster."""


class NoToken(ClientError):
    """The kubeconfig has no token that can be sent to a server other than the API server."""


class NotInTime(ClientError):
    """The condition did not become true within the given time."""


class BadFile(ClientError):
    """A file cannot be read as a run. The message names each invalid field."""


class StorageFault(StrEnum):
    """What is wrong with a bucket, without names of servers, Secrets or keys."""

    UNREACHABLE = "Unreachable"
    UNTRUSTED = "Untrusted"
    REFUSED = "Refused"
    NO_CREDENTIALS = "NoCredentials"
    NO_BUCKET = "NoBucket"
    TOO_LARGE = "TooLarge"
    OTHER = "Other"


class StorageError(ClientError):
    """The run's bucket cannot be read. The message says how to fix it."""

    def __init__(self, message: str, fault: StorageFault = StorageFault.OTHER) -> None:
        super().__init__(message)
        self.fault = fault


class NoData(ClientError):
    """The run does not have the requested data yet."""
