"""An HTTP session with the API server that shows who we are at each request, for our client and for kopf alike."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

from deepcoder_operator import VERSION
from deepcoder_operator.kube.access import Access
from deepcoder_operator.kube.errors import NoAccess

FIELD_MANAGER = "deepcoder-operator"

UNBOUNDED = 0
"""As many connections as there are requests."""
_ACCEPT = "application/json, application/jwk-set+json"
_LONGEST_LINE_BYTES = 2 * 1024 * 1024
"""Of a watch, whose events are a line each: etcd takes objects of up to 1.5 MiB."""


def open_session(reached: Access, most: int, fence: Callable[[], None] = lambda: None) -> aiohttp.ClientSession:
    """A session with at most so many connections, in the loop that runs; whoever opens it closes it.

    `fence` is called before each request that may change something, and raises for one that must not be sent.
    """

    class Fenced(aiohttp.ClientRequest):
        """Asks at the last moment: until then the request has waited for a connection, for who knows how long."""

        async def send(self, conn: Connection) -> aiohttp.ClientResponse:
            if self.method != "GET":
                fence()
            return await super().send(conn)

    async def as_ourselves(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if reached.authorization is not None:
            request.headers["Authorization"] = reached.authorization()
        request.server_hostname = reached.server_name
        try:
            return await handler(request)
        except aiohttp.ClientSSLError:
            # Whoever asks again, as all do, finds authorities that were renewed since.
            with suppress(NoAccess, OSError, ValueError):
                reached.reread()
            raise

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=most, ssl=reached.tls or True),
        headers={"User-Agent": f"{FIELD_MANAGER}/{VERSION} ({os.environ.get('POD_NAME') or 'no pod'})"},
        cookie_jar=aiohttp.DummyCookieJar(),
        middlewares=(as_ourselves,),
        request_class=Fenced,
        proxy=reached.proxy,
        # Left to aiohttp, a thread looks for a proxy in the environment, another for ~/.netrc, at each request.
        trust_env=False,
        read_bufsize=_LONGEST_LINE_BYTES,
    )


class Connections:
    """Connections to the server, at most so many, made with the first request."""

    def __init__(self, reached: Access, most: int, fence: Callable[[], None] = lambda: None) -> None:
        """`most` at once; see `open_session` for `fence`."""
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
        """The answer, whose body is still to be read."""
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
        """Close all of them."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = open_session(self._reached, self._most, self._fence)
        return self._session
