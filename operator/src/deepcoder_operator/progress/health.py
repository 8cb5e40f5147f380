"""Plain HTTP for the kubelet and Prometheus: `/healthz`, `/readyz`, `/metrics`. Nothing secret is served here.

A check returns None, or a sentence that says what is wrong. If a check fails, its endpoint answers 503 with all such
sentences, which `kubectl describe pod` shows in the probe's event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from deepcoder_contracts.server_log import server_log

IDLE_SECONDS = 90.0
"""Time, in seconds, after which a connection is closed on which no whole head of a request has arrived. By default,
Prometheus scrapes every minute, over a connection that it keeps."""

Check = Callable[[], str | None]
"""Returns what is wrong, or None."""


class HealthServer:
    """Serves probes and metrics on a separate port."""

    def __init__(self, live: Mapping[str, Check], ready: Mapping[str, Check]) -> None:
        """`live` are the liveness checks by name, `ready` the readiness checks."""
        self._live, self._ready = live, ready
        self._runner: web.AppRunner | None = None

    def application(self) -> web.Application:
        """Return the application with all routes."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", _metrics)
        return app

    async def start(self, host: str | None, port: int) -> int:
        """Start listening. Returns the port."""
        self._runner = web.AppRunner(
            self.application(), access_log=None, logger=server_log(), keepalive_timeout=IDLE_SECONDS
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Stop listening and close all connections."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return _verdict(self._live)

    async def _readyz(self, _: web.Request) -> web.Response:
        return _verdict(self._ready)


def _verdict(checks: Mapping[str, Check]) -> web.Response:
    failures = {name: wrong for name, check in checks.items() if (wrong := check()) is not None}
    if not failures:
        return web.Response(text="ok\n")
    return web.Response(status=503, text="".join(f"{name}: {wrong}\n" for name, wrong in failures.items()))


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})
