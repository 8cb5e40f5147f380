"""Closes connections on which nobody has asked for anything.

Whoever reaches the HTTPS port may open connections, and an idle one, of a browser or a load balancer, is kept for
minutes. One that has never carried a request gets `SILENT_SECONDS` only, so that opening them does not use up memory.
"""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.typedefs import Handler

SILENT_SECONDS = 30.0
LOOK_SECONDS = 5.0


class Newcomers:
    """The connections of one server that have not carried a request yet."""

    def __init__(self) -> None:
        self._asked: set[object] = set()
        self._since: dict[web.RequestHandler, float] = {}

    def watch(self, application: web.Application) -> None:
        """Note who asks; to be called before the application is set up."""

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._asked.add(request.protocol)
            return await handler(request)

        application.middlewares.insert(0, note)

    async def close_silent(self, server: web.Server) -> None:
        """Look at the server's connections from time to time, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now, there = asyncio.get_running_loop().time(), server.connections
            self._asked.intersection_update(there)
            self._since = {c: self._since.get(c, now) for c in there if c not in self._asked}
            for connection, since in self._since.items():
                if now - since >= SILENT_SECONDS:
                    connection.force_close()
