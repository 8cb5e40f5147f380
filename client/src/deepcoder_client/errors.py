"""The client's errors: classes that a program can distinguish, with messages that say what to do.

Errors of the libraries below (kubernetes, urllib3, boto3) are never raised to a caller.
"""

from __future__ import annotations

from enum import StrEnum

from deepcoder_client.permissions import Right


class ClientError(Exception):
    """The base of all of them."""


class NotFound(ClientError):
    """There is no such object."""


class BadName(ClientError):
    """A name that no object has: an empty one would name a list, one with a slash what lies below another object."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} is not the name of an object: use lower-case letters, digits, '-' and '.'")


class Forbidden(ClientError):
    """A permission is missing: which one, where, and which role would grant it."""

    def __init__(self, right: Right) -> None:
        super().__init__(right.sentence())
        self.right = right


class Unknown(ClientError):
    """An object of a release that this build does not know."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(
            f"{what} cannot be read: {why}; it is of another release than this deepcoder-client: use the cluster's"
        )
        self.why = why
        """The field, and what is wrong with it."""


class Refused(ClientError):
    """The API server does not take what it was given: a field, or one that somebody else owns."""


class Conflict(Refused):
    """Somebody else owns a field, or has changed the object meanwhile."""


class Unreachable(ClientError):
    """No answer within the deadline, or none that can be used."""


class NoCluster(Unreachable):
    """Neither a kubeconfig nor a pod's own account says which cluster is meant."""


class NoToken(ClientError):
    """The kubeconfig has no token that could be shown to anybody but the API server."""


class NotInTime(ClientError):
    """What was waited for did not come within the time given."""


class BadFile(ClientError):
    """A file that cannot be read as a run, naming each field at fault."""


class StorageFault(StrEnum):
    """What is wrong with a bucket, in a word that says nothing of servers, Secrets or keys."""

    UNREACHABLE = "Unreachable"
    UNTRUSTED = "Untrusted"
    REFUSED = "Refused"
    NO_CREDENTIALS = "NoCredentials"
    NO_BUCKET = "NoBucket"
    TOO_LARGE = "TooLarge"
    OTHER = "Other"


class StorageError(ClientError):
    """The run's bucket cannot be read, and what would mend it."""

    def __init__(self, message: str, fault: StorageFault = StorageFault.OTHER) -> None:
        super().__init__(message)
        self.fault = fault


class NoData(ClientError):
    """The run has nothing of the kind that was asked for, yet."""
