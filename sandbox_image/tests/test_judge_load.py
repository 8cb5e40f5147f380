"""Under load, over HTTP, against a server of its own: nothing is lost, nothing is done twice, memory is bounded, and a
machine that is too busy gives no false verdict. The long forms are the full length."""

import asyncio
import contextlib
import os
import resource
import socket

import judge_servers
import pytest
from free_ports import free_port
from judge_servers import PatientClients, Server, metric, submission

from deepcoder_sandbox.limits import BODY_MB
from deepcoder_sandbox.server import serve
from deepcoder_sandbox.server.listener import ConnectionLimit
from deepcoder_sandbox.server.memory_budget import CONNECTION_BYTES, MAX_CONNECTIONS, QUEUED_MB, held_mb

MIB = 1 << 20
FULL = pytest.mark.long

KEPT_BY_ALLOCATOR = 1.5
"""What is freed in pieces is not all given back to the kernel."""

HONEST = """
import time
while time.process_time() < {cpu_s}:
    pass
print(input())
"""

WHEN_LET = """
import os, time
while not os.path.exists({may_go_on!r}):
    time.sleep(0.01)
"""


class Held:
    """Programs that begin with `code` hold their slots until some submission was refused."""

    def __init__(self, tmp_path):
        packages = tmp_path / "packages"  # what a program can see
        packages.mkdir()
        self._may_go_on = packages / "may_go_on"
        self.code = WHEN_LET.format(may_go_on=str(self._may_go_on))
        self.options = ["--packages", str(packages)]

    async def judge_all(self, clients, bodies, at_once=None):
        async with asyncio.TaskGroup() as group:
            judging = group.create_task(clients.judge_all(bodies, at_once))
            while not clients.met["429"] and not judging.done():
                await asyncio.sleep(0.01)
            self._may_go_on.touch()
        return judging.result()


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=FULL)])
async def test_submissions_at_once_are_answered_once_each_by_a_server_that_is_full_most_of_the_time(tmp_path, count):
    held = Held(tmp_path)
    bodies = [
        submission(str(n), f"{held.code}print(int(input()) + {n % 2})", (str(n), str(n)), time_limit_s=60)
        for n in range(count)
    ]  # every other one is wrong
    twice = bodies[::10]
    with Server(tmp_path, "--slots", "2", "--max-queued", "64", *held.options) as server:
        clients = PatientClients(server, deadline_s=120)
        answers = await held.judge_all(clients, bodies + twice)
        assert [answer["id"] for answer in answers] == [body["id"] for body in bodies + twice]
        assert [answer["passed"] for answer in answers[:count]] == [n % 2 == 0 for n in range(count)]
        assert answers[count:] == answers[:count:10]  # to the last digit of the seconds: the same answer
        assert clients.met["429"] > 0
        assert clients.met["lost"] == clients.met["error"] == 0
        async with server.session() as session:
            assert await metric(session, "deepcoder_sandbox_submissions_total") == count
            assert await metric(session, "deepcoder_sandbox_held_bytes") < 2 * MIB  # answers, no more submissions
        assert server.stop() == 0


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=FULL)])
@pytest.mark.early
async def test_memory_is_bounded_by_the_limits_and_not_by_what_is_sent(tmp_path, count):
    text = "x" * MIB
    held = Held(tmp_path)
    code = f"{held.code}print(len(input()))"
    bodies = [submission(str(n), code, (text, str(MIB)), time_limit_s=60) for n in range(count)]
    options = ["--slots", "2", "--max-queued", str(count), "--max-queued-mb", "16", *held.options]
    with Server(tmp_path, *options) as server:
        clients = PatientClients(server, deadline_s=280)
        await clients.judge_all([submission("first", "print(len(input()))", (text, str(MIB)))])
        before_mb = server.memory_mb()
        answers = await held.judge_all(clients, bodies, at_once=200)
        assert all(answer["passed"] for answer in answers)
        assert clients.met["429"] > 0
        # half of the room, as there is one run; each connection's buffers; copies of one body while it is read, and of
        # one text in each slot
        held_mb = 8 + min(count, 200) * CONNECTION_BYTES / MIB + 5 + 2 * 3
        assert server.memory_mb("VmHWM") < before_mb + KEPT_BY_ALLOCATOR * held_mb


