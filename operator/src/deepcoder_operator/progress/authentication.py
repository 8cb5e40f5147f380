"""Authenticates the reporting pod by its projected service-account token, which is bound to our audience and the pod.

There are two `Reviewer`s. `TokenReviewer` asks the API server, which also notices that the pod is gone. `progress.jwks`
checks signatures, for an operator without the permission for that. Verdicts, also refusals, are cached for a short
time, so that a flood of bad tokens does not cause a flood of reviews. Tokens are stored only as digests and never
logged.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from deepcoder_contracts.progress import AUDIENCE
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube

ACCEPTED_SECONDS = 60.0
"""Time for which an accepted token is not reviewed again."""

REFUSED_SECONDS = 10.0
"""Time for which a refused token is not reviewed again."""

_CACHE_SIZE = 4096
_CONCURRENT_REVIEWS = 8
_EXTRA = "authentication.kubernetes.io/"
_USER_PREFIX = "system:serviceaccount:"


class Subject(NamedTuple):
    """The pod that a token is bound to."""

    namespace: str
    """Namespace of the pod and of its service account."""

    pod_name: str
    """Name of the pod."""

    pod_uid: str
    """UID of the pod."""


class Unauthenticated(Exception):
    """The token is not accepted. The message tells the caller why."""


class AuthenticationUnavailable(Exception):
    """The token could not be checked now. A later retry may succeed."""


class Authenticator(Protocol):
    """Finds the pod that a bearer token is bound to."""

    async def authenticate(self, token: str) -> Subject:
        """Return the token's pod. Raises `Unauthenticated` or `AuthenticationUnavailable`."""
        ...

    def knows(self, token: str) -> bool:
        """Whether the token was accepted recently, so that it need not be checked now."""
        ...


def subject_of_review(status: Mapping[str, Any], audience: str) -> Subject:
    """Return the pod in a TokenReview's status. Raises `Unauthenticated`."""
    if not status.get("authenticated"):
        raise Unauthenticated("the token is not valid: it may have expired, or its pod is gone")
    if audience not in (status.get("audiences") or ()):
        raise Unauthenticated(f"the token is not bound to the audience {audience}: project one that is")
    user = status.get("user") or {}
    username = str(user.get("username", ""))
    extra = user.get("extra") or {}
    names: list[str] = extra.get(f"{_EXTRA}pod-name") or []
    uids: list[str] = extra.get(f"{_EXTRA}pod-uid") or []
    if not username.startswith(_USER_PREFIX) or len(names) != 1 or len(uids) != 1:
        raise Unauthenticated("the token is not bound to a pod: use a projected service-account token")
    return Subject(namespace=username.removeprefix(_USER_PREFIX).split(":")[0], pod_name=names[0], pod_uid=uids[0])


class Reviewer(Protocol):
    """Checks a token that is not in the cache."""

    async def review(self, token: str) -> Subject:
        """Return the token's pod. Raises `Unauthenticated` or `AuthenticationUnavailable`."""
        ...


class Remembering:
    """An authenticator that caches a reviewer's verdicts for a short time."""

    def __init__(self, reviewer: Reviewer, clock: Callable[[], float]) -> None:
        self._reviewer, self._clock = reviewer, clock
        self._cache: OrderedDict[bytes, tuple[float, Subject | Unauthenticated]] = OrderedDict()
        self._reviews = asyncio.Semaphore(_CONCURRENT_REVIEWS)

    async def authenticate(self, token: str) -> Subject:
        """See `Authenticator`."""
        key = _digest(token)
        until, verdict = self._cache.get(key, (0.0, Unauthenticated()))
        if self._clock() >= until:
            verdict = await self._review(token)
            seconds = ACCEPTED_SECONDS if isinstance(verdict, Subject) else REFUSED_SECONDS
            self._cache[key] = (self._clock() + seconds, verdict)
            self._cache.move_to_end(key)
            if len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        if isinstance(verdict, Unauthenticated):
            raise Unauthenticated(*verdict.args)
        return verdict

    def knows(self, token: str) -> bool:
        """See `Authenticator`."""
        until, verdict = self._cache.get(_digest(token), (0.0, None))
        return isinstance(verdict, Subject) and self._clock() < until

    async def _review(self, token: str) -> Subject | Unauthenticated:
        async with self._reviews:
            try:
                return await self._reviewer.review(token)
            except Unauthenticated as e:
                return e


class TokenReviewer:
    """Reviews tokens with the API server's TokenReview."""

    def __init__(self, kube: Kube, audience: str = AUDIENCE) -> None:
        self._kube, self._audience = kube, audience

    async def review(self, token: str) -> Subject:
        """See `Reviewer`."""
        try:
            return subject_of_review(await self._kube.review_token(token, self._audience), self._audience)
        except errors.KubeError as e:
            raise AuthenticationUnavailable(f"the token could not be reviewed: {e}") from e


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
