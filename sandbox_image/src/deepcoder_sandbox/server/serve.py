"""Runs the server: it listens, and on SIGTERM drains before it exits.

While it drains, it is not ready, new work is refused with 503, and accepted work may take `drain_s` to finish. What is
not finished then is also answered with 503, for another judge to do, and the process exits within seconds, because
SIGKILL follows SIGTERM.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from deepcoder_contracts.server_log import server_log
from deepcoder_sandbox.server.app import Judge, make_app
from deepcoder_sandbox.server.auth import Token
from deepcoder_sandbox.server.listener import KEEP_ALIVE_S, MOST_LINGERING, READ_BYTES, open_listener
from deepcoder_sandbox.server.memory_budget import MAX_CONNECTIONS

_log = logging.getLogger("deepcoder_sandbox")

_LAST_ANSWERS_S: Final = 0.5
"""Seconds for the last answers to reach their clients; spent twice, before and after handlers are cancelled."""

_DESCRIPTORS_A_SLOT = 32
_STOPS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Listen:
    """Where to listen: a TCP address with a token, or a Unix socket."""

    host: str = "127.0.0.1"
    port: int = 8080
    socket: Path | None = None
    token: Token | None = None
    drain_s: float = 30.0


async def serve(judge: Judge, listen: Listen) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOPS:
        loop.add_signal_handler(number, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)  # whoever starts the judge may have blocked them
    runner = web.AppRunner(
        make_app(judge, listen.token),
        access_log=None,
        logger=server_log(),
        shutdown_timeout=_LAST_ANSWERS_S,
        keepalive_timeout=KEEP_ALIVE_S,
        read_bufsize=READ_BYTES,
    )
    await runner.setup()
    listening: asyncio.Server | None = None
    try:
        most = _connections(judge.pool.slots)
        listening, where = await open_listener(runner, listen.host, listen.port, listen.socket, most)
        _log.info("listening on %s, %d slots, tier %s", where, judge.pool.slots, judge.tier)
        await stop.wait()
        _log.info("draining: %d being judged, %d waiting", judge.pool.busy, judge.pool.queued)
        judge.pool.drain()
        finished = await asyncio.to_thread(judge.pool.close, listen.drain_s)
        _log.info("drained" if finished else "drain time is over, some submissions are given back unjudged")
    finally:
        if listening is not None:
            listening.close()
        await runner.cleanup()
        if listening is not None and listen.socket is not None:  # never removes a file that was there before
            await asyncio.to_thread(listen.socket.unlink, missing_ok=True)


def _connections(slots: int) -> int:
    """Return the maximum number of connections, so that descriptors are always left for judging."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + MOST_LINGERING + _DESCRIPTORS_A_SLOT * (slots + 8)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, MAX_CONNECTIONS - (wanted - soft))
    return MAX_CONNECTIONS
