"""Answers that are kept for whoever asks again: none in flight is forgotten, and all together are bounded."""

import asyncio

import pytest

from deepcoder_contracts.judge import JudgeResponse, TestVerdict
from deepcoder_sandbox.server.idempotency import Answers, ContentConflict


def answer_of(number, detail=None):
    verdict = TestVerdict(verdict="passed", seconds=0, detail=detail)
    return JudgeResponse(id=str(number), passed=True, verdicts=[verdict], seconds=0, worker="w")


async def test_answers_are_forgotten_oldest_first_and_none_in_flight():
    answers = Answers(max_answers=2, max_bytes=1 << 20)
    loop = asyncio.get_running_loop()
    in_flight = loop.create_future()
    slow = answers.start(("run", "slow"), "d", in_flight)
    for number in range(5):
        judged = loop.create_future()
        answers.start(("run", str(number)), "d", judged)
        judged.set_result(answer_of(number))
        await asyncio.sleep(0)
        if number == 3:
            assert answers.find(("run", "2"), "d") is not None  # asked for again: newer than 3
    known = [number for number in range(5) if answers.find(("run", str(number)), "d")]
    assert known == [2, 4]
    assert answers.find(("run", "slow"), "d") is slow
    with pytest.raises(ContentConflict):
        answers.find(("run", "4"), "another")
    in_flight.cancel()
    await asyncio.sleep(0)
    assert answers.find(("run", "slow"), "d") is None


async def test_long_answers_are_bounded_in_bytes():
    answers = Answers(max_answers=1000, max_bytes=20_000)
    for number in range(100):
        judged = asyncio.get_running_loop().create_future()
        answers.start(("run", str(number)), "d", judged)
        judged.set_result(answer_of(number, "x" * 1000))
        await asyncio.sleep(0)
        assert answers.kept_bytes <= 20_000
    known = [number for number in range(100) if answers.find(("run", str(number)), "d")]
    assert 5 <= len(known) <= 10
    assert known[-1] == 99
