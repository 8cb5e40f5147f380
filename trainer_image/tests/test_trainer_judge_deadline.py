"""Until when the trainer waits for a judge: past whatever the judge itself allows a submission of any accepted size."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scripted_judges import RUN, asking

from deepcoder_contracts.judge import TestCase
from deepcoder_contracts.judge_time import LONGEST_DEADLINE_S, judging_deadline_s, submission_limit_s
from deepcoder_trainer.judge.endpoints import Endpoint
from deepcoder_trainer.judge.servers import ANSWER_SECONDS, JudgeServers
from deepcoder_trainer.judge.submission import QUEUE_SECONDS, JudgedProblem
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
