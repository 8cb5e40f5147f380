"""Who the viewer is and what they may see: TokenReview, then SubjectAccessReview for each run's namespace.

The page's own account may read every run, so nothing is answered before the API server has confirmed that the viewer
may read it too. Answers are cached for a short time, and refusals for a shorter one: a permission that was withdrawn
stops working after `ALLOWED_SECONDS`. Tokens are stored only as digests and never logged. If the API server cannot be
asked, nobody sees anything (`Unavailable`). Invalid tokens have a cache of their own, so they cannot push out valid
entries.
"""

from __future__ import annotations

import hashlib
import re
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
_VIEWERS, _STRANGERS, _ANSWERS = 4096, 1024, 32768
"""Sizes of the caches."""
_TOKEN = re.compile(r"[A-Za-z0-9._~+/:-]{1,8192}=*")
"""Allowed form of a bearer token (RFC 6750; some webhooks also use a colon)."""
_TOKEN_REVIEWS = Kind("tokenreviews", "authentication.k8s.io")
_ACCESS_REVIEWS = Kind("subjectaccessreviews", "authorization.k8s.io")

T = TypeVar("T")


class Unauthenticated(Exception):
    """The token is not valid."""


class Unavailable(Exception):
    """The API server could not be asked."""


@dataclass(frozen=True)
class Viewer:
    """The user that a token belongs to, as the API server says."""

    name: str
    uid: str
    groups: tuple[str, ...]
    extra: tuple[tuple[str, tuple[str, ...]], ...]


class Access:
    """Asks the API server. Blocking, for threads."""

    def __init__(self, connection: Connection, clock: Callable[[], float] = time.monotonic) -> None:
        self._connection = connection
        self._viewers: _Remembered[Viewer] = _Remembered(clock, _VIEWERS)
        self._strangers: _Remembered[bool] = _Remembered(clock, _STRANGERS)
        self._allowed: _Remembered[bool] = _Remembered(clock, _ANSWERS)

    def known(self, token: str) -> bool:
        """Whether the token was valid recently, so that known viewers do not wait behind unknown ones."""
        return self._viewers.get(_digest(token))[1] is not None

    def viewer(self, token: str) -> Viewer:
        """Return the token's user. Raises `Unauthenticated` and `Unavailable`."""
        refused = Unauthenticated("the token is not valid: it may have expired; sign in with another")
        if not _TOKEN.fullmatch(token):
            raise refused
        key = _digest(token)
        fresh, found = self._viewers.get(key)
        if fresh and found is not None:
            return found
        if self._strangers.get(key)[0]:
            raise refused
        found = self._review(token)
        if found is None:
            self._viewers.drop(key)
            self._strangers.put(key, True, REFUSED_SECONDS)
            raise refused
        self._viewers.put(key, found, ALLOWED_SECONDS)
        return found

    def may(self, viewer: Viewer, verb: str, namespace: str, name: str = "") -> bool:
        """Whether the viewer may `get` a run, or `list` the runs of a namespace ("": of all). Raises `Unavailable`."""
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


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()  # a header may hold any bytes


class _Remembered(Generic[T]):
    """A cache with expiry times that drops the least recently used entries."""

    def __init__(self, clock: Callable[[], float], most: int) -> None:
        self._clock, self._most, self._lock = clock, most, threading.Lock()
        self._held: OrderedDict[Hashable, tuple[float, T]] = OrderedDict()

    def get(self, key: Hashable) -> tuple[bool, T | None]:
        """Return whether the answer is still fresh, and the answer."""
        with self._lock:
            if key not in self._held:
                return False, None
            self._held.move_to_end(key)
            until, value = self._held[key]
            return self._clock() < until, value

    def put(self, key: Hashable, value: T, seconds: float) -> None:
        with self._lock:
            self._held[key] = (self._clock() + seconds, value)
            self._held.move_to_end(key)
            while len(self._held) > self._most:
                self._held.popitem(last=False)

    def drop(self, key: Hashable) -> None:
        with self._lock:
            self._held.pop(key, None)
