"""`deepcoder-web serve`: the page on one port, probes and metrics on another, until SIGTERM.

Fails at once, with the field, on a configuration that cannot be used, and with exit code 1 where no cluster is found.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import ssl
import sys
from pathlib import Path

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from deepcoder_client.client import Client
from deepcoder_client.errors import NoCluster
from deepcoder_web.access import Access
from deepcoder_web.app import Dashboard
from deepcoder_web.config import ConfigError, WebConfig, load_config
from deepcoder_web.runs import Runs
from deepcoder_web.storage import Storage

log = logging.getLogger(__name__)


async def serve(
    config: WebConfig, client: Client, stop: asyncio.Event, started: asyncio.Future[int] | None = None
) -> None:
    """Serve until told to stop; `started` gets the page's port."""
    runs = Runs(client, config.watch_namespaces)
    runs.start()
    dashboard = Dashboard(client, Access(client.connection), runs, Storage(client, config.allowed_endpoints))
    page, probes = (
        web.AppRunner(dashboard.application(), access_log=None),
        web.AppRunner(_probes(runs), access_log=None),
    )
    try:
        for runner in (page, probes):
            await runner.setup()
        await web.TCPSite(
            page, config.host or None, config.port, ssl_context=_tls(config.tls_directory), shutdown_timeout=2
        ).start()
        await web.TCPSite(probes, None, config.health_port, shutdown_timeout=2).start()
        port: int = page.addresses[0][1]
        log.info("the dashboard is served on port %d of %s", port, config.host or "every address")
        if started is not None:
            started.set_result(port)
        await stop.wait()
    finally:
        runs.stop()
        await page.cleanup()
        await probes.cleanup()


def _probes(runs: Runs) -> web.Application:
    async def live(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(request: web.Request) -> web.Response:
        problem = runs.problem
        return web.Response(text=f"{problem or 'ok'}\n", status=503 if problem else 200)

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", live), web.get("/readyz", ready), web.get("/metrics", metrics)])
    return app


def _tls(directory: Path | None) -> ssl.SSLContext | None:
    """From the files as they are now: a renewed certificate is served from the next start on."""
    if directory is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
    except OSError as error:
        raise ConfigError(f"tlsDirectory: {directory} has no usable tls.crt and tls.key: {error}") from error
    return context


async def _run(config: WebConfig) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    await serve(config, Client(), stop)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 told to stop, 1 no cluster, 64 a configuration that cannot be used."""
    parser = argparse.ArgumentParser(prog="deepcoder-web", description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("serve", help="serve the dashboard")
    command.add_argument("--config", type=Path, help="YAML file; without it everything has its default")
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
