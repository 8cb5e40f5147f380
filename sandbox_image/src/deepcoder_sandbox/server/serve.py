"""Running the server: listen, say so, and on SIGTERM drain before leaving.

Draining: readiness turns false, new work is refused with 503, what was accepted is finished for at most `drain_s`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from deepcoder_sandbox.server.app import Judge, make_app

_log = logging.getLogger("deepcoder_sandbox")


@dataclass(frozen=True)
class Listen:
    """Where to listen: a TCP address with a token, or a Unix socket."""

    host: str = "127.0.0.1"
    port: int = 8080
    socket: Path | None = None
    token: str | None = None
    drain_s: float = 30.0


async def serve(judge: Judge, listen: Listen) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(make_app(judge, listen.token), access_log=None, shutdown_timeout=listen.drain_s)
    await runner.setup()
    made: Path | None = None
    try:
        where = await _start(runner, listen)
        made = listen.socket
        _log.info("listening on %s, %d slots, tier %s", where, judge.pool.slots, judge.tier)
        await stop.wait()
        judge.pool.drain()
        finished = await asyncio.to_thread(judge.pool.close, listen.drain_s)
        _log.info("drained" if finished else "drain time is over, some submissions are unanswered")
    finally:
        await runner.cleanup()
        if made is not None:  # never a file that was there before
            await asyncio.to_thread(made.unlink, missing_ok=True)


async def _start(runner: web.AppRunner, listen: Listen) -> str:
    if listen.socket is None:
        await web.TCPSite(runner, listen.host, listen.port).start()
        return f"{listen.host}:{runner.addresses[0][1]}"
    _remove_stale_socket(listen.socket)
    before = os.umask(0o177)  # the socket is born with mode 0600
    try:
        await web.UnixSite(runner, str(listen.socket)).start()
    finally:
        os.umask(before)
    return str(listen.socket)


def _remove_stale_socket(path: Path) -> None:
    """Remove a socket that nobody serves any more. Raises FileExistsError for anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(f"--socket: {path} is there and is no socket: remove it, or name another path")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise FileExistsError(f"--socket: {path} is served already: stop that server, or name another path")
