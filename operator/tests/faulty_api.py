"""A proxy in front of the API server, or of the S3 server, that fails on demand.

It forwards everything as it is, credentials too, numbers and names what would change something, and can let a client
die before or after one of these (the request never arrives, or it is carried out and nobody hears of it), refuse with
429, refuse a status write with 409, and do to watches what networks and servers do: end them, repeat them, silence
them, call them too old. What would change something it can send once more, late. A proxy that is dark forwards nothing
any more: whatever its client still tries is lost, as if the client were dead.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

_READS = ("GET", "HEAD", "OPTIONS")
_UNHEARD = ("events", "leases", "tokenreviews")
"""Changed for people, by the clock, or not at all: no gap between two of the operator's writes."""

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "expect", "content-length"}


class Side(StrEnum):
    """Where a client dies: its request never arrives, or is carried out unheard."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True)
class Write:
    """A request that changes something."""

    label: str
    """Method and path without the namespace, for a run's status also what it then says; the same in every life."""


@dataclass
class Faulty:
    """A proxy and what it is to do wrong."""

    target: str
    trust: ssl.SSLContext | bool = True
    s3: bool = False
    """In front of S3: the host that the client asked for is signed, and other lives use the same proxy later."""

    port: int = 0
    writes: list[Write] = field(default_factory=list)
    dark: bool = False
    dies_at: Callable[[Write], Side | None] = lambda write: None
    on_death: Callable[[], Any] = lambda: None
    storm_until: float = 0.0
    """Everything is answered 429 until then (monotonic)."""
    conflicts: set[str] | None = None
    """Labels of status writes that were refused once with 409; None: none is."""
    repeats_events: bool = False
    silent: bool = False
    """Watches stay open and tell nothing."""
    expired_watches: int = 0
    """So many watches that are begun are told that their version is too old."""
    refused: int = 0
    """Requests that were answered with an error of the proxy's own."""
    changes: list[tuple[web.Request, bytes]] = field(default_factory=list)
    """All that was forwarded and would change something, steps of the operator's work or not."""
    open_watches: set[asyncio.BaseTransport] = field(default_factory=set)
    _session: aiohttp.ClientSession | None = None
    _runner: web.AppRunner | None = None
    _open: set[asyncio.BaseTransport] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, from the second time on at the same port."""
        connector = aiohttp.TCPConnector(limit=0, ssl=self.trust)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Break all connections and listen no more."""
        self.go_dark()
        if self._runner:
            await self._runner.cleanup()
        if self._session:
            await self._session.close()

    def go_dark(self) -> None:
        """Forward nothing from now on, and break what is open."""
        self.dark = True
        _cut(self._open)

    def drop_watches(self) -> int:
        """Break all watches that are open; how many."""
        return _cut(self.open_watches)

    async def send_again(self) -> list[tuple[str, int]]:
        """All that would change something, as it came before; labels and statuses."""
        answers = []
        for request, body in list(self.changes):
            write = _write(request, body)
            async with self._request(request, body) as answer:
                await answer.read()
                answers.append((write.label if write else _unheard(request), int(answer.status)))
        return answers

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if transport is None:
            return web.Response()
        self._open.add(transport)
        try:
            return await self._answer(request)
        except (aiohttp.ClientError, OSError):  # the server behind is away: so are we
            return _abort(request)
        finally:
            self._open.discard(transport)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.dark:
            return _abort(request)
        if time.monotonic() < self.storm_until:
            return self._refuse(429, {"Retry-After": "1"})
        if request.method not in _READS:
            self.changes.append((request, body))
        write = _write(request, body)
        if write is None:
            return await self._forward(request, body)
        status = request.path.endswith("/status") and request.method == "PUT"
        if status and self.conflicts is not None and write.label not in self.conflicts:
            self.conflicts.add(write.label)
            return self._refuse(409, {})
        side = self.dies_at(write)
        if side is Side.BEFORE:
            return self._die(request)
        self.writes.append(write)
        if side is Side.AFTER:
            await self._send(request, body)
            return self._die(request)
        return await self._forward(request, body)

    def _die(self, request: web.Request) -> web.Response:
        if not self.s3:
            self.go_dark()
        self.on_death()
        return _abort(request)

    def _refuse(self, status: int, headers: dict[str, str]) -> web.Response:
        self.refused += 1
        answer = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "message": "by the test"}
        return web.json_response(answer, status=status, headers=headers)

    async def _send(self, request: web.Request, body: bytes) -> None:
        """Have a request carried out, its answer unheard."""
        async with self._request(request, body) as answer:
            await answer.read()

    def _request(self, request: web.Request, body: bytes) -> Any:
        assert self._session is not None
        dropped = _HOP_BY_HOP if self.s3 else _HOP_BY_HOP | {"host"}
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in dropped]
        url = URL(self.target + request.raw_path, encoded=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        return self._session.request(
            request.method, url, data=body or None, headers=headers, timeout=timeout, allow_redirects=False,
            skip_auto_headers=("User-Agent", "Content-Type", "Accept-Encoding"),
        )  # fmt: skip

    async def _forward(self, request: web.Request, body: bytes) -> web.StreamResponse:
        watch = request.query.get("watch") in ("true", "1")
        if watch and self.expired_watches > 0:
            self.expired_watches -= 1
            return await self._expired(request)
        async with self._request(request, body) as answer:
            headers = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP}
            if not watch:
                data = b"" if request.method == "HEAD" else await answer.read()
                if request.method == "HEAD" and "Content-Length" in answer.headers:
                    headers["Content-Length"] = answer.headers["Content-Length"]
                return web.Response(status=answer.status, headers=headers, body=data)
            out = web.StreamResponse(status=answer.status, headers=headers)
            await out.prepare(request)
            assert request.transport is not None
            transport = request.transport
            self.open_watches.add(transport)
            try:
                async for line in answer.content:
                    while self.silent:
                        await asyncio.sleep(0.05)
                    await out.write(line * 2 if self.repeats_events else line)
            except ConnectionError:
                pass  # the client has gone
            finally:
                self.open_watches.discard(transport)
            return out

    async def _expired(self, request: web.Request) -> web.StreamResponse:
        self.refused += 1
        out = web.StreamResponse(headers={"Content-Type": "application/json"})
        await out.prepare(request)
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired"}
        await out.write(json.dumps({"type": "ERROR", "object": status | {"message": "too old"}}).encode() + b"\n")
        return out


