"""Neither watches nor passes keep requests of the Lease, or each other, from the API server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web

from deepcoder_operator import app
from deepcoder_operator.config import OperatorConfig
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import CONNECTIONS, Kube
from deepcoder_operator.kube.informer import Informer
from deepcoder_operator.kube.resources import PODS


class Server:
    """Answers about Leases at once, holds watches for good, and all else for as long as it is not to go on."""

    def __init__(self) -> None:
        self.watches, self.held, self.url = 0, 0, ""
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.asked: list[str] = []

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.method)
        if "watch" in request.query:
            self.watches += 1
            response = web.StreamResponse()
            await response.prepare(request)
            await asyncio.sleep(60)
            return response
        if "/leases" not in request.path:
            self.held += 1
            await self.go_on.wait()
            self.held -= 1
        metadata = {"name": "lease", "resourceVersion": "1"}
        return web.json_response({"metadata": metadata, "spec": {"holderIdentity": "", "leaseDurationSeconds": 15}})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    runner = web.ServerRunner(web.Server(made.answer), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def client(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kube]:
    named = {"name": "a"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "a",
        "clusters": [named | {"cluster": {"server": server.url}}],
        "users": [named | {"user": {"token": "t"}}],
        "contexts": [named | {"context": {"cluster": "a", "user": "a"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = await Kube.connect()
    yield made
    await made.close()


async def watch(kube: Kube, namespace: str) -> None:
    async for _ in kube.watch(PODS, namespace, "", "1"):
        raise AssertionError("the server tells nothing")


async def ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task


async def test_watches_of_twenty_namespaces_leave_all_connections_to_requests(server: Server, client: Kube) -> None:
    held = [asyncio.create_task(watch(client, f"team-{n % 20}")) for n in range(CONNECTIONS + 36)]
    async with asyncio.timeout(60):
        while server.watches < len(held):
            await asyncio.sleep(0.01)
        assert (await client.get(PODS, "ml", "demo"))["metadata"]["name"] == "lease"
    await ended(held)


async def test_lease_is_read_and_renewed_behind_two_hundred_requests_that_are_not_answered(
    server: Server, client: Kube
) -> None:
    operator = app.Operator(OperatorConfig(), client)
    server.go_on.clear()

    async def ask() -> None:
        await client.get(PODS, "ml", "demo")

    under_way = [asyncio.create_task(ask()) for _ in range(200)]
    async with asyncio.timeout(30):
        while server.held < CONNECTIONS:
            await asyncio.sleep(0.01)
        await operator.election.turn()
    assert operator.election.leads
    assert server.held == CONNECTIONS, "all others wait behind these"
    assert not any(task.done() for task in under_way)
    await ended(under_way)
    operator.storage.close()


async def test_request_that_has_waited_for_a_connection_is_not_sent_once_another_may_lead(
    server: Server, client: Kube
) -> None:
    one = client.apart(1, deadline=30, attempts=1)
    lost = False

    def check() -> None:
        if lost:
            raise errors.LeadershipLost("another one leads")

    one.fence = check
    server.go_on.clear()
    before = asyncio.create_task(one.get(PODS, "ml", "demo"))
    async with asyncio.timeout(60):
        while not server.asked:
            await asyncio.sleep(0.01)
    waiting = asyncio.create_task(one.patch(PODS, "ml", "demo", {}))
    await asyncio.sleep(0.1)
    lost = True
    server.go_on.set()
    assert await before
    with pytest.raises(errors.LeadershipLost):
        await waiting
    assert server.asked == ["GET"]


async def test_request_that_has_its_connection_is_not_sent_once_another_may_lead(server: Server, client: Kube) -> None:
    """Its bytes go when the loop comes round to them, and a process may be stopped in what the loop does before."""
    lost = False

    def lose() -> None:
        nonlocal lost
        lost = True

    def check() -> None:
        if lost:
            raise errors.LeadershipLost("another one leads")
        asyncio.get_running_loop().call_soon(lose)

    one = client.apart(1, deadline=30, attempts=1)
    one.fence = check
    with pytest.raises(errors.LeadershipLost):
        await one.patch(PODS, "ml", "demo", {})
    assert lost, "it was asked before, when the request had its connection"
    assert await one.get(PODS, "ml", "demo")
    assert server.asked == ["GET"]


@pytest.mark.apiserver
async def test_operator_of_twenty_namespaces_fills_its_caches_and_leads(kube: Kube, namespace: str) -> None:
    """Five kinds in twenty namespaces are more watches than requests have connections."""
    watched = [namespace, *(f"team-{n}" for n in range(19))]
    operator = app.Operator(OperatorConfig.model_validate({"namespace": namespace, "watchNamespaces": watched}), kube)
    informers: list[Informer] = list(operator._informers().values())
    tasks = [asyncio.create_task(informer.run()) for informer in informers]
    async with asyncio.timeout(60):
        for informer in informers:
            await informer.synced.wait()
        await asyncio.sleep(1)  # the watches are open by now
        while not operator.election.leads:  # what a busy machine's API server does not answer in time is asked again
            with suppress(errors.Unavailable):
                await operator.election.turn()
        assert await kube.find(PODS, namespace, "nobody") is None
    kube.fence = lambda: None
    await ended(tasks)
    operator.storage.close()
