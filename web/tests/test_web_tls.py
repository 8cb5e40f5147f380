"""Loopback in the clear for port-forwards, HTTPS beside it for everybody else, a renewed certificate while it runs."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
import threading
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from web_fakes import ApiServer, until

from deepcoder_contracts.tls_buffers import TLS_BUFFER_BYTES
from deepcoder_web import __main__ as program
from deepcoder_web import newcomers, tls
from deepcoder_web.config import ConfigError, WebConfig, load_config
from deepcoder_web.tls import Certificate


def write_certificate(directory: Path, name: str) -> None:
    """A pair for this machine, signed by itself."""
    new = directory / f"new-{name}"
    new.mkdir(parents=True)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(new / "tls.key"), "-out", str(new / "tls.crt"), "-days", "2", "-subj", f"/CN={name}"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    for file in ("tls.key", "tls.crt"):
        (new / file).replace(directory / file)


class Client:
    """A cluster without runs."""

    def __init__(self) -> None:
        self.connection = ApiServer()
        self.over = threading.Event()

    def raw_list(self, *_: Any, **__: Any) -> list[Any]:
        return []

    def raw_watch(self, *_: Any, **__: Any) -> Iterator[Any]:
        self.over.wait(60)
        return iter(())


@asynccontextmanager
async def served(**config: Any) -> AsyncIterator[tuple[int, ...]]:
    """The ports."""
    client: Any = Client()
    stop, started = asyncio.Event(), asyncio.get_running_loop().create_future()
    chosen = WebConfig(port=0, health_port=0, tls_port=0, **config)
    task = asyncio.create_task(program.serve(chosen, client, stop, started))
    await until(lambda: started.done() or task.done(), "it listens")
    try:
        yield started.result() if started.done() else ()
    finally:
        stop.set()
        client.over.set()
        await task


async def common_name(port: int, directory: Path) -> str:
    """Of the certificate that is shown to a new connection."""
    context = ssl.create_default_context(cafile=str(directory / "tls.crt"))
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    subject = dict(pair[0] for pair in writer.get_extra_info("peercert")["subject"])
    writer.close()
    return str(subject["commonName"])


async def test_with_a_certificate_loopback_is_served_as_before_and_https_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0.05)
    write_certificate(tmp_path, "first")
    async with served(tls_directory=tmp_path) as (page, probes, secure), aiohttp.ClientSession() as session:
        for url in (f"http://127.0.0.1:{page}/", f"http://127.0.0.1:{probes}/healthz"):
            assert (await session.get(url)).status == 200
        assert await common_name(secure, tmp_path) == "first"
        write_certificate(tmp_path, "second")

        async def renewed() -> bool:
            try:
                return await common_name(secure, tmp_path) == "second"
            except ssl.SSLError:
                return False

        async with asyncio.timeout(60):
            while not await renewed():
                await asyncio.sleep(0.05)


async def test_without_a_certificate_loopback_alone_is_served() -> None:
    async with served() as ports, aiohttp.ClientSession() as session:
        assert len(ports) == 2
        assert (await session.get(f"http://127.0.0.1:{ports[0]}/")).status == 200
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://127.0.0.2:{ports[0]}/")


@pytest.mark.parametrize("port", [0, 1], ids=["page", "probes"])
async def test_a_request_that_is_no_http_is_answered_and_fills_no_log(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Anyone who reaches a port could write tracebacks into the dashboard's log."""
    async with served() as ports, asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[port])
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nno header\r\n\r\n")
        answer = await reader.read()
        writer.close()
    assert answer.split()[1] == b"400"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("port", [0, 1, 2], ids=["page", "probes", "https"])
@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHo"], ids=["nothing", "half a request"])
async def test_a_connection_without_a_request_is_closed(
    port: int, sent: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to sign in to open one, and each holds a descriptor and memory."""
    monkeypatch.setattr(program, "IDLE_SECONDS", 0.3)
    write_certificate(tmp_path, "first")
    secure = ssl.create_default_context(cafile=str(tmp_path / "tls.crt")) if port == 2 else None
    async with served(tls_directory=tmp_path) as ports, asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[port], ssl=secure)
        writer.write(sent)
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("port", [0, 2], ids=["page", "https"])
async def test_a_connection_is_kept_for_long_only_after_its_first_request(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newcomers, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(newcomers, "LOOK_SECONDS", 0.05)
    write_certificate(tmp_path, "first")
    secure = ssl.create_default_context(cafile=str(tmp_path / "tls.crt")) if port == 2 else None
    async with served(tls_directory=tmp_path) as ports, asyncio.timeout(30):
        asking, silent = [await asyncio.open_connection("127.0.0.1", ports[port], ssl=secure) for _ in range(2)]
        for _ in range(2):
            asking[1].write(b"GET /api/nothing HTTP/1.1\r\nHost: a\r\n\r\n")
            head = await asking[0].readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 4")
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            await asking[0].readexactly(length)
            assert await silent[0].read() == b"", "closed, or still closed"
            await asyncio.sleep(0.5)
        for _, writer in (asking, silent):
            writer.close()


async def test_open_connections_over_https_take_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens them has shown nothing. Those that this process opens have the same buffers as the server's."""
    monkeypatch.setattr(SSLProtocol, "max_size", 256 * 1024)  # asyncio's own
    write_certificate(tmp_path, "first")
    secure = ssl.create_default_context(cafile=str(tmp_path / "tls.crt"))
    async with served(tls_directory=tmp_path) as ports:
        _, writer = await asyncio.open_connection("127.0.0.1", ports[2], ssl=secure)
        transport: Any = writer.transport
        assert len(transport._ssl_protocol._ssl_buffer) == TLS_BUFFER_BYTES
        writer.close()


def test_a_new_certificate_that_cannot_be_used_leaves_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_certificate(tmp_path, "first")
    certificate = Certificate(tmp_path)
    (tmp_path / "tls.key").write_text("half a key")
    certificate.look()
    assert "the previous one stays" in caplog.text
    write_certificate(tmp_path, "second")
    caplog.clear()
    with caplog.at_level("INFO"):
        certificate.look()
    assert "has changed and was loaded" in caplog.text


def test_a_folder_without_a_certificate_is_refused_by_field(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tlsDirectory"):
        Certificate(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text("tlsPort: many")
    with pytest.raises(ConfigError, match="tlsPort"):
        load_config(config)
    for text in (b"tlsPort: \xff", b"tlsPort: 2026-02-30"):
        config.write_bytes(text)
        with pytest.raises(ConfigError, match="not YAML"):
            load_config(config)
