"""How the API server is reached: the environment's proxy is honoured, and no request waits for a thread."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import PODS


@asynccontextmanager
async def answering() -> AsyncIterator[tuple[str, list[str]]]:
    """A server of HTTP, or a proxy of it: its URL, and the URLs that it is asked for."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(str(request.url))
        return web.json_response({"metadata": {"name": "demo"}})

    server = web.Server(answer)  # type: ignore[arg-type]
    runner = web.ServerRunner(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


@asynccontextmanager
async def connected(server: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kube]:
    named = {"name": "a"}
    config: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "a",
        "clusters": [named | {"cluster": {"server": server}}],
        "users": [named | {"user": {"token": "t"}}],
        "contexts": [named | {"context": {"cluster": "a", "user": "a"}}],
    }
    path = directory / "kubeconfig"
    path.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    kube = await Kube.connect()
    try:
        yield kube
    finally:
        await kube.close()


@pytest.mark.parametrize(("bypass", "by_proxy"), [("", True), ("127.0.0.1", False), ("*", False)])
async def test_proxy_of_the_environment_is_used_unless_it_leaves_the_server_out(
    bypass: str, by_proxy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering() as (proxy, through), answering() as (server, direct):
        connect = Kube.connect

        async def with_proxy() -> Kube:
            monkeypatch.setenv("http_proxy", proxy)
            monkeypatch.setenv("no_proxy", bypass)
            return await connect()

        monkeypatch.setattr(Kube, "connect", with_proxy)
        async with connected(server, tmp_path, monkeypatch) as kube:
            assert (await kube.get(PODS, "ml", "demo"))["metadata"]["name"] == "demo"
    assert (len(through), len(direct)) == ((1, 0) if by_proxy else (0, 1))


async def test_request_needs_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hops to threads and back cost as much as the request itself, twenty times a run."""
    hops: list[str] = []
    loop = asyncio.get_running_loop()
    run = loop.run_in_executor

    def counting(executor: Any, function: Any, *arguments: Any) -> Any:
        hops.append(repr(function))
        return run(executor, function, *arguments)

    async with answering() as (server, _), connected(server, tmp_path, monkeypatch) as kube:
        await kube.get(PODS, "ml", "demo")
        monkeypatch.setattr(loop, "run_in_executor", counting)
        await kube.get(PODS, "ml", "demo")
        await kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "demo", "namespace": "ml"}})
    assert hops == []
