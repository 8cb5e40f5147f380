"""Storage of many tenants: one whose server is away, or who has many, costs the others nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from waits import until

from deepcoder_operator.storage import bulkhead as bulkheads
from deepcoder_operator.storage.bulkhead import Bulkhead, Place
from deepcoder_operator.storage.fair_semaphore import FairSemaphore
from deepcoder_operator.storage.s3 import Buckets, Credentials, Line, StorageProblem, Target, Unheard

AWAY = StorageProblem("StorageUnreachable", "nobody is there")


def at(bucket: str, server: str = "s3", at_once: int = bulkheads.AT_ONCE) -> Place:
    return Place(server, bucket, server, at_once)


_SIXTY_FOUR = """
from deepcoder_operator.storage.fair_semaphore import FairSemaphore
from deepcoder_operator.storage.s3 import Buckets, Credentials, Target

def kilobytes():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1])

buckets = Buckets()
before = kilobytes()
for i in range(64):
    buckets.open(Target("http://127.0.0.1:9", None, Credentials(f"key-{i}", "secret", source="Secret s3")), "b")
print((kilobytes() - before) / 1024)
"""


def test_sixty_four_tenants_cost_less_than_sixty_megabytes() -> None:
    done = subprocess.run([sys.executable, "-c", _SIXTY_FOUR], capture_output=True, text=True, check=True, timeout=60)
    assert float(done.stdout) < 60


def test_known_tenant_does_not_wait_while_a_client_is_made_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    buckets = Buckets()
    known, new = (Target("http://127.0.0.1:9", None, Credentials(name, "s")) for name in ("known", "new"))
    client = buckets.open(known, "b")._made
    making, made = threading.Event(), threading.Event()

    def slow(target: Target) -> object:
        making.set()
        assert made.wait(10)
        return client

    monkeypatch.setattr(buckets, "_make", slow)
    thread = threading.Thread(target=buckets.open, args=(new, "b"))
    thread.start()
    assert making.wait(10)
    answered = threading.Thread(target=buckets.open, args=(known, "b"))
    answered.start()
    answered.join(5)
    waited = answered.is_alive()
    made.set()
    thread.join(10)
    assert not waited


LONG = 1000.0
"""Seconds for an answer, which nobody waits for."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Question:
    """Blocks until the test answers it; counts how many ask at once."""

    def __init__(self) -> None:
        self.asked = self.now = self.most = 0
        self.lines: list[Line] = []
        self._answer = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, line: Line) -> str:
        with self._lock:
            self.asked, self.now = self.asked + 1, self.now + 1
            self.most = max(self.most, self.now)
            self.lines.append(line)
        self._answer.wait(60)
        with self._lock:
            self.now -= 1
        return "answer"

    def answer(self) -> None:
        self._answer.set()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bulkhead(clock: Clock) -> Iterator[Bulkhead]:
    made = Bulkhead(clock)
    yield made
    made.close()


async def past_its_deadline(asked: asyncio.Task[Any], begun: Callable[[], Any]) -> None:
    """Have the time of a question be over once its thread is at it, which may take a busy machine a while."""
    await until(begun)
    loop = asyncio.get_running_loop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", lambda: time.monotonic() + 2 * LONG)
        await asyncio.wait({asked}, timeout=30)


async def test_bucket_has_one_thread_until_it_has_answered_and_a_few_then(bulkhead: Bulkhead) -> None:
    first, later, other = Question(), Question(), Question()
    asked = [asyncio.create_task(bulkhead.ask(at("b"), 10, first)) for _ in range(3)]
    await until(lambda: first.asked)
    elsewhere = asyncio.create_task(bulkhead.ask(at("other"), 10, other))
    await until(lambda: other.asked)
    assert first.now == 1
    first.answer()
    other.answer()
    await asyncio.gather(*asked, elsewhere)
    asked = [asyncio.create_task(bulkhead.ask(at("b"), 10, later)) for _ in range(20)]
    await until(lambda: later.now == bulkheads.AT_ONCE)
    later.answer()
    assert await asyncio.gather(*asked) == ["answer"] * 20
    assert later.most == bulkheads.AT_ONCE


