"""Who looks, and what of it kubectl would show them: TokenReview, then SubjectAccessReview for each run's namespace.

The page's own account may read every run, so nothing is answered before the API server has said that the viewer may
read it too. Answers are kept for a short time, refusals for a shorter one: a right that was withdrawn is gone after
`ALLOWED_SECONDS`. Tokens are kept as digests alone and never logged. Where the API server cannot be asked nobody sees
anything (`Unavailable`).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from deepcoder_client.connection import RUNS, Connection, Kind
from deepcoder_client.errors import ClientError

ALLOWED_SECONDS = 60.0
REFUSED_SECONDS = 10.0
_REMEMBERED = 4096
_TOKEN_REVIEWS = Kind("tokenreviews", "authentication.k8s.io")
_ACCESS_REVIEWS = Kind("subjectaccessreviews", "authorization.k8s.io")

T = TypeVar("T")


class Unauthenticated(Exception):
    """The token proves nothing."""


class Unavailable(Exception):
    """The API server could not be asked."""


@dataclass(frozen=True)
class Viewer:
    """Who a token belongs to, as the API server says."""

    name: str
    uid: str
    groups: tuple[str, ...]
    extra: tuple[tuple[str, tuple[str, ...]], ...]


class Access:
    """Asks the API server. Blocking, for threads."""

    def __init__(self, connection: Connection, clock: Callable[[], float] = time.monotonic) -> None:
        self._connection = connection
        self._viewers: _Remembered[Viewer | None] = _Remembered(clock)
        self._allowed: _Remembered[bool] = _Remembered(clock)

    def viewer(self, token: str) -> Viewer:
        """Whose token it is; raises `Unauthenticated` and `Unavailable`."""
        key = hashlib.sha256(token.encode()).digest()
        known, found = self._viewers.get(key)
        if not known:
            found = self._review(token)
            self._viewers.put(key, found, ALLOWED_SECONDS if found else REFUSED_SECONDS)
        if found is None:
            raise Unauthenticated("the token is not valid: it may have expired; sign in with another")
        return found

    def may(self, viewer: Viewer, verb: str, namespace: str, name: str = "") -> bool:
        """Whether the viewer may `get` a run, or `list` those of a namespace; raises `Unavailable`."""
        key = (viewer, verb, namespace, name)
        known, allowed = self._allowed.get(key)
        if not known or allowed is None:
            allowed = self._ask(viewer, verb, namespace, name)
            self._allowed.put(key, allowed, ALLOWED_SECONDS if allowed else REFUSED_SECONDS)
        return allowed

    def _review(self, token: str) -> Viewer | None:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        status = self._create(_TOKEN_REVIEWS, review).get("status") or {}
        user: Mapping[str, Any] = status.get("user") or {}
        if not status.get("authenticated") or not user.get("username"):
            return None
        extra = tuple(sorted((k, tuple(v)) for k, v in (user.get("extra") or {}).items()))
        return Viewer(str(user["username"]), str(user.get("uid") or ""), tuple(user.get("groups") or ()), extra)

    def _ask(self, viewer: Viewer, verb: str, namespace: str, name: str) -> bool:
        about = {"group": RUNS.group, "resource": RUNS.plural, "verb": verb, "namespace": namespace, "name": name}
        spec = {
            "user": viewer.name,
            "uid": viewer.uid,
            "groups": list(viewer.groups),
            "extra": {key: list(values) for key, values in viewer.extra},
            "resourceAttributes": about,
        }
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        status = self._create(_ACCESS_REVIEWS, review).get("status") or {}
        return bool(status.get("allowed")) and not status.get("denied")

    def _create(self, kind: Kind, review: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._connection.create(kind, None, review)
        except ClientError as error:
            raise Unavailable(f"the API server could not be asked who may see this: {error}") from error


class _Remembered(Generic[T]):
    """Answers with an end; the ones used least go when there are many."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._held: OrderedDict[Hashable, tuple[float, T]] = OrderedDict()

    def get(self, key: Hashable) -> tuple[bool, T | None]:
        with self._lock:
            until, value = self._held.get(key, (0.0, None))
            return self._clock() < until, value

    def put(self, key: Hashable, value: T, seconds: float) -> None:
        with self._lock:
            self._held[key] = (self._clock() + seconds, value)
            self._held.move_to_end(key)
            while len(self._held) > _REMEMBERED:
                self._held.popitem(last=False)
