"""Plain HTTP for the kubelet and Prometheus: `/healthz`, `/readyz`, `/metrics`. Nothing secret is served here.

A check returns None when all is well and a sentence otherwise; a check that fails makes its endpoint answer 503 with
all such sentences, which `kubectl describe pod` shows in the probe's event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from deepcoder_contracts.server_log import server_log

Check = Callable[[], str | None]
"""None, or what is wrong."""


class HealthServer:
    """Probes and metrics on a port of their own."""

    def __init__(self, live: Mapping[str, Check], ready: Mapping[str, Check]) -> None:
        """Name to check: for restarting the process, and for sending it traffic."""
        self._live, self._ready = live, ready
        self._runner: web.AppRunner | None = None

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", _metrics)
        return app

    async def start(self, host: str | None, port: int) -> int:
        """Start listening. Returns the port."""
        self._runner = web.AppRunner(self.application(), access_log=None, logger=server_log())
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Close."""
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