async def test_after_a_question_found_nobody_the_others_are_told_so_without_asking(
    bulkhead: Bulkhead, clock: Clock
) -> None:
    asked: list[float] = []

    def away(_: Line) -> str:
        asked.append(clock.now)
        raise AWAY

    answers = await asyncio.gather(*(bulkhead.ask(at("b"), 10, away) for _ in range(40)), return_exceptions=True)
    assert all(isinstance(a, StorageProblem) and a.problem == AWAY.problem for a in answers)
    assert len(asked) == 1
    clock.now = bulkheads.OPEN_SECONDS
    with pytest.raises(StorageProblem):
        await bulkhead.ask(at("b"), 10, away)
    assert len(asked) == 2


async def test_refusal_is_an_answer_and_shuts_nobody_out(bulkhead: Bulkhead) -> None:
    refused = StorageProblem("CredentialsRefused", "mend its keys")

    def refuse(_: Line) -> str:
        raise refused

    with pytest.raises(StorageProblem, match="mend"):
        await bulkhead.ask(at("b"), 10, refuse)
    assert await bulkhead.ask(at("b"), 10, lambda _: "answer") == "answer"


async def test_question_past_its_deadline_is_told_to_stop_and_keeps_its_place_until_it_has(
    bulkhead: Bulkhead, clock: Clock
) -> None:
    slow, next_one = Question(), Question()
    next_one.answer()
    first = asyncio.create_task(bulkhead.ask(at("b"), LONG, slow))
    await past_its_deadline(first, lambda: slow.lines)
    with pytest.raises(StorageProblem, match="no answer in"):
        await first
    assert slow.lines[0].gone.is_set()
    clock.now = bulkheads.OPEN_SECONDS
    waiting = asyncio.create_task(bulkhead.ask(at("b"), 10, next_one))
    await asyncio.sleep(0.1)
    assert next_one.asked == 0, "the thread of the first is still at it"
    slow.answer()
    assert await waiting == "answer"


async def test_server_has_few_threads_until_it_has_answered_and_never_all(bulkhead: Bulkhead) -> None:
    """Of a server that is away all buckets are silent, and each would have a thread."""
    first, later = Question(), Question()
    asked = [asyncio.create_task(bulkhead.ask(at(f"b{n}", "dead"), 10, first)) for n in range(100)]
    await until(lambda: first.now == bulkheads.NEW_SERVER)
    assert await bulkhead.ask(at("b", "well"), 10, lambda _: "answer") == "answer"
    first.answer()
    await asyncio.gather(*asked)
    asked = [asyncio.create_task(bulkhead.ask(at(f"b{n}", "dead"), 10, later)) for n in range(100)]
    await until(lambda: later.now == bulkheads.SERVER)
    assert await bulkhead.ask(at("b", "well"), 10, lambda _: "answer") == "answer"
    assert later.most == bulkheads.SERVER < bulkheads.THREADS
    later.answer()
    await asyncio.gather(*asked)


async def test_any_number_of_servers_that_never_answer_leaves_half_of_the_threads_to_those_that_do(
    bulkhead: Bulkhead,
) -> None:
    """One tenant may name a server of its own in each of a hundred runs."""
    assert await bulkhead.ask(at("b", "well"), 10, lambda _: "answer") == "answer"
    dead = Question()
    asked = [asyncio.create_task(bulkhead.ask(at("b", f"dead-{n}"), LONG, dead)) for n in range(100)]
    await until(lambda: dead.now >= bulkheads.UNPROVEN)
    async with asyncio.timeout(30):
        assert await bulkhead.ask(at("b", "well"), 10, lambda _: "answer") == "answer"
    assert dead.most == bulkheads.UNPROVEN < bulkheads.THREADS
    dead.answer()
    assert await asyncio.gather(*asked) == ["answer"] * 100