@FULL
async def test_longest_bodies_of_widest_characters_take_no_more_than_is_told_to_whoever_sizes_a_pod(tmp_path):
    text = "0123456789abcdef" * (3 * MIB + MIB // 4) + "\U0001f600"  # in memory four times as long as when it is sent
    bodies = [submission(str(n), "print(len(input()))", (text, str(len(text)))) for n in range(5)]
    with Server(tmp_path, "--slots", "2") as server:
        before_mb = server.memory_mb()
        answers = await PatientClients(server, deadline_s=200).judge_all(bodies, as_it_is=True)
        assert all(answer["passed"] for answer in answers)
        assert server.memory_mb("VmHWM") < before_mb + held_mb(QUEUED_MB, BODY_MB)
        async with asyncio.timeout(60):
            while server.memory_mb() > before_mb + 50:  # and nothing of it stays
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("count", [80, pytest.param(1000, marks=FULL)])
async def test_four_times_more_slots_than_cores_give_honest_programs_no_time_limit(tmp_path, count):
    slots = 4 * len(os.sched_getaffinity(0))
    bodies = [
        submission(
            str(n),
            HONEST.format(cpu_s=0.06),
            (str(n), str(n)),
            time_limit_s=0.1,
            scoring=("strict", "livecodebench")[n % 2],
        )
        for n in range(count)
    ]
    with Server(tmp_path, "--slots", str(slots), "--max-queued", str(count)) as server:
        answers = await PatientClients(server, deadline_s=280).judge_all(bodies)
    assert [
        (body["scoring"], answer) for body, answer in zip(bodies, answers, strict=True) if not answer["passed"]
    ] == []
    assert len(answers) == count


UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "raised_to", "let_in"),
    [
        ((UNLIMITED, UNLIMITED), None, MAX_CONNECTIONS),
        ((1024, UNLIMITED), 2560, MAX_CONNECTIONS),  # 32 for each slot, and for 8 more; and those turned away
        ((1024, 4096), 2560, MAX_CONNECTIONS),
        ((1024, 2000), 2000, MAX_CONNECTIONS - 560),
        ((64, 64), 64, 1),
    ],
)
def test_connections_leave_descriptors_to_judge_with(monkeypatch, limits, raised_to, let_in):
    told = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: told.append(limits))
    assert serve._connections(4) == let_in
    assert told == ([] if raised_to is None else [(raised_to, limits[1])])


async def test_more_connections_than_are_let_in_are_told_to_come_back(tmp_path):
    inside: list[asyncio.Protocol] = []

    class Handler(asyncio.Protocol):
        def connection_made(self, transport):
            inside.append(self)
            self.transport = transport

        def data_received(self, data):
            self.transport.write(data)

    path = str(tmp_path / "socket")
    listening = await asyncio.get_running_loop().create_unix_server(
        lambda: ConnectionLimit(Handler, lambda: len(inside), 2), path
    )
    streams = [await asyncio.open_unix_connection(path) for _ in range(3)]
    streams[2][1].write(b"POST /v1/judge HTTP/1.1\r\n")
    answer = (await asyncio.wait_for(streams[2][0].read(), 10)).decode()
    assert answer.startswith("HTTP/1.1 429 ")
    assert "Retry-After: 1" in answer
    assert len(inside) == 2
    streams[1][1].write(b"heard")
    assert await asyncio.wait_for(streams[1][0].readexactly(5), 10) == b"heard"
    for _, writer in streams:
        writer.close()
    async with asyncio.timeout(10):
        while ConnectionLimit._lingering:  # or nobody could read the answer one day
            await asyncio.sleep(0.01)
    listening.close()


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
async def test_however_many_connect_at_once_descriptors_are_left_to_judge_with(tmp_path, monkeypatch, family):
    few = ["sh", "-c", 'ulimit -n 500 && exec "$@"', "sh"]  # of which 416 are for judging and those turned away
    monkeypatch.setattr(judge_servers, "COMMAND", [*few, *judge_servers.COMMAND])
    port = free_port() if family is socket.AF_INET else None
    address = str(tmp_path / "judge.sock") if port is None else ("127.0.0.1", port)
    body = {"code": "print(1)", "tests": [{"input": "", "output": "1"}]}
    with Server(tmp_path, "--slots", "1", port=port) as server, contextlib.ExitStack() as clients:
        async with server.session() as session:
            for name, count in (("alone", 0), ("beside many", 600)):
                for _ in range(count):
                    client = clients.enter_context(socket.socket(family))
                    client.setblocking(False)
                    client.connect_ex(address)
                if count:
                    await asyncio.get_running_loop().sock_recv(client, 1)  # the last one is told to come back
                async with session.post("/v1/judge", json={"id": name, **body}) as response:
                    assert (await response.json())["passed"] is True, name
    assert not [line for line in server.log if "Too many open files" in line]
