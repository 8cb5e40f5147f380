"""Listens, and limits the number of connections: each one costs memory and a descriptor before it sends anything.

Further clients are told to come back and are disconnected. However many come at once, descriptors are left for judging:
few are accepted before they are counted, and few of those that are turned away stay open. The HTTP server's keep-alive
timer closes a connection that is silent for a while, or that never completes the head of its request. Raises OSError if
the address is taken, and FileExistsError if the path of a socket is.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from aiohttp import web

from deepcoder_contracts.judge import Problem

KEEP_ALIVE_S: Final = 75.0
"""Seconds that a connection may be silent between two requests, or before the first."""

BACKLOG: Final = 4096
"""Connections that may wait to be accepted: a thousand clients may connect at once."""

_ACCEPTED_AT_ONCE = 16
"""Connections accepted before they are counted. asyncio would accept a whole backlog, and without descriptors fail and
log for each connection of it, during which nothing else is answered."""

_LINGER_S = 1.0
"""Seconds in which a client that is turned away may finish sending."""

MOST_LINGERING: Final = 128
"""Maximum clients that may do so at once. Others are disconnected at once, and may not read why."""

READ_BYTES: Final = 1 << 14
"""Bytes read from a connection at a time. Of a body that nobody reads yet, twice as many are kept."""


class ConnectionLimit(asyncio.Protocol):
    """Passes new connections to `handler` while `inside` returns less than `most`, and turns others away."""

    _lingering: ClassVar[set[asyncio.Protocol]] = set()

    def __init__(self, handler: Callable[[], asyncio.Protocol], inside: Callable[[], int], most: int) -> None:
        self._handler = handler
        self._inside = inside
        self._most = most

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Pass the connection on, or turn it away."""
        assert isinstance(transport, asyncio.Transport)
        if self._inside() >= self._most:
            transport.write(_turned_away())
            if len(self._lingering) >= MOST_LINGERING:
                transport.close()
                return
            self._lingering.add(self)
            transport.write_eof()
            # To close with unread data would make the kernel discard the response before the client reads it.
            asyncio.get_running_loop().call_later(_LINGER_S, transport.close)
            return
        vars(transport)["max_size"] = READ_BYTES  # asyncio would read 256 KiB from each at a time
        handler = self._handler()
        transport.set_protocol(handler)
        handler.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection that was turned away; others are the handler's by then."""
        self._lingering.discard(self)


def _turned_away() -> bytes:
    body = Problem(error="too many connections: try again in 1 s, or at another judge").model_dump_json()
    return (
        "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


async def open_listener(
    runner: web.AppRunner, host: str, port: int, path: Path | None, most: int
) -> tuple[asyncio.Server, str]:
    """Listen at `path`, or else at host and port; return the server, and where it listens as text."""
    loop = asyncio.get_running_loop()
    server = runner.server
    assert server is not None, "the runner is set up"
    factory = partial(ConnectionLimit, server, lambda: len(server.connections), most)
    if path is None:
        listening = await loop.create_server(factory, host, port, backlog=_ACCEPTED_AT_ONCE)
        _let_wait(listening)
        return listening, f"{host}:{listening.sockets[0].getsockname()[1]}"
    _remove_stale_socket(path)
    before = os.umask(0o177)  # creates the socket with mode 0600
    try:
        listening = await loop.create_unix_server(factory, str(path), backlog=_ACCEPTED_AT_ONCE)
    finally:
        os.umask(before)
    _let_wait(listening)
    return listening, str(path)


def _let_wait(listening: asyncio.Server) -> None:
    """Let `BACKLOG` connections wait in the kernel: asyncio has one number for that and for what it accepts at once."""
    for each in listening.sockets:
        with socket.socket(fileno=os.dup(each.fileno())) as same:
            same.listen(BACKLOG)


def _remove_stale_socket(path: Path) -> None:
    """Remove a socket that nobody serves any more. Raises FileExistsError for anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(f"--socket: {path} exists and is not a socket: remove it, or name another path")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise FileExistsError(f"--socket: {path} is served already: stop that server, or name another path")
