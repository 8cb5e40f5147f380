"""Checks tokens with the keys of their issuer, for an operator without the cluster-wide permission for TokenReviews.

Every service account may read the API server's keys. A signature proves that the API server issued the token for a pod,
and the token shows that it has not expired. Unlike a review, it does not prove that the pod still exists; admission
checks that by looking for the pod with this UID. Keys are read again after ten minutes, and when a token names an
unknown key, but at most every 30 s, so that a flood of invented key names does not cause a flood of requests. If the
keys are too old and cannot be read again, the caller is told to retry, and so is every caller within the next 5 s.

An API server may have several issuers but publishes only the newest. The previous issuer is accepted too, because its
tokens are still in pods' files after a rotation; the same answer contains its keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import jwt

from deepcoder_contracts.progress import AUDIENCE
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.progress.authentication import AuthenticationUnavailable, Subject, Unauthenticated

KEYS_SECONDS = 600.0
"""Time, in seconds, after which keys are read again."""

REREAD_SECONDS = 30.0
"""Shortest time, in seconds, between two reads because of an unknown key."""

FAILED_SECONDS = 5.0
"""Time, in seconds, after a failed read during which no other is tried."""

LEEWAY_SECONDS = 10.0
"""Tolerated difference, in seconds, between the clocks of the API server and this node."""

_ISSUER, _KEYS = "/.well-known/openid-configuration", "/openid/v1/jwks"
_REQUIRED = ("aud", "exp", "iss", "nbf")


class KeyReviewer:
    """Verifies signatures with the API server's current keys."""

    def __init__(self, kube: Kube, clock: Callable[[], float], audience: str = AUDIENCE) -> None:
        self._kube, self._clock, self._audience = kube, clock, audience
        self._issuers: list[str] = []
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._read_at = self._failed_at = float("-inf")
        self._reading = asyncio.Lock()

    async def review(self, token: str) -> Subject:
        """See `Reviewer`."""
        try:
            key = await self._key(str(jwt.get_unverified_header(token).get("kid", "")))
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._audience,
                issuer=self._issuers,
                leeway=LEEWAY_SECONDS,
                options={"require": list(_REQUIRED)},
            )
        except jwt.ExpiredSignatureError as e:
            raise Unauthenticated("the token has expired: read it from its file again for each report") from e
        except jwt.InvalidAudienceError as e:
            raise Unauthenticated(
                f"the token is not bound to the audience {self._audience}: project one that is"
            ) from e
        except jwt.InvalidTokenError as e:
            raise Unauthenticated(f"the token is not valid: {e}") from e
        return subject_of_claims(claims)

    async def _key(self, kid: str) -> jwt.PyJWK:
        """Return the issuer's key with this ID. A known key does not wait for a read because of an unknown one."""
        if kid in self._keys and self._clock() - self._read_at < KEYS_SECONDS:
            return self._keys[kid]
        async with self._reading:
            age = self._clock() - self._read_at
            if age >= (KEYS_SECONDS if kid in self._keys else REREAD_SECONDS):
                await self._read()
        if kid not in self._keys:
            raise Unauthenticated("the token is signed with a key that the API server does not publish")
        return self._keys[kid]

    async def _read(self) -> None:
        if self._clock() - self._failed_at < FAILED_SECONDS:
            raise AuthenticationUnavailable("the issuer's keys could not be read a moment ago")
        try:
            issuer = (await self._kube.read(_ISSUER)).get("issuer")
            published = await self._kube.read(_KEYS)
        except errors.KubeError as e:
            self._failed_at = self._clock()
            raise AuthenticationUnavailable(f"the issuer's keys could not be read: {_explained(e)}") from e
        if not issuer or not isinstance(issuer, str):
            self._failed_at = self._clock()
            raise AuthenticationUnavailable(f"{_ISSUER} of the API server names no issuer")
        if self._issuers[-1:] != [issuer]:
            self._issuers = [*self._issuers[-1:], issuer]
        self._keys = {key.key_id: key for key in _asymmetric(published) if key.key_id}
        self._read_at = self._clock()


def _explained(error: errors.KubeError) -> str:
    if isinstance(error, errors.Forbidden):
        return f"{error}: bind the ClusterRole system:service-account-issuer-discovery to system:serviceaccounts"
    return str(error)


def _asymmetric(published: Mapping[str, Any]) -> list[jwt.PyJWK]:
    """Return the published asymmetric keys. Keys that cannot be parsed are skipped."""
    out = []
    for key in published.get("keys") or ():
        if key.get("kty") in ("RSA", "EC"):
            with suppress(jwt.PyJWKError, jwt.InvalidKeyError):
                out.append(jwt.PyJWK(key))
    return out


def subject_of_claims(claims: Mapping[str, Any]) -> Subject:
    """Return the pod in verified claims. Raises `Unauthenticated`."""
    bound = claims.get("kubernetes.io") or {}
    pod = bound.get("pod") or {}
    if not bound.get("namespace") or not pod.get("name") or not pod.get("uid"):
        raise Unauthenticated("the token is not bound to a pod: use a projected service-account token")
    return Subject(str(bound["namespace"]), str(pod["name"]), str(pod["uid"]))
