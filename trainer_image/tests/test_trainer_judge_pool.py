"""A pool of judges whose pods come and go under load: real servers, killed, added and taken out of the name service."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from judge_pods import JudgeServer, free_port, judge_server

from deepcoder_contracts.judge import TestCase
from deepcoder_contracts.manifest import RunIdentity
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge import endpoints as endpoints_module
from deepcoder_trainer.judge import http as http_module
from deepcoder_trainer.judge.bearer import Bearer
from deepcoder_trainer.judge.client import JudgeClient
from deepcoder_trainer.judge.endpoints import PER_SLOT, Endpoints, PoolResolver
from deepcoder_trainer.judge.http import rest_seconds
from deepcoder_trainer.judge.servers import JudgeServers
from deepcoder_trainer.judge.submission import JudgedProblem
from deepcoder_trainer.types import Problem

RUN = RunIdentity(namespace="ns", name="run", uid="01234567-89ab-cdef-0123-456789abcdef")
DOUBLE = Problem(
    "double",
    "test",
    "double the number",
    (TestCase(input="3\n", output="6\n"), TestCase(input="10\n", output="20\n")),
    time_limit_s=10.0,
)
Info = tuple[Any, ...]
NOW = 1_800_000_000.0


class NameService:
    """What the pool's headless Service resolves to."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.error: int | None = None
        self.asked = 0

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Info]:
        self.asked += 1
        if self.error is not None or not self.addresses:
            raise socket.gaierror(self.error or socket.EAI_NONAME, "as the name service says")
        return [info(address, port) for address in self.addresses]

    async def heard(self) -> None:
        """Until what is so now has been asked for, and taken in: the next question comes after that."""
        before = self.asked
        async with asyncio.timeout(60):
            while self.asked < before + 2:
                await asyncio.sleep(0.01)


def info(address: str, port: int) -> Info:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return (family, socket.SOCK_STREAM, 6, "", (address, port))


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> NameService:
    service = NameService()
    monkeypatch.setattr(endpoints_module, "RESOLVE_SECONDS", 0.05)
    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lambda _loop, *a, **k: service.getaddrinfo(*a, **k))
    return service


