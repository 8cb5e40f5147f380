"""An HTTP session with the API server that authenticates each request, for our client and for kopf.

A check (the fence) whether this process may change anything runs right before the bytes of a write go to the socket. A
process may still be paused between this check and the system call that sends; that one write goes out when the process
resumes, because its loop does nothing else in between. The network may also delay a write. So every write must be
harmless if it arrives late, when another replica leads:

- A status, a finalizer, the Lease and the certificates carry the resourceVersion that was read: a conflict.
- A deletion carries the UID of the observed object, and leaves a later object with the same name alone.
- An apply carries the resourceVersion of the object that was found (`client.unless_changed`). If none was found, it
  creates or changes an object around a pool, and the leader soon applies its own version again.
- A created object is named after the intent. It exists already, or it is created again after a deletion; then it is
  deleted again because it belongs to no live attempt, or together with its owner. Events and reviews change nothing
  else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.connector import Connection
from yarl import URL

from deepcoder_operator import VERSION
from deepcoder_operator.kube.access import Access
from deepcoder_operator.kube.errors import NoAccess

FIELD_MANAGER = "deepcoder-operator"

UNBOUNDED = 0
"""No limit on the number of connections."""
_ACCEPT = "application/json, application/jwk-set+json"
_LONGEST_LINE_BYTES = 2 * 1024 * 1024
"""Longest line of a watch. Each event is one line, and etcd stores objects of up to 1.5 MiB."""


def open_session(
    reached: Access,
    most: int,
    fence: Callable[[], None] = lambda: None,
    also: Sequence[aiohttp.ClientMiddlewareType] = (),
) -> aiohttp.ClientSession:
    """Open a session with at most `most` connections in the running loop. The caller closes it.

    `fence` is called right before each request that may change something is sent. It raises if the request must not be
    sent. `also` handles each request and its response too.
    """

    class Fenced(aiohttp.ClientRequest):
        """Calls the fence at the last moment. A request may wait long for a connection. A request with a body, headers
        included, is written by a separate task, which may run much later. So the fence is called again there."""

        async def send(self, conn: Connection) -> aiohttp.ClientResponse:
            if self.method != "GET":
                fence()
            return await super().send(conn)

        async def write_bytes(
            self, writer: AbstractStreamWriter, conn: Connection, content_length: int | None = None
        ) -> None:
            try:
                fence()
            except Exception as e:
                assert conn.protocol is not None
                conn.protocol.set_exception(e)  # raises in the caller that waits for the answer; closes the connection
                return
            await super().write_bytes(writer, conn, content_length)

    async def as_ourselves(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if reached.authorization is not None:
            request.headers["Authorization"] = reached.authorization()
        request.server_hostname = reached.server_name
        try:
            return await handler(request)
        except aiohttp.ClientSSLError:
            # The authorities may have been renewed. All callers retry, with the new ones.
            with suppress(NoAccess, OSError, ValueError):
                reached.reread()
            raise

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=most, ssl=reached.tls or True),
        headers={"User-Agent": f"{FIELD_MANAGER}/{VERSION} ({os.environ.get('POD_NAME') or 'no pod'})"},
        cookie_jar=aiohttp.DummyCookieJar(),
        middlewares=(as_ourselves, *also),
        request_class=Fenced,
        proxy=reached.proxy,
        # With trust_env, aiohttp would search the environment and ~/.netrc in threads for each request.
        trust_env=False,
        read_bufsize=_LONGEST_LINE_BYTES,
    )


class Connections:
    """A bounded number of connections to the server. The session is opened with the first request."""

    def __init__(self, reached: Access, most: int, fence: Callable[[], None] = lambda: None) -> None:
        """`most` is the largest number of connections. See `open_session` for `fence`."""
        self._reached, self._most, self._fence = reached, most, fence
        self._session: aiohttp.ClientSession | None = None

    async def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: dict[str, Any] | None,
        content_type: str,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """Send a request and return the response, whose body is still unread."""
        server, headers = self._reached.server, {"Accept": _ACCEPT}
        if body is not None:
            headers["Content-Type"] = content_type
        url = URL(f"{server}{path}?{urlencode(query)}" if query else server + path, encoded=True)
        return await self._open().request(
            method,
            url,
            headers=headers,
            data=None if body is None else json.dumps(body).encode(),
            timeout=timeout,
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = open_session(self._reached, self._most, self._fence)
        return self._session
