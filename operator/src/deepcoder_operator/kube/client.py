"""A thin client of the API server: plain objects in and out, a deadline on every request, bounded retries.

There are no typed models, because they would drop fields that this release does not know. A request is retried only if
repeating it is harmless (reads, server-side apply, deletion, a status put guarded by resourceVersion), and only on
overload or a broken connection, at most `ATTEMPTS` times within its deadline. Then it raises `Unavailable`. A creation
is retried only if it certainly was not carried out: the server answered 429, or could not be reached. In other cases
the outcome may be unknown, and the caller's deterministic name resolves that.

Requests queue for a shared number of `CONNECTIONS`. Watches hold a connection for minutes, so they have an unbounded
number of their own. Callers that cannot queue get separate connections (`apart`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import closing
from functools import partial
from typing import Any, Self

import aiohttp

from deepcoder_operator.kube import access, errors
from deepcoder_operator.kube.access import Access
from deepcoder_operator.kube.answers import RETRIED, content_of, error_of, event_of, refusal_in
from deepcoder_operator.kube.page import parse_page
from deepcoder_operator.kube.resources import BY_KIND, PODS, TOKEN_REVIEWS, Resource
from deepcoder_operator.kube.session import FIELD_MANAGER, UNBOUNDED, Connections
from deepcoder_operator.kube.tail import tail
from deepcoder_operator.metrics import API_REQUESTS

log = logging.getLogger(__name__)

Object = dict[str, Any]

CONNECTIONS = 64
"""Largest number of concurrent requests, not counting watches."""

DEADLINE_SECONDS = 15.0
ATTEMPTS = 4
PAGE = 10
"""Number of objects per page of a list. Each may have 1.5 MiB, and several kinds are listed at a time. The allocator
never returns all of the memory of large pages."""
WATCH_SECONDS = 300
WATCH_SILENCE_SECONDS = 100.0
"""Bookmarks arrive about once a minute, so a watch that is silent for longer is dead."""

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)
"""For requests whose caller sets a deadline around them."""

_NOT_DONE = frozenset({429})


class Kube:
    """Access to one API server. Create with `Kube.connect()`; close when done."""

    def __init__(
        self,
        reached: Access,
        connections: int = CONNECTIONS,
        *,
        deadline: float = DEADLINE_SECONDS,
        attempts: int = ATTEMPTS,
    ) -> None:
        """Each request has a deadline, in seconds, and a largest number of attempts within it."""
        self._reached = reached
        self._requests = Connections(reached, connections, lambda: self.fence())
        self._watches = Connections(reached, UNBOUNDED)
        self._deadline, self._attempts = deadline, attempts
        self._apart: list[Kube] = []
        self.fence: Callable[[], None] = lambda: None
        """Called right before every request that may change something is sent. Raises if this process may not change
        anything now."""

    @classmethod
    async def connect(cls) -> Self:
        """Return a client with the pod's service account, or with KUBECONFIG (or ~/.kube/config). Raises `NoAccess`."""
        return cls(access.find())

    def apart(self, connections: int, *, deadline: float, attempts: int) -> Kube:
        """Return a client of the same server with connections of its own, which is closed with this one."""
        own = Kube(self._reached, connections, deadline=deadline, attempts=attempts)
        self._apart.append(own)
        return own

    async def close(self) -> None:
        """Close all connections."""
        for own in self._apart:
            await own.close()
        await self._watches.close()
        await self._requests.close()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        """Read an object. Raises `NotFound`."""
        return await self._request("GET", resource.path(namespace, name), retry=True)

    async def find(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """Read an object. Returns None if it does not exist."""
        try:
            return await self.get(resource, namespace, name)
        except errors.NotFound:
            return None

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        selector: str = "",
        field_selector: str = "",
        keep: Callable[[Object], Object] = lambda obj: obj,
    ) -> tuple[list[Object], str]:
        """Return all objects that match a label and a field selector, and the version to watch from.

        `keep` reduces each object before the next one is parsed, because a complete list of pods would not fit into
        memory, nor would a page of the largest objects.
        """
        items: list[Object] = []
        whole = {"apiVersion": resource.api_version, "kind": resource.kind}
        path = resource.path(namespace)
        query = {"limit": str(PAGE)}
        query |= {"labelSelector": selector} if selector else {}
        query |= {"fieldSelector": field_selector} if field_selector else {}
        while True:
            data = await self._answer("GET", path, query=query, retry=True)
            page = content_of(data, f"GET {path}", partial(parse_page, keep=lambda item: keep(whole | item)))
            items += page.get("items") or ()
            token = page["metadata"].get("continue")
            if not token:
                return items, page["metadata"]["resourceVersion"]
            query["continue"] = token

    async def create(self, obj: Object, *, strict: bool = False) -> Object:
        """Create an object. Raises `AlreadyExists`. After `Unavailable` the object may or may not exist.

        The server silently drops fields that it does not know. With `strict`, they raise `UnknownFields`.
        """
        query = {"fieldManager": FIELD_MANAGER} | ({"fieldValidation": "Strict"} if strict else {})
        try:
            return await self._request("POST", _collection(obj), body=obj, query=query)
        except errors.Conflict as e:
            if "already exists" in str(e):
                raise errors.AlreadyExists(str(e), e.status) from None
            raise

    async def apply(self, obj: Object, *, subresource: str | None = None) -> Object:
        """Apply an object with server-side apply. It is created if it does not exist. See `unless_changed`."""
        return await self._request(
            "PATCH",
            _path(obj, subresource),
            body=obj,
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
            content_type="application/apply-patch+yaml",
            retry=True,
        )

    async def replace_status(self, obj: Object) -> Object:
        """Replace the status. Raises `Conflict` if the object no longer has this metadata.resourceVersion."""
        return await self._request(
            "PUT", _path(obj, "status"), body=obj, query={"fieldManager": FIELD_MANAGER}, retry=True
        )

    async def patch(
        self, resource: Resource, namespace: str | None, name: str, patch: Object, subresource: str | None = None
    ) -> Object:
        """Apply a JSON merge patch. Raises `Conflict` if the patch has a metadata.resourceVersion that is outdated."""
        return await self._request(
            "PATCH",
            resource.path(namespace, name, subresource),
            body=patch,
            query={"fieldManager": FIELD_MANAGER},
            content_type="application/merge-patch+json",
            retry=True,
        )

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        propagation: str = "Background",
        grace_seconds: int | None = None,
    ) -> bool:
        """Delete an object. Returns False if it no longer exists. With a UID, a later object of that name is kept."""
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid:
            body["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        try:
            await self._request("DELETE", resource.path(namespace, name), body=body, retry=True)
        except errors.NotFound:
            return False
        except errors.Conflict:
            if uid is None:
                raise
            return False
        return True

    async def read_log(self, namespace: str, pod: str, container: str, tail_lines: int, limit_bytes: int) -> str:
        """Return the last `limit_bytes` of the last `tail_lines` of a container's log.

        Raises `NotFound`, and `KubeError` if the container has not started. There is only one try, because a log may be
        long. The limit is applied here, because the server's limitBytes would keep the first bytes of those lines.
        """
        query = {"container": container, "tailLines": str(tail_lines)}
        timeout = aiohttp.ClientTimeout(total=DEADLINE_SECONDS)
        try:
            path = PODS.path(namespace, pod, "log")
            response = await self._send("GET", path, query, None, "application/json", timeout)
            with closing(response):
                return (await tail(response.content.iter_any(), limit_bytes)).decode(errors="replace")
        except (aiohttp.ClientError, OSError) as e:
            raise errors.Unavailable(f"log of {pod}: {type(e).__name__}: {e}") from e

    async def read(self, path: str, query: Mapping[str, str] | None = None) -> Object:
        """Read a path that is not an object's: information about the API server."""
        return await self._request("GET", path, query=query, retry=True)

    async def post(self, path: str, body: Object, *, harmless: bool = False) -> Object:
        """Post a body that is not an object of a known kind, such as a review or a request for a token.

        `harmless` says that repeating the request does no harm. Only then is it retried on overload and on broken
        connections.
        """
        return await self._request("POST", path, body=body, retry=harmless)

    async def review_token(self, token: str, audience: str) -> Object:
        """Return the status of a TokenReview for a service-account token that is bound to an audience."""
        obj = {
            "apiVersion": TOKEN_REVIEWS.api_version,
            "kind": TOKEN_REVIEWS.kind,
            "spec": {"token": token, "audiences": [audience]},
        }
        answer = await self.post(TOKEN_REVIEWS.path(None), obj, harmless=True)
        status: Object = answer.get("status") or {}
        return status

    async def watch(
        self,
        resource: Resource,
        namespace: str | None,
        selector: str,
        version: str,
        keep: Callable[[Object], Object] = lambda obj: obj,
    ) -> AsyncIterator[tuple[str, Object]]:
        """Yield events (type, object) after a version, including bookmarks, until the server ends the watch.

        `keep` reduces each object, so that no watch holds the last whole one until the next event. Raises `Gone` if the
        version is too old, and `Unavailable` if the connection breaks or is silent.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        } | ({"labelSelector": selector} if selector else {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=WATCH_SILENCE_SECONDS)
        try:
            response = await self._send("GET", resource.path(namespace), query, None, "application/json", timeout)
            with closing(response):
                async for line in response.content:
                    yield event_of(line, keep)
        except (aiohttp.ClientError, OSError, ValueError) as e:
            raise errors.Unavailable(f"watch of {resource.plural}: {type(e).__name__}: {e}") from e

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        retry: bool = False,
    ) -> Object:
        """Send a request and return the parsed answer."""
        data = await self._answer(method, path, body=body, query=query, content_type=content_type, retry=retry)
        return content_of(data, f"{method} {path}")

    async def _answer(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        retry: bool = False,
    ) -> bytes:
        """Send a request and return the answer. The deadline covers all attempts."""
        try:
            async with asyncio.timeout(self._deadline):
                return await self._attempt(method, path, body, query or {}, content_type, retry)
        except TimeoutError as e:
            raise errors.Unavailable(f"{method} {path}: no answer in {self._deadline:.0f} s") from e

    async def _attempt(
        self, method: str, path: str, body: Object | None, query: Mapping[str, str], content_type: str, harmless: bool
    ) -> bytes:
        """Send a request, with retries. A request that is not `harmless` is retried only if it was not carried out."""
        statuses = RETRIED if harmless else _NOT_DONE
        broken = (aiohttp.ClientError, OSError) if harmless else (aiohttp.ClientConnectorError,)
        for attempt in range(1, self._attempts + 1):
            delay = 0.2 * 2**attempt * random.uniform(0.5, 1.0)
            try:
                response = await self._send(method, path, query, body, content_type, None)
                async with response:
                    data = await response.read()
                if response.status < 300:
                    return data
                if response.status not in statuses or attempt == self._attempts:
                    raise error_of(response.status, refusal_in(data))
                delay = max(delay, min(_retry_after(response.headers.get("Retry-After", "")), 5.0))
            except TimeoutError:
                raise
            except (aiohttp.ClientError, OSError) as e:
                if attempt == self._attempts or not isinstance(e, broken):
                    raise errors.Unavailable(f"{method} {path}: {type(e).__name__}: {e}") from e
            log.debug("%s %s is retried in %.1f s", method, path, delay)
            await asyncio.sleep(delay)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Object | None,
        content_type: str,
        timeout: aiohttp.ClientTimeout | None,
    ) -> aiohttp.ClientResponse:
        """Return the response, whose body is still unread. With a `timeout`, raises an error for a status of 300 or
        more."""
        API_REQUESTS.labels(method=method).inc()
        connections = self._watches if "watch" in query else self._requests
        response = await connections.send(method, path, query, body, content_type, timeout or _NO_TIMEOUT)
        if timeout is not None and response.status >= 300:
            async with response:
                raise error_of(response.status, refusal_in(await response.read()))
        return response


def unless_changed(obj: Object, found: Object) -> Object:
    """Return the object with the resourceVersion of the found one. Applying it raises `Conflict` if somebody, perhaps
    another leader, has changed the object since."""
    return obj | {"metadata": obj["metadata"] | {"resourceVersion": found["metadata"]["resourceVersion"]}}


def _path(obj: Object, subresource: str | None = None) -> str:
    meta = obj["metadata"]
    return BY_KIND[obj["kind"]].path(meta.get("namespace"), meta["name"], subresource)


def _collection(obj: Object) -> str:
    return BY_KIND[obj["kind"]].path(obj["metadata"].get("namespace"))


def _retry_after(value: str) -> float:
    """Return the seconds that a server asks to wait. 0 for no value, or for a date, because clocks may differ."""
    return float(value) if value.isdigit() else 0.0