@pytest.fixture
def token(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("pool-token-of-the-tests\n")
    return tmp_path / "token"


@pytest_asyncio.fixture
async def pool(names: NameService, token: Path) -> AsyncIterator[JudgeClient]:
    endpoints = Endpoints()
    resolver = PoolResolver(endpoints, "run-sandbox", free_port())
    client = JudgeClient(endpoints, JudgeServers(RUN, token_file=token), patience=120, beside=resolver.run)
    resolving = asyncio.create_task(client.run())
    yield client
    resolving.cancel()
    await client.close()


def port_of(client: JudgeClient) -> int:
    return int(client._beside.__self__._port)  # type: ignore[union-attr]


async def test_pods_that_die_leave_and_come_in_mid_load_cost_no_submission(
    pool: JudgeClient, names: NameService, token: Path
) -> None:
    answers: list[Any] = []

    async def judged(index: int) -> None:
        code = f"import time; time.sleep(0.05); print({2 + index % 2}*int(input()))  # {index}"
        answers.append((index, await pool.judge(JudgedProblem(DOUBLE).submission(code, f"g/{index}"))))

    async def until(count: int) -> None:
        async with asyncio.timeout(60):
            while len(answers) < count:
                await asyncio.sleep(0.01)

    with ExitStack() as stack:

        def start(number: int) -> JudgeServer:
            return stack.enter_context(judge_server(token, f"127.0.0.{number}", port_of(pool), slots=1))

        # The fourth is up before it is in the Service: how long a judge takes to start is not the matter here.
        *pods, fourth = await asyncio.gather(*(asyncio.to_thread(start, number) for number in (1, 2, 3, 4)))
        names.addresses = [pod.address for pod in pods]
        tasks = [asyncio.create_task(judged(index)) for index in range(90)]
        async with asyncio.timeout(60):
            while len(answers) < 10 or len({judgement.response.worker for _, judgement in answers}) < 3:
                await asyncio.sleep(0.01)  # each is seen at work before the first of them goes
        os.kill(pods[0].process.pid, signal.SIGKILL)  # a lost pod: the name service learns of it later
        await until(20)
        names.addresses = [pods[1].address, pods[2].address, fourth.address]
        await until(40)
        names.addresses.remove(pods[1].address)  # scaled down: taken out of the Service, then told to end
        pods[1].process.terminate()
        names.error = socket.EAI_AGAIN  # and the name service itself is away for a while
        await until(60)
        names.error = None
        await asyncio.gather(*tasks)
        await names.heard()
        assert pool.capacity == 2 * PER_SLOT
    assert sorted(index for index, _ in answers) == list(range(90))
    for index, judgement in answers:
        assert judgement.response is not None, f"{index} after {judgement.attempts} attempts"
        assert judgement.response.passed is (index % 2 == 0)
    workers = {judgement.response.worker for _, judgement in answers}
    assert len(workers) == 4, workers
    assert all(judgement.attempts <= 2 for _, judgement in answers)


async def test_slow_neighbours_in_a_judges_queue_cost_an_honest_program_no_attempt(token: Path) -> None:
    slow = [JudgedProblem(DOUBLE).submission(f"import time; time.sleep(2.5)  # {n}", f"g/{n}") for n in range(2)]
    honest = JudgedProblem(DOUBLE).submission("print(2 * int(input()))", "g/honest")
    in_a_hurry = replace(honest, request=honest.request.model_copy(update={"deadline_s": 1.5}))
    with judge_server(token, slots=1) as server:
        urls = [f"http://{server.address}:{server.port}"]
        ours, theirs = (JudgeClient(Endpoints(urls), JudgeServers(RUN, token_file=token)) for _ in range(2))
        neighbours = [asyncio.create_task(theirs.judge(each)) for each in slow]
        await asyncio.sleep(0.5)
        judgement = await ours.judge(in_a_hurry)
        assert all(each.response is not None for each in await asyncio.gather(*neighbours))
        await ours.close()
        await theirs.close()
    assert judgement.response is not None
    assert judgement.response.passed is True
    assert (judgement.attempts, ours.errors) == (1, 0)


@pytest.mark.parametrize(
    ("error", "left"), [(socket.EAI_NONAME, 0), (socket.EAI_NODATA, 0), (socket.EAI_AGAIN, PER_SLOT)]
)
async def test_a_pool_without_pods_has_none_but_an_absent_name_service_leaves_what_was_known(
    pool: JudgeClient, names: NameService, error: int, left: int
) -> None:
    names.addresses = ["127.0.0.1"]
    async with asyncio.timeout(60):
        while not pool.capacity:
            await asyncio.sleep(0.01)
    names.error = error
    await names.heard()
    assert pool.capacity == left


async def test_a_pod_with_two_addresses_is_one_judge(pool: JudgeClient, names: NameService) -> None:
    names.addresses = ["fd00::1", "127.0.0.1", "127.0.0.1"]
    await names.heard()
    assert pool.capacity == PER_SLOT
    names.addresses = ["fd00::1", "fd00::2"]
    await names.heard()
    assert pool.capacity == 2 * PER_SLOT


def timers_of(port: int) -> list[str]:
    """Kinds of timers that the kernel runs for connections to a port."""
    fields = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [field[5].split(":")[0] for field in fields if field[2].endswith(f":{port:04X}") and field[3] == "01"]


async def test_a_silent_judge_is_probed_so_that_a_lost_node_is_noticed(token: Path) -> None:
    """Judging may take an hour by rights, so only the connection itself can tell that its far end is gone."""
    asked, released = asyncio.Event(), asyncio.Event()

    async def hangs(_: web.Request) -> web.Response:
        asked.set()
        await released.wait()
        return web.Response(status=500)

    app = web.Application()
    app.router.add_post("/v1/judge", hangs)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    client = JudgeClient(Endpoints([f"http://127.0.0.1:{port}"]), JudgeServers(RUN, token_file=token), patience=5)
    asking = asyncio.create_task(client.judge(JudgedProblem(DOUBLE).submission("print(1)", "g/0")))
    await asked.wait()
    async with asyncio.timeout(60):
        while "02" not in timers_of(port):  # the keepalive timer; until the request is acknowledged it is another
            await asyncio.sleep(0.05)
    asking.cancel()
    released.set()
    await asyncio.gather(asking, return_exceptions=True)
    await client.close()
    await runner.cleanup()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 1),
        ("3", 3),
        ("0", 0.1),
        ("-5", 0.1),
        ("9999", 60),
        ("nonsense", 1),
        ("nan", 1),
        ("Mon, 99999999999999999999 Nov 2026 00:00:00 GMT", 1),
        (formatdate(NOW + 20, usegmt=True), 20),
        (formatdate(NOW - 20, usegmt=True), 0.1),
    ],
)
def test_a_judge_rests_as_long_as_it_says_in_seconds_or_by_a_date(
    header: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_module, "time", SimpleNamespace(time=lambda: NOW))
    assert rest_seconds(header) == seconds


@pytest.mark.parametrize("content", ["", "\n", "two words", "two\nlines", "umlaut-ä"])
def test_a_token_that_is_none_is_refused_with_the_mend_and_not_shown(token: Path, content: str) -> None:
    token.write_text(content)
    with pytest.raises(BadConfig, match=r"^judge\.tokenFile .*/token cannot be used: .*: mount the Secret") as caught:
        Bearer(token, "judge.tokenFile")
    assert not content.strip() or content.strip() not in str(caught.value)


async def test_one_resolution_at_a_time_whatever_the_name_service_takes(
    pool: JudgeClient, names: NameService, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, first = 0, asyncio.Event()

    async def never(*_: Any, **__: Any) -> list[Info]:
        nonlocal asked
        asked += 1
        first.set()
        await asyncio.sleep(3600)
        return []

    names.getaddrinfo = never  # type: ignore[method-assign]
    before = threading.active_count()
    await first.wait()
    await asyncio.sleep(0.3)
    assert asked == 1
    assert threading.active_count() <= before


async def test_runs_that_share_a_pool_do_not_all_begin_at_the_same_judge(names: NameService) -> None:
    names.addresses = [f"127.0.0.{number}" for number in range(1, 9)]
    first: set[str] = set()
    for _ in range(30):
        endpoints = Endpoints()
        resolving = asyncio.create_task(PoolResolver(endpoints, "run-sandbox", 8080).run())
        async with asyncio.timeout(60):
            first.add((await endpoints.acquire()).url)
        resolving.cancel()
    assert len(first) > 1
