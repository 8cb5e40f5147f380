"""Until when the trainer waits for a judge: past whatever the judge itself allows a submission of any accepted size."""

import asyncio
import logging
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scripted_judges import RUN, asking, verdict
from virtual_time import in_virtual_time

from deepcoder_contracts.judge import JudgeResponse, TestCase
from deepcoder_contracts.judge_time import LONGEST_DEADLINE_S, judging_deadline_s, submission_limit_s
from deepcoder_trainer.judge.client import Answer, JudgeClient
from deepcoder_trainer.judge.endpoints import Endpoint, Endpoints
from deepcoder_trainer.judge.servers import JudgeServers
from deepcoder_trainer.judge.submission import ANSWER_SECONDS, QUEUE_SECONDS, JudgedProblem, Submission
from deepcoder_trainer.judge.together.job import Job
from deepcoder_trainer.types import Problem


@given(time_limit_s=st.floats(0.01, 600.0), tests=st.integers(1, 300))
@example(time_limit_s=600.0, tests=10)
@example(time_limit_s=6.0, tests=520)
@example(time_limit_s=60.0, tests=1)
def test_deadline_is_the_judges_own_and_time_in_its_queue(time_limit_s, tests):
    problem = Problem("p", "test", "text", (TestCase(input="", output=""),) * tests, time_limit_s=time_limit_s)
    deadline_s = JudgedProblem(problem).submission("print(1)", "g/0").request.deadline_s
    assert deadline_s == QUEUE_SECONDS + judging_deadline_s(time_limit_s, tests)
    assert QUEUE_SECONDS + submission_limit_s(time_limit_s, tests) < deadline_s <= LONGEST_DEADLINE_S


@given(time_limit_s=st.floats(0.01, 600.0), tests=st.integers(1, 300))
@example(time_limit_s=600.0, tests=10)
@example(time_limit_s=6.0, tests=520)
def test_hosted_judging_comes_to_its_limit_as_the_judges_own_and_before_its_deadline(time_limit_s, tests):
    problem = Problem("p", "test", "text", (TestCase(input="", output=""),) * tests, time_limit_s=time_limit_s)
    submission = JudgedProblem(problem).submission("print(1)", "g/0")
    job = Job(submission.request, submission.tests)
    assert job.total_seconds == submission.longest_seconds == submission_limit_s(time_limit_s, tests)
    assert job.total_seconds < job.deadline_seconds


async def test_an_answer_is_waited_for_beyond_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    servers, waited = JudgeServers(RUN), list[float]()

    async def silent(_method: str, _url: str, _body: bytes, seconds: float) -> None:
        waited.append(seconds)
        raise TimeoutError

    monkeypatch.setattr(servers, "_send", silent)
    for deadline_s in (100.0, None):
        await servers.ask(Endpoint("http://a", 1), asking(deadline_s=deadline_s))
    await servers.close()
    assert waited == [100 + ANSWER_SECONDS, QUEUE_SECONDS + ANSWER_SECONDS]


class Slow:
    """A transport to a judge whose answer comes after `seconds`, if it is there at all."""

    def __init__(self, seconds: float, absent: bool = False) -> None:
        self.seconds, self.absent = seconds, absent

    async def slots(self, judge: Endpoint) -> None: ...

    async def ask(self, judge: Endpoint, submission: Submission) -> Answer:
        if self.absent:
            return Answer(rest_seconds=2.0, problem="cannot connect")
        await asyncio.sleep(self.seconds)
        return Answer(JudgeResponse.model_validate(verdict(True, submission.request.id)), judged=True)


@pytest.mark.parametrize(
    ("tests", "seconds", "longest", "judged"),
    [
        (80, 944.0, 1440.0, True),  # it waited 472 s for another program of such tests, and ran as long
        (1, 899.0, 1440.0, True),
        (1, 901.0, 1440.0, False),
        (300, 1500.0, 1440.0, False),
        (300, 3200.0, math.inf, True),
    ],
)
@in_virtual_time
async def test_a_judge_has_the_time_that_it_may_take_and_one_that_is_silent_for_longer_has_failed(
    tests: int, seconds: float, longest: float, judged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    transport = Slow(seconds)
    client = JudgeClient(Endpoints(["http://a"]), transport, patience=900, longest=longest)  # type: ignore[arg-type]
    problem = Problem("p", "test", "text", (TestCase(input="", output=""),) * tests, time_limit_s=6.0)
    with caplog.at_level(logging.WARNING):
        judgement = await client.judge(JudgedProblem(problem).submission("print(1)", "g/0"))
    assert (judgement.response is not None) == judged
    assert ("300 tests of 6 s: raise the stage's stallSeconds" in caplog.text) == (tests == 300 and not judged)


@in_virtual_time
async def test_a_judge_that_is_not_there_is_waited_for_no_longer_because_its_work_may_take_longer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = JudgeClient(Endpoints(["http://a"]), Slow(0, absent=True), patience=900, longest=1440)  # type: ignore[arg-type]
    problem = Problem("p", "test", "text", (TestCase(input="", output=""),) * 300, time_limit_s=6.0)
    with caplog.at_level(logging.WARNING):
        judgement = await client.judge(JudgedProblem(problem).submission("print(1)", "g/0"))
    assert (judgement.response, judgement.attempts) == (None, 0)
    assert asyncio.get_running_loop().time() == 900
    assert "within 900 s" in caplog.text
    assert "stallSeconds" not in caplog.text
