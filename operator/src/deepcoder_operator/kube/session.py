"""An HTTP session with the API server that shows who we are at each request, for our client and for kopf alike."""

from __future__ import annotations

import os
from contextlib import suppress

import aiohttp

from deepcoder_operator import VERSION
from deepcoder_operator.kube.access import Access
from deepcoder_operator.kube.errors import NoAccess

FIELD_MANAGER = "deepcoder-operator"

_LONGEST_LINE_BYTES = 2 * 1024 * 1024
"""Of a watch, whose events are a line each: etcd takes objects of up to 1.5 MiB."""


def open_session(reached: Access, most: int) -> aiohttp.ClientSession:
    """A session with at most so many connections (0: no bound), in the loop that runs; whoever opens it closes it."""

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
        proxy=reached.proxy,
        # Left to aiohttp, a thread looks for a proxy in the environment, another for ~/.netrc, at each request.
        trust_env=False,
        read_bufsize=_LONGEST_LINE_BYTES,
    )
