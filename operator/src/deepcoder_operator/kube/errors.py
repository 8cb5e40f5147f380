"""Errors of the API server, distinguished by what a caller does about them."""

from __future__ import annotations

from collections.abc import Sequence


class KubeError(Exception):
    """A request failed. The message is the API server's."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class NotFound(KubeError):
    """The object, or its namespace or kind, does not exist."""


class AlreadyExists(KubeError):
    """An object of this name exists. Read it and check its owner."""


class Conflict(KubeError):
    """The object has changed since it was read, or a UID precondition failed. Read it and decide again."""


class Forbidden(KubeError):
    """RBAC, a quota, a webhook or a policy refuses the request. It succeeds once somebody changes that."""


class Invalid(KubeError):
    """The object violates its schema, or cannot be parsed as its kind. A retry does not help."""


class UnknownFields(Invalid):
    """The object has fields that the server does not know, and the request said to refuse them instead of dropping
    them."""

    def __init__(self, message: str, status: int, fields: Sequence[str]) -> None:
        super().__init__(message, status)
        self.fields = tuple(fields)
        """Paths of the fields, such as spec.rayClusterSpec.authOptions."""


class Unavailable(KubeError):
    """The server was unreachable, overloaded or too slow, after bounded retries. Try again later."""


class WebhookAway(Unavailable):
    """A required admission webhook does not answer. The request was not carried out, and somebody has to fix that."""


class Gone(KubeError):
    """The server no longer has the version from which a watch should start. List again."""


class LeadershipLost(KubeError):
    """This replica was the leader and no longer is. The request was not sent, and no later one will be."""


class NoAccess(KubeError):
    """The API server's address or our credentials for it are missing or unusable. The message says how to fix this."""


def refuses(error: KubeError) -> bool:
    """Whether the API server answers but refuses us, because credentials, a permission or a kind are missing."""
    return isinstance(error, Forbidden | NotFound) or error.status == 401
