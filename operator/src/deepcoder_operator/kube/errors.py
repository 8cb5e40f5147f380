"""Errors of the API server, distinguished by what a caller does about them."""

from __future__ import annotations

from collections.abc import Sequence


class KubeError(Exception):
    """A request that failed; the message is the API server's."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class NotFound(KubeError):
    """The object, or its namespace or kind, does not exist."""


class AlreadyExists(KubeError):
    """An object of this name exists: read it and check whose it is."""


class Conflict(KubeError):
    """The object changed since it was read (or a uid precondition failed): read again and decide again."""


class Forbidden(KubeError):
    """RBAC, a quota, a webhook or a policy refuses: somebody may mend that, and then the same is let through."""


class Invalid(KubeError):
    """The object breaks its schema, or cannot even be read as its kind; trying again does not help."""


class UnknownFields(Invalid):
    """The server does not know fields of the object, and was asked to refuse it rather than to drop them."""

    def __init__(self, message: str, status: int, fields: Sequence[str]) -> None:
        super().__init__(message, status)
        self.fields = tuple(fields)
        """Their paths, such as spec.rayClusterSpec.authOptions."""


class Unavailable(KubeError):
    """Unreachable, overloaded or too slow, after bounded retries: come again later."""


class WebhookAway(Unavailable):
    """An admission webhook that has to be asked gives no answer: nothing was done, and somebody has to see to it."""


class Gone(KubeError):
    """A watch asked for a version that is no longer kept: list again."""


class LeadershipLost(KubeError):
    """This replica has led and may lead no more: nothing was sent, and nothing will be."""


class NoAccess(KubeError):
    """Nothing says where the API server is, or as whom to ask it; the message has the mend."""


def refuses(error: KubeError) -> bool:
    """Whether the API server is there and does not let us: whoever we are, a right or a kind is missing."""
    return isinstance(error, Forbidden | NotFound) or error.status == 401
