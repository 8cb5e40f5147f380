"""What `helm test` runs, run here: the rendered program asks the operator's and the dashboard's own servers over TLS.

Only names and ports of Services are replaced, by those on loopback; certificates, routes and answers are the real ones.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from chart_render import render
from test_chart_parts import ALL, program_of

from deepcoder_operator.progress import certificates
from deepcoder_operator.progress.health import HealthServer
from deepcoder_operator.progress.server import ProgressServer
from deepcoder_operator.progress_board import ProgressBoard
from deepcoder_web import __main__ as page_program
from deepcoder_web.config import WebConfig

METRICS = "http://demo-deepcoder-operator-metrics.dc.svc:8080"
PROGRESS = "https://demo-deepcoder-operator-progress.dc.svc:8443"
PAGE_PROBES = "http://demo-deepcoder-operator-web-test.dc.svc:8091"
PAGE = "https://demo-deepcoder-operator-web.dc.svc"
SECONDS = 90.0


class NoRuns:
    """A cluster without runs; nothing else is asked of it for somebody who shows no token."""

    def __init__(self) -> None:
        self.connection = None
        self.over = threading.Event()

    def raw_list(self, *_: Any, **__: Any) -> list[Any]:
        return []

    def raw_watch(self, *_: Any, **__: Any) -> Iterator[Any]:
        self.over.wait(SECONDS)
        return iter(())


def certified(directory: Path) -> Path:
    """A folder with a certificate that nobody here trusts."""
    server = certificates.renew(None, ["localhost"], datetime.now(UTC)).server
    (directory / "tls.crt").write_bytes(server.certificate)
    (directory / "tls.key").write_bytes(server.key)
    return directory


@asynccontextmanager
async def operator(directory: Path) -> AsyncIterator[dict[str, int]]:
    """Its progress server and its probes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
    unused: Any = None
    progress, health = ProgressServer(ProgressBoard(), unused, unused), HealthServer({}, {})
    try:
        yield {PROGRESS: await progress.start("127.0.0.1", 0, context), METRICS: await health.start("127.0.0.1", 0)}
    finally:
        await progress.stop()
        await health.stop()


@asynccontextmanager
async def dashboard(directory: Path) -> AsyncIterator[dict[str, int]]:
    """The page over HTTPS and its probes."""
    client: Any = NoRuns()
    stop, started = asyncio.Event(), asyncio.get_running_loop().create_future()
    config = WebConfig(port=0, health_port=0, tls_port=0, tls_directory=directory)
    serving = asyncio.create_task(page_program.serve(config, client, stop, started))
    try:
        async with asyncio.timeout(SECONDS):
            await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
        _, probes, https = started.result()
        yield {PAGE_PROBES: probes, PAGE: https}
    finally:
        stop.set()
        client.over.set()
        await serving


async def run(program: str, ports: Mapping[str, int]) -> tuple[int, str]:
    """Exit code and what was said, where each Service is a port of loopback."""
    for service, port in ports.items():
        assert f'"{service}/' in program, "the chart names another Service"
        scheme = service.partition("://")[0]
        program = program.replace(f'"{service}/', f'"{scheme}://127.0.0.1:{port}/')
    assert ".svc" not in program, "a Service is asked that is not played here"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_it_passes_where_operator_and_page_answer_over_tls(helm: str, tmp_path: Path) -> None:
    program = program_of(render(helm, ALL, hooks=True))
    directory = certified(tmp_path)
    async with operator(directory) as ours, dashboard(directory) as theirs:
        code, said = await run(program, ours | theirs)
    assert code == 0, said
    assert len(said.splitlines()) == 4, "each is asked"


@pytest.mark.parametrize("broken", [PROGRESS, PAGE])
async def test_it_fails_and_names_who_does_not_speak_tls(helm: str, tmp_path: Path, broken: str) -> None:
    program = program_of(render(helm, ALL, hooks=True))
    patient = "time.monotonic() + 60"
    assert patient in program
    directory = certified(tmp_path)
    async with operator(directory) as ours, dashboard(directory) as theirs:
        ports = ours | theirs
        ports[broken] = ports[METRICS]
        code, said = await run(program.replace(patient, "time.monotonic() + 1"), ports)
    assert code == 1
    assert f"https://127.0.0.1:{ports[broken]}/" in said.splitlines()[-1]
    assert "not (401,)" in said.splitlines()[-1]
