"""The Python API as a user meets it: one import, one request or many, waiting or not."""

import asyncio
import contextlib
import threading
import time

import pytest

from deepcoder_sandbox.api import (
    Draining,
    Judge,
    JudgeRequest,
    Overdue,
    Refused,
    Scoring,
    TestCase,
    Tier,
    TierRefused,
    Verdict,
)

TESTS = [TestCase(input="1", output="1")]


@pytest.fixture(scope="module")
def local():
    with Judge(slots=2) as judge:
        yield judge


def ask(name, code="print(input())", **fields):
    return JudgeRequest(id=str(name), code=code, tests=TESTS, **fields)


def test_one_request_is_judged(local):
    answer = local.judge(ask("a", scoring=Scoring.LIVECODEBENCH))
    assert (answer.id, answer.passed, answer.verdicts[0].verdict) == ("a", True, Verdict.PASSED)
    assert local.tier in (Tier.NAMESPACES, Tier.LANDLOCK)


def test_many_are_judged_in_order(local):
    answers = list(local.judge_many(ask(n, f"print({n % 2})") for n in range(40)))
    assert [answer.id for answer in answers] == [str(n) for n in range(40)]
    assert [answer.passed for answer in answers] == [bool(n % 2) for n in range(40)]


def test_answers_come_while_requests_are_still_made(local):
    seen = []

    def requests():
        for n in range(3):
            yield ask(n)
            until = time.monotonic() + 60
            while len(seen) < n and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.2)

    seen.extend(answer.id for answer in local.judge_many(requests()))
    assert seen == ["0", "1", "2"]


def test_request_that_makes_no_sense_is_refused_after_the_answers_before_it(local):
    answers = local.judge_many([ask("a"), ask("b"), ask("c", "\0"), ask("d")])
    assert [next(answers).id, next(answers).id] == ["a", "b"]
    with pytest.raises(Refused, match="NUL") as refused:
        next(answers)
    assert refused.value.field == "code"


def test_refusal_reads_as_a_sentence_and_passes_through_context_managers(local):
    @contextlib.contextmanager
    def somebodys():
        yield

    with pytest.raises(Refused) as refused, somebodys():
        local.judge(ask("a", "\0"))
    assert str(refused.value) == refused.value.error == refused.value.problem().error
    assert str(refused.value).startswith("code: ")


@pytest.mark.parametrize("field", ["id", "code", "tests.1.input", "tests.1.output"])
def test_lone_surrogate_is_refused_by_the_name_of_its_field(local, field):
    lone, texts = "x = '\ud800'", {"id": "x", "code": "pass", "tests.1.input": "", "tests.1.output": ""}
    texts[field] = lone
    tests = [TestCase(input="ü", output="ü"), TestCase(input=texts["tests.1.input"], output=texts["tests.1.output"])]
    with pytest.raises(Refused, match="lone surrogate") as refused:
        local.judge(ask("x").model_copy(update={"id": texts["id"], "code": texts["code"], "tests": tests}))
    assert refused.value.field == field


def test_tests_have_to_be_in_the_request(local):
    with pytest.raises(Refused, match="no store") as refused:
        local.submit(JudgeRequest(id="x", code="1", tests_sha256="0" * 64))
    assert refused.value.field == "tests_sha256"


async def test_event_loop_goes_on_while_programs_are_judged(local, held_answers):
    judging = asyncio.gather(*(local.judge_async(ask(n)) for n in range(4)))
    for _ in range(10):
        await asyncio.sleep(0.01)
    assert not judging.done()
    held_answers.set()
    assert [answer.passed for answer in await judging] == [True] * 4


async def test_cancelled_requests_leave_the_queue_and_the_judge_goes_on(local, held_answers, monkeypatch):
    futures, submit = [], local.submit
    monkeypatch.setattr(local, "submit", lambda request: futures.append(submit(request)) or futures[-1])
    waiting = asyncio.gather(*(local.judge_async(ask(n)) for n in range(20)))
    async with asyncio.timeout(60):
        while not any(future.running() for future in futures):
            await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    held_answers.set()
    assert (await local.judge_async(ask("after"))).passed is True
    assert sum(future.cancelled() for future in futures) > 10  # what is cancelled was never begun


def test_deadline_that_passes_while_others_are_judged_raises_that_nothing_was_judged(local, held_answers):
    held = [local.submit(ask(n)) for n in range(2)]
    until = time.monotonic() + 60
    while not all(future.running() for future in held):
        assert time.monotonic() < until
        time.sleep(0.01)
    late = local.submit(ask("late", deadline_s=0.1))
    time.sleep(0.2)
    held_answers.set()
    with pytest.raises(Overdue, match="again"):
        late.result(20)
    assert [future.result().passed for future in held] == [True] * 2


def test_deadlines_of_many_count_from_when_each_is_begun(local):
    slow = "import time\ntime.sleep(1.2)\nprint(input())"
    answers = local.judge_many(ask(n, slow, deadline_s=8) for n in range(16))  # two at a time: 9.6 s for all
    assert [answer.passed for answer in answers] == [True] * 16


def test_threads_may_share_a_judge(local):
    answers = []
    threads = [threading.Thread(target=lambda n=n: answers.append(local.judge(ask(n)))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.id for answer in answers) == [str(n) for n in range(8)]


def test_closed_judge_tells_whoever_waits_or_asks(monkeypatch):
    monkeypatch.setattr("deepcoder_sandbox.api._CLOSE_S", 0.2)
    judge = Judge(slots=1)
    waiting = judge.submit(ask("a", "import time\ntime.sleep(50)", time_limit_s=60))
    judge.close()
    with pytest.raises(Draining):
        waiting.result(5)
    with pytest.raises(Draining):
        judge.judge(ask("b"))


def test_machine_that_cannot_confine_is_refused_with_the_mend(monkeypatch):
    monkeypatch.setattr("deepcoder_sandbox.tiers.STRONGEST_FIRST", (Tier.NAMESPACES, Tier.LANDLOCK, Tier.UNCONFINED))
    monkeypatch.setattr("deepcoder_sandbox.zygote_process._interpreter", lambda: "/bin/false")
    with pytest.raises(TierRefused, match="Fix: "):
        Judge()


@pytest.mark.parametrize("slots", [0, -1])
def test_number_of_slots_is_one_or_more(slots):
    with pytest.raises(ValueError, match="slots"):
        Judge(slots=slots)