def _abort(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _cut(connections: set[asyncio.BaseTransport]) -> int:
    """Break connections; how many."""
    cut = [c for c in connections if isinstance(c, asyncio.Transport)]
    for connection in cut:
        connection.abort()
    return len(cut)


def _write(request: web.Request, body: bytes) -> Write | None:
    """What a request would change; None for what only reads, and for what is no step of the operator's work."""
    if request.method in _READS or any(f"/{part}" in request.path for part in _UNHEARD):
        return None
    parts = request.path.strip("/").split("/")
    if parts[0] not in ("api", "apis"):  # S3
        return Write(f"{request.method} s3 {parts[-1]}{'?delete' if 'delete' in request.query else ''}")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    kind, rest = parts[0], parts[1:]
    document: Any = {}
    with suppress(ValueError):
        document = json.loads(body) if body else {}
    if request.method == "POST":
        rest = [str((document.get("metadata") or {}).get("name", ""))]
    if rest:  # judges are named by chance, stage configs by their content, the certificates' Secret by its namespace
        rest[0] = "judge" if kind == "pods" and "-sandbox-" in rest[0] else rest[0]
        rest[0] = re.sub(r"(-a\d+)-[0-9a-f]{10}$", r"\1", rest[0]) if kind == "configmaps" else rest[0]
        rest[0] = "progress-tls" if rest[0].endswith("progress-tls") else rest[0]
    label = " ".join([request.method, kind, "/".join(rest)]).strip()
    if kind == "deepcoderruns" and request.method == "PATCH":
        label += " held" if document["metadata"].get("finalizers") else " let go"
    if kind == "deepcoderruns" and rest[-1:] == ["status"]:
        label += f" {_says(document.get('status') or {})}"
    return Write(label)


def _unheard(request: web.Request) -> str:
    """What is no step of the operator's work, by its kind."""
    return f"{request.method} {next(part for part in _UNHEARD if f'/{part}' in request.path)}"


def _says(status: dict[str, Any]) -> str:
    """What a run's status says, as far as it is a step of its life."""
    attempt = status.get("attempt") or {}
    said = [str(status.get("phase", "")), str(attempt.get("name", "")), str(attempt.get("state", ""))]
    return ":".join(s for s in said if s)


def kubeconfig_through(kubeconfig: Path, proxy: Faulty, path: Path) -> None:
    """Write a kubeconfig with the same credentials that leads through the proxy."""
    config = json.loads(kubeconfig.read_text())
    config["clusters"][0]["cluster"] = {"server": proxy.url}
    path.write_text(json.dumps(config))


def trust_of(kubeconfig: Path) -> tuple[str, ssl.SSLContext]:
    """Address of a kubeconfig's server, and what to trust there."""
    cluster = json.loads(kubeconfig.read_text())["clusters"][0]["cluster"]
    if "certificate-authority-data" in cluster:
        pem = base64.b64decode(cluster["certificate-authority-data"]).decode()
        return cluster["server"], ssl.create_default_context(cadata=pem)
    return cluster["server"], ssl.create_default_context(cafile=cluster["certificate-authority"])


@asynccontextmanager
async def faulty_api(kubeconfig: Path, **faults: Any) -> AsyncIterator[Faulty]:
    """A proxy in front of a kubeconfig's API server."""
    server, trust = trust_of(kubeconfig)
    proxy = Faulty(server, trust, **faults)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()


@asynccontextmanager
async def faulty_s3(endpoint: str, **faults: Any) -> AsyncIterator[Faulty]:
    """A proxy in front of an S3 server."""
    proxy = Faulty(endpoint, s3=True, **faults)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
