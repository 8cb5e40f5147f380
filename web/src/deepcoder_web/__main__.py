"""`deepcoder-web serve`: serve the dashboard on loopback and over HTTPS, and probes and metrics on another port.

It runs until SIGTERM. An invalid configuration is refused at once, with the field. If no cluster is found, the exit
code is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from deepcoder_client.client import Client
from deepcoder_client.errors import NoCluster
from deepcoder_contracts.server_log import server_log
from deepcoder_contracts.tls_buffers import use_small_tls_buffers
from deepcoder_web.access import Access
from deepcoder_web.app import Dashboard
from deepcoder_web.config import LOOPBACK, ConfigError, WebConfig, load_config
from deepcoder_web.newcomers import Newcomers
from deepcoder_web.runs import Runs
from deepcoder_web.storage import Storage
from deepcoder_web.tls import Certificate

log = logging.getLogger(__name__)

IDLE_SECONDS = 620.0
"""Time for which a connection may stay open without a request. A load balancer in front has to close idle connections
first, or it answers 502 when both act at once: most do after 60 to 90 s, those of Google after 600 s."""


async def serve(
    config: WebConfig, client: Client, stop: asyncio.Event, started: asyncio.Future[tuple[int, ...]] | None = None
) -> None:
    """Serve until stopped. `started` gets the ports of the page, of the probes, and of HTTPS if it is on."""
    certificate = Certificate(config.tls_directory) if config.tls_directory else None
    runs = Runs(client, config.watch_namespaces)
    storage = Storage(client.connection, config.allowed_endpoints)
    application, newcomers = Dashboard(client, Access(client.connection), runs, storage).application(), Newcomers()
    newcomers.watch(application)
    page, probes = (
        web.AppRunner(served, access_log=None, logger=server_log(), shutdown_timeout=2, keepalive_timeout=IDLE_SECONDS)
        for served in (application, _probes(runs))
    )
    use_small_tls_buffers()
    tasks = [asyncio.create_task(certificate.follow())] if certificate else []
    runs.start()
    try:
        for runner in (page, probes):
            await runner.setup()
        assert page.server is not None, "it is set up"
        tasks.append(asyncio.create_task(newcomers.close_silent(page.server)))
        await web.TCPSite(page, LOOPBACK, config.port).start()
        await web.TCPSite(probes, None, config.health_port).start()
        ports = [_port(page), _port(probes, everywhere=True)]
        log.info("the dashboard is served on port %d of %s", ports[0], LOOPBACK)
        if certificate:
            secure = web.TCPSite(page, None, config.tls_port, ssl_context=certificate.context)
            await secure.start()
            ports.append(_port(page, everywhere=True))
            log.info("the dashboard is served over HTTPS on port %d of every address", ports[2])
        if started is not None:
            started.set_result(tuple(ports))
        await stop.wait()
    finally:
        runs.stop()
        for task in tasks:
            task.cancel()
        await page.cleanup()
        await probes.cleanup()


def _port(runner: web.AppRunner, *, everywhere: bool = False) -> int:
    """Return the port on loopback, or, with `everywhere`, on all IPv4 addresses. With port 0, IPv6 gets another one."""
    ipv4 = (address for address in runner.addresses if len(address) == 2)
    return next((int(port) for host, port in ipv4 if (host != LOOPBACK) == everywhere), 0)


def _probes(runs: Runs) -> web.Application:
    async def live(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(request: web.Request) -> web.Response:
        """Answer the readiness probe. Once ready, the page stays ready without the API server: it shows the last known
        state, and says so."""
        waits = runs.waits
        return web.Response(text=f"{waits or 'ok'}\n", status=503 if waits else 200)

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", live), web.get("/readyz", ready), web.get("/metrics", metrics)])
    return app


async def _run(config: WebConfig) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    await serve(config, Client(), stop)


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 0 when stopped, 1 without a cluster, 64 for an invalid configuration."""
    parser = argparse.ArgumentParser(prog="deepcoder-web", description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("serve", help="serve the dashboard")
    command.add_argument("--config", type=Path, help="YAML file; default: built-in defaults")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_run(load_config(chosen.config)))
    except ConfigError as error:
        print(f"deepcoder-web: {error}", file=sys.stderr)
        return 64
    except NoCluster as error:
        print(f"deepcoder-web: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
