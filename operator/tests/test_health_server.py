"""The operator's probes and metrics, at each of its pod's addresses."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest

from deepcoder_operator.app import EVERY_ADDRESS
from deepcoder_operator.progress import health
from deepcoder_operator.progress.health import HealthServer

_NO_IPV6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("[::1]", marks=_NO_IPV6)])
async def test_operator_is_reached_at_its_pods_address_whichever_family_it_is_of(
    host: str, unused_tcp_port: int
) -> None:
    """A kubelet probes the first address of a pod, which in a cluster of two families may be either."""
    server = HealthServer(live={}, ready={})
    await server.start(EVERY_ADDRESS, unused_tcp_port)
    try:
        async with aiohttp.ClientSession(f"http://{host}:{unused_tcp_port}") as session:
            assert (await session.get("/healthz")).status == 200
    finally:
        await server.stop()


async def test_probes_tell_what_is_wrong_and_metrics_are_served() -> None:
    trouble: dict[str, str | None] = {"watch": None}
    server = HealthServer(live={"watch": lambda: trouble["watch"]}, ready={})
    port = await server.start("127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            assert (await session.get("/healthz")).status == 200
            trouble["watch"] = "no event for 400 s"
            response = await session.get("/healthz")
            assert (response.status, await response.text()) == (503, "watch: no event for 400 s\n")
            assert (await session.get("/readyz")).status == 200
            assert "deepcoder_operator_progress_reports_total" in await (await session.get("/metrics")).text()
    finally:
        await server.stop()


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: "], ids=["nothing", "half a head"])
async def test_connection_of_whoever_does_not_go_on_is_not_kept(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """Without a limit of its own, the library keeps one for an hour."""
    monkeypatch.setattr(health, "IDLE_SECONDS", 0.3)
    server = HealthServer(live={}, ready={})
    port = await server.start("127.0.0.1", 0)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        async with asyncio.timeout(60):
            assert await reader.read() == b""
        writer.close()
    finally:
        await server.stop()
