"""kill -9 in the middle of a batch, over HTTP: of zygotes, of runners, of the server itself, which is started again at
its address. Clients that ask again end with exactly one verdict a submission, each of them right, and nothing is left.
"""

import asyncio
import math
import os
import random
import time
from pathlib import Path

import pytest
from free_ports import free_port
from judge_servers import PatientClients, Server, descendants, kill, submission

pytestmark = pytest.mark.early

FULL = pytest.mark.long
DEADLINE_S = 280.0
"""For a whole batch."""


def batch(count):
    """Submissions and whether each passes: three tests each, every third one wrong from its second test on."""
    bodies = []
    for number in range(count):
        scoring = ("strict", "livecodebench", "taco-compat")[number % 5 % 3]
        wrong = number % 3 == 2
        code = "import time\ntime.sleep(0.03)\nn = int(input())\n"
        code += "print(n + 1 if n > 1 else n)" if wrong else "print(n)"
        tests = [(str(n), str(n)) for n in (1, 2, 3)]
        bodies.append((submission(str(number), code, *tests, scoring=scoring), not wrong))
    return bodies


async def is_gone(pids):
    async with asyncio.timeout(60):
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            await asyncio.sleep(0.05)


async def judged_under_fire(server, batch, strike, every_s, enough=lambda clients, blows: True, spare_after=math.inf):
    """Have all judged while `strike` hits again and again; return what was sent, the answers, and who sent it.

    Where that is over before it was struck enough, all is sent again under other names. After `spare_after` blows, if
    they are enough, there are no more. Between two blows somebody has a verdict: where starting anew takes longer than
    `every_s`, nobody ever would.
    """
    clients, blows, verdicts = PatientClients(server, deadline_s=DEADLINE_S), 0, -1
    bodies, answers = [], []

    async def judge():
        while not bodies or not enough(clients, blows):
            more = [({**body, "id": f"{len(bodies)}-{body['id']}"}, passes) for body, passes in batch]
            answers.extend(await clients.judge_all([body for body, _ in more]))
            bodies.extend(more)

    async with asyncio.TaskGroup() as group:
        judging = group.create_task(judge())
        await asyncio.sleep(0.3)  # under way, and not yet done
        while not judging.done():
            await asyncio.sleep(every_s if blows else 0.01)
            spared = blows >= spare_after and enough(clients, blows)
            if clients.met["verdicts"] > verdicts and not spared:
                verdicts = clients.met["verdicts"]
                blows += await asyncio.to_thread(strike)
    return bodies, answers, clients


def check(bodies, answers, clients):
    assert [answer["id"] for answer in answers] == [body["id"] for body, _ in bodies]
    assert [answer["passed"] for answer in answers] == [passes for _, passes in bodies]
    assert clients.met["verdicts"] == len(bodies)
    for (_, passes), answer in zip(bodies, answers, strict=True):
        expected = ["passed"] * 3 if passes else ["passed", "wrong_answer", "skipped"]
        assert [verdict["verdict"] for verdict in answer["verdicts"]] == expected


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=FULL)])
@pytest.mark.parametrize("victims", ["zygotes", "runners"])
async def test_killed_zygotes_and_runners_cost_no_submission_and_no_verdict(tmp_path, victims, count):
    chance = random.Random(20261128)
    with Server(tmp_path, "--slots", "3", "--max-queued", str(count)) as server:
        top = server.process.pid

        def strike():
            zygotes = server.zygotes()
            found = zygotes if victims == "zygotes" else [pid for pid in descendants(top) if pid not in zygotes]
            for pid in chance.sample(found, min(1, len(found))):
                kill(pid)
            return bool(found)

        check(*await judged_under_fire(server, batch(count), strike, 0.15, lambda clients, blows: blows >= 3))
        assert server.process.pid == top
        assert server.process.poll() is None


@pytest.mark.parametrize("where", ["socket", pytest.param("port", marks=FULL)])
@pytest.mark.parametrize(("count", "blows"), [(40, 2), pytest.param(1000, 125, marks=FULL)])
async def test_killed_server_that_comes_back_costs_no_submission_and_leaves_nothing(tmp_path, count, blows, where):
    port = free_port() if where == "port" else None
    seen: set[int] = set()
    with Server(tmp_path, "--slots", "2", "--max-queued", str(count), port=port) as server:
        # On a busy machine it starts anew for longer than it then judges, or than there is time for.
        blows_left, last_blow_by = iter(range(count // 8)), time.monotonic() + DEADLINE_S / 2

        def strike():
            if time.monotonic() > last_blow_by or next(blows_left, None) is None:
                return False
            seen.update(descendants(server.process.pid))
            server.kill_and_restart()
            return True

        # Some answer was lost, and asked for again.
        bodies = batch(count)
        check(*await judged_under_fire(server, bodies, strike, 1.5, lambda clients, _: clients.met["lost"], blows))
        assert server.stop() == 0
    await is_gone(seen)


@FULL
@pytest.mark.parametrize("count", [400])
async def test_everything_at_once_is_killed_again_and_again(tmp_path, count):
    chance = random.Random(20261129)
    started = time.monotonic()
    with Server(tmp_path, "--slots", "4", "--max-queued", "100") as server:

        def strike():
            below = descendants(server.process.pid)
            if chance.random() < 0.1 and time.monotonic() - started > 2:
                server.kill_and_restart()
            elif below:
                kill(chance.choice(below))
            return True

        check(*await judged_under_fire(server, batch(count), strike, every_s=0.4))


def test_descendants_of_this_process_are_seen():
    pid = os.fork()
    if pid == 0:
        time.sleep(20)
        os._exit(0)
    try:
        assert pid in descendants(os.getpid())
    finally:
        kill(pid)
        os.waitpid(pid, 0)