async def test_server_that_could_not_be_reached_has_one_thread_until_it_answers(bulkhead: Bulkhead) -> None:
    def away(_: Line) -> str:
        raise AWAY

    with pytest.raises(StorageProblem):
        await bulkhead.ask(at("b"), 10, away)
    slow = Question()
    asked = [asyncio.create_task(bulkhead.ask(at(f"b{n}"), 10, slow)) for n in range(20)]
    await until(lambda: slow.asked)
    await asyncio.sleep(0.1)
    assert slow.asked == 1
    slow.answer()
    assert await asyncio.gather(*asked) == ["answer"] * 20


@pytest.mark.parametrize("at_last", ["too long", "silent"])
async def test_long_question_whose_requests_are_answered_shuts_nobody_out(bulkhead: Bulkhead, at_last: str) -> None:
    slow = Question()

    def long(line: Line) -> str:
        line.answered = True
        if at_last == "silent":
            raise AWAY
        return slow(line)

    first = asyncio.create_task(bulkhead.ask(at("b"), LONG, long))
    if at_last == "too long":
        await past_its_deadline(first, lambda: slow.lines)
    with pytest.raises(StorageProblem):
        await first
    later = Question()
    asked = [asyncio.create_task(bulkhead.ask(at("b", at_once=4), 10, later)) for _ in range(9)]
    if at_last == "too long":
        await asyncio.sleep(0.1)
        slow.answer()
    await until(lambda: later.asked)
    later.answer()
    assert await asyncio.gather(*asked) == ["answer"] * 9


async def test_each_answer_wakes_one_who_waits(bulkhead: Bulkhead, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a thousand looked again at each answer: half a million wake-ups."""
    turns = 0
    loop = asyncio.get_running_loop()
    call_soon = loop.call_soon

    def counting(*arguments: Any, **keywords: Any) -> Any:
        nonlocal turns
        turns += 1
        return call_soon(*arguments, **keywords)

    monkeypatch.setattr(loop, "call_soon", counting)
    await asyncio.gather(*(bulkhead.ask(at("b"), 10, lambda _: "answer") for _ in range(500)))
    assert turns < 500 * 30


async def test_place_that_was_given_to_one_who_gave_up_goes_to_the_next() -> None:
    semaphore = FairSemaphore(1)
    await semaphore.acquire()
    quitter, next_one = asyncio.create_task(semaphore.acquire()), asyncio.create_task(semaphore.acquire())
    await asyncio.sleep(0)
    semaphore.release()
    quitter.cancel()
    await asyncio.wait_for(next_one, 10)
    assert (semaphore.inside, semaphore.waiting) == (1, 0)


async def test_waiting_for_a_place_is_bounded(bulkhead: Bulkhead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulkheads, "WAIT_SECONDS", 0.05)
    slow = Question()
    first = asyncio.create_task(bulkhead.ask(at("b"), 10, slow))
    await until(lambda: slow.asked)
    with pytest.raises(StorageProblem, match="earlier questions"):
        await bulkhead.ask(at("b"), 10, slow)
    slow.answer()
    assert await first == "answer"


async def test_question_that_is_given_up_frees_its_place(bulkhead: Bulkhead) -> None:
    slow = Question()
    asked = asyncio.create_task(bulkhead.ask(at("b"), 10, slow))
    await until(lambda: slow.asked)
    asked.cancel()
    await until(slow.lines[0].gone.is_set)
    slow.answer()
    assert await bulkhead.ask(at("b"), 10, lambda _: "answer") == "answer"


def test_bucket_that_nobody_waits_for_sends_no_further_request() -> None:
    line = Line()
    bucket = Buckets().open(Target("http://127.0.0.1:9", None, Credentials("a", "s")), "b", line)
    line.gone.set()
    for ask in (bucket.get, bucket.head, bucket.folders, bucket.objects, bucket.sha256):
        with pytest.raises(Unheard):
            ask("key/")
    with pytest.raises(Unheard):
        bucket.delete_page("key/", "")
    with pytest.raises(Unheard):
        bucket.put_once("key", b"")
