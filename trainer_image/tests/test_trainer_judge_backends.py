"""What every back end of the judge has to do, asked of each as a stage config names it: one contract, three ways in.

Pool and Local are real `deepcoder-sandbox` servers; Together is a server that speaks the API's published protocol and
really runs what it is sent.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from judge_pods import judge_server
from together_api import KEY, executed, job_of, together_api

from deepcoder_contracts.judge import Kind, TestCase
from deepcoder_contracts.stage import JudgeBackend, JudgeEndpoint, StageConfig, TogetherEndpoint
from deepcoder_trainer.judge.backend import Judge, JudgeRefused
from deepcoder_trainer.judge.connect import connect_judge
from deepcoder_trainer.judge.local import LocalJudge
from deepcoder_trainer.judge.submission import JudgedProblem
from deepcoder_trainer.judge.together import runner
from deepcoder_trainer.judge.together import transport as transport_module
from deepcoder_trainer.judge.together.harness import packed
from deepcoder_trainer.rollout.reward import JudgeReward
from deepcoder_trainer.types import Problem

DOUBLE = Problem(
    "double",
    "test",
    "double the number",
    (TestCase(input="3\n", output="6\n"), TestCase(input="10\n", output="20\n")),
    time_limit_s=5.0,
)
ADD = replace(
    DOUBLE,
    id="add",
    kind=Kind.FUNCTION,
    fn_name="add",
    tests=(TestCase(input="1\n2", output="3"), TestCase(input="[1]\n[2]", output="[1, 2]")),
)
LONG = replace(ADD, id="long", tests=(TestCase(input="7" * 5000 + "\n0", output="7" * 5000),))
PAIR = replace(DOUBLE, id="pair", kind=Kind.FUNCTION, fn_name="pair", tests=(TestCase(input="1", output="[1, true]"),))
GCD = replace(DOUBLE, id="gcd", kind=Kind.FUNCTION, fn_name="gcd", tests=(TestCase(input="4\n6", output="2"),))
SCRIPT = replace(DOUBLE, id="script", kind=Kind.SCRIPT, tests=(TestCase(input="assert add(1, 2) == 3", output=""),))
QUICK = replace(DOUBLE, id="quick", time_limit_s=0.5, tests=DOUBLE.tests[:1])
SMALL = replace(DOUBLE, id="small", memory_limit_mb=64)


@pytest.fixture(scope="module", autouse=True)
def secrets() -> Iterator[None]:
    """What a trainer's environment holds when it starts a judge."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
        patch.setenv("HF_TOKEN", "hidden")
        yield


@pytest.fixture(scope="module")
def pool_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeEndpoint]:
    token = tmp_path_factory.mktemp("pool") / "token"
    token.write_text("pool-token-of-the-tests\n")
    with judge_server(token) as server:
        yield JudgeEndpoint(backend=JudgeBackend.POOL, host=server.address, port=server.port, token_file=str(token))


@pytest.fixture(scope="module")
def local_server() -> Iterator[LocalJudge]:
    judge = LocalJudge(workers=2)
    yield judge
    judge.close()


@pytest_asyncio.fixture(params=list(JudgeBackend))
async def judge(
    request: pytest.FixtureRequest, make_config: Callable[..., StageConfig], tmp_path: Path
) -> AsyncIterator[Judge]:
    local = None
    async with AsyncExitStack() as stack:
        match request.param:
            case JudgeBackend.POOL:
                settings = request.getfixturevalue("pool_server")
            case JudgeBackend.LOCAL:
                local = request.getfixturevalue("local_server")
                settings = JudgeEndpoint(backend=JudgeBackend.LOCAL)
            case JudgeBackend.TOGETHER:
                _, url = await stack.enter_async_context(together_api())
                (key := tmp_path / "key").write_text(f"{KEY}\n")
                together = TogetherEndpoint(key_file=str(key), endpoint=url, concurrency=2)
                settings = JudgeEndpoint(backend=JudgeBackend.TOGETHER, together=together)
        judge = await stack.enter_async_context(connect_judge(make_config(judge=settings), local))
        beside = asyncio.create_task(judge.run())
        yield judge
        beside.cancel()
        await asyncio.gather(beside, return_exceptions=True)


def starved(caplog: pytest.LogCaptureFixture) -> int:
    """How often a judge said that the busy machine, and not the program, took the time: then it is asked again."""
    return sum("kept a program from the CPUs" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("problem", "code", "verdicts"),
    [
        (DOUBLE, "print(2*int(input()))", "passed passed"),
        (DOUBLE, "print(6)", "passed wrong_answer"),
        (DOUBLE, "print(7)", "wrong_answer skipped"),
        (DOUBLE, "print(2*int(input())", "compile_error skipped"),
        (DOUBLE, "print(2*int(input())); raise SystemExit(3)", "runtime_error skipped"),
        (DOUBLE, "print(2*int(input())); raise SystemExit(0)", "passed passed"),
        (DOUBLE, "1/0", "runtime_error skipped"),
        (DOUBLE, "import os; os.abort()", "runtime_error skipped"),
        (DOUBLE, "import sys\nfor line in sys.stdin:\n print('  ', 2*int(line), end='')", "passed passed"),
        (DOUBLE, "import threading\nthreading.Thread(target=lambda: print(2*int(input()))).start()", "passed passed"),
        (DOUBLE, "import atexit\natexit.register(lambda: print(2*int(input())))", "passed passed"),
        (QUICK, "while True: pass", "time_limit"),
        (QUICK, "import time\nwhile True: time.sleep(1)", "time_limit"),
        (SMALL, "x = bytearray(1 << 30)\nprint(2*int(input()))", "memory_limit skipped"),
        (DOUBLE, "import sys\nwhile True: sys.stdout.write('x' * (1 << 20))", "output_limit skipped"),
        (ADD, "def add(a, b): return a + b", "passed passed"),
        (ADD, "class Solution:\n def add(self, a: List[int], b) -> Optional[int]: return a + b", "passed passed"),
        (ADD, "def add(a, b): return reduce(operator.add, collections.deque([a, b]))", "passed passed"),
        (GCD, "def other(a, b): return math.gcd(a, b)", "runtime_error"),
        (GCD, "def gcd(a, b): return math.gcd(a, b)", "passed"),
        (ADD, "class Solution:\n def add(self, a, b): return a + b", "passed passed"),
        (ADD, "def add(a, b): return str(a) + str(b)", "wrong_answer skipped"),
        (ADD, "print(3)", "runtime_error skipped"),
        (ADD, "class Odd:\n def __eq__(self, other): return True\ndef add(a, b): return Odd()", "wrong_answer skipped"),
        (ADD, "raise SystemExit(0)\ndef add(a, b): return a + b", "runtime_error skipped"),
        (LONG, "def add(a, b): return a + b", "passed"),
        (LONG, "def add(a, b): return int(str(a)) + b", "runtime_error"),
        (PAIR, "def pair(x): return (x, True)", "passed"),
        (PAIR, "def pair(x): return (x, 1)", "wrong_answer"),
        (SCRIPT, "def add(a, b): return a + b", "passed"),
        (SCRIPT, "def add(a, b): return a - b", "runtime_error"),
        (SCRIPT, "import os; os._exit(0)", "runtime_error"),
    ],
)
async def test_a_program_has_the_same_verdict_whoever_judges(
    judge: Judge, problem: Problem, code: str, verdicts: str, caplog: pytest.LogCaptureFixture
) -> None:
    judgement = await judge.judge(JudgedProblem(problem).submission(code, "g/0"))
    assert judgement.response is not None
    got = [verdict.verdict.value for verdict in judgement.response.verdicts]
    assert got == verdicts.split(), judgement.response
    assert judgement.response.passed is (set(got) == {"passed"})
    assert judgement.attempts == 1 + starved(caplog)
    assert judge.errors == starved(caplog)


async def test_a_function_finds_the_same_usual_names_everywhere(judge: Judge) -> None:
    code = "def add(*_): return sorted(name for name in globals() if name[0] != '_' and name != 'add')"
    names = json.dumps(sorted(runner._usual_names()))
    judgement = await judge.judge(
        JudgedProblem(replace(ADD, tests=(TestCase(input="1", output=names),))).submission(code, "g/0")
    )
    assert judgement.response is not None
    assert judgement.response.passed is True, judgement.response


async def test_a_response_is_of_its_own_submission_and_says_who_judged(judge: Judge) -> None:
    submission = JudgedProblem(DOUBLE).submission("print(2*int(input()))", "g/7")
    judgement = await judge.judge(submission)
    assert judgement.response is not None
    assert judgement.response.id == submission.request.id
    assert judgement.response.worker
    assert all(0 <= verdict.seconds < 5 for verdict in judgement.response.verdicts)


async def test_a_detail_never_holds_what_was_expected(judge: Judge) -> None:
    secret = "the-expected-answer-73519"
    problem = replace(DOUBLE, tests=(TestCase(input="1\n", output=secret),))
    judgement = await judge.judge(JudgedProblem(problem).submission("print('no')", "g/0"))
    assert judgement.response is not None
    assert secret not in judgement.response.model_dump_json()


async def test_many_at_once_are_each_answered_once_and_with_their_own_verdict(
    judge: Judge, caplog: pytest.LogCaptureFixture
) -> None:
    def submission(index: int) -> Any:
        code = f"print({2 + index % 2}*int(input()))  # {index}"
        return JudgedProblem(DOUBLE).submission(code, f"g/{index}")

    submissions = [submission(index) for index in range(24)]
    judgements = await asyncio.gather(*(judge.judge(s) for s in submissions))
    for index, (given, judgement) in enumerate(zip(submissions, judgements, strict=True)):
        assert judgement.response is not None
        assert judgement.response.id == given.request.id
        assert judgement.response.passed is (index % 2 == 0)
    assert sum(judgement.attempts for judgement in judgements) == len(judgements) + starved(caplog)


async def test_a_large_test_set_is_judged_like_a_small_one(judge: Judge) -> None:
    numbers = " ".join(str(n) for n in range(40_000))
    problem = replace(DOUBLE, tests=(TestCase(input=numbers, output=numbers),) * 2)
    judgement = await judge.judge(JudgedProblem(problem).submission("print(input())", "g/0"))
    assert judgement.response is not None
    assert judgement.response.passed is True


async def test_text_beyond_ascii_arrives_whole_both_ways(judge: Judge) -> None:
    problem = replace(DOUBLE, tests=(TestCase(input="grüße 🙂\n", output="grüße 🙂!"),))
    judgement = await judge.judge(JudgedProblem(problem).submission("print(input() + '!')  # ß", "g/0"))
    assert judgement.response is not None
    assert judgement.response.passed is True, judgement.response


async def test_a_program_finds_no_secret_of_the_trainers_in_its_environment(
    judge: Judge,
) -> None:
    code = (
        "import os\nwords = set('_'.join(os.environ).upper().split('_'))\nx = int(input())\n"
        "print(sorted(os.environ) if words & {'AWS', 'SECRET', 'TOKEN', 'KEY'} else 2 * x)"
    )
    judgement = await judge.judge(JudgedProblem(DOUBLE).submission(code, "g/0"))
    assert judgement.response is not None
    assert judgement.response.passed is True, judgement.response


async def test_what_is_under_way_at_once_is_bounded_and_said(judge: Judge) -> None:
    await judge.judge(JudgedProblem(DOUBLE).submission("print(2*int(input()))", "g/0"))
    assert judge.capacity in (2, 16), "two programs at once: eight waiting for each slot, or none where none may wait"


async def test_a_refusal_is_told_before_or_ends_the_attempt_and_is_no_verdict(judge: Judge) -> None:
    broken = replace(ADD, tests=(TestCase(input="{", output="3"),))
    with pytest.raises(JudgeRefused, match=r"^problem add cannot be judged: .*tests.{0,3}0.{0,9} .*JSON value"):
        await JudgeReward(judge)(broken, "```python\ndef add(a, b): return 3\n```", "g/0")


class Misbehaving:
    """A server that answers whatever a judge of any kind is asked in one bad way, and then, if it is told to, well."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers: list[Answering] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.method == "GET":
            return web.json_response({"error": "no such route"}, status=404)
        self.asked += 1
        return await (self.answers.pop(0) if self.answers else right)(request, body)


Answering = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]


async def right(request: web.Request, body: bytes) -> web.StreamResponse:
    asked = json.loads(body)
    if "execute" in request.path:
        job = job_of(asked)
        run = {"killed": None, "status": 0, "cpu": 0.1, "stdout": base64.b64encode(b"6\n20\n").decode()}
        report = packed({"runs": [run], "seconds": 0.1})
        mark = f"deepcoder:{job['nonce']}"
        return web.json_response(executed(f"{mark}:begin {report} {mark}:end"))
    verdict = {"verdict": "passed", "seconds": 0.1}
    return web.json_response({"id": asked["id"], "passed": True, "verdicts": [verdict], "seconds": 0.1, "worker": "w"})


def status(code: int, **headers: str) -> Answering:
    async def answer(_request: web.Request, _body: bytes) -> web.StreamResponse:
        return web.json_response({"error": "as it says"}, status=code, headers=headers)

    return answer


async def nonsense(_request: web.Request, _body: bytes) -> web.StreamResponse:
    return web.json_response({"passed": True, "verdicts": [], "data": {"outputs": []}})


async def no_json(_request: web.Request, _body: bytes) -> web.StreamResponse:
    return web.Response(text="passed")


async def breaks_off(request: web.Request, _body: bytes) -> web.StreamResponse:
    reply = web.StreamResponse(headers={"Content-Length": "5000"})
    await reply.prepare(request)
    await reply.write(b'{"passed": true')
    assert request.transport is not None
    request.transport.abort()
    return reply


class LocalStandIn:
    """What the client needs of a judge of its own; the socket is a test's."""

    def __init__(self, path: str) -> None:
        self.path = path

    def connector(self) -> aiohttp.UnixConnector:
        return aiohttp.UnixConnector(self.path)

    async def ready(self) -> None:
        """It is."""

    async def watch(self) -> None:
        """Nobody starts it again."""


@pytest_asyncio.fixture(params=list(JudgeBackend))
async def misbehaving(
    request: pytest.FixtureRequest,
    make_config: Callable[..., StageConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[Misbehaving, Judge]]:
    monkeypatch.setattr(transport_module, "PAUSE_SECONDS", 0.01)
    (secret := tmp_path / "secret").write_text(KEY)
    server = Misbehaving()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    local: Any = None
    if request.param is JudgeBackend.LOCAL:
        local = LocalStandIn(str(tmp_path / "socket"))
        await web.UnixSite(runner, local.path).start()
        settings = JudgeEndpoint(backend=JudgeBackend.LOCAL)
    else:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        together = TogetherEndpoint(key_file=str(secret), endpoint=f"http://127.0.0.1:{port}/v1")
        settings = (
            JudgeEndpoint(backend=JudgeBackend.TOGETHER, together=together)
            if request.param is JudgeBackend.TOGETHER
            else JudgeEndpoint(backend=JudgeBackend.POOL, host="127.0.0.1", port=port, token_file=str(secret))
        )
    async with connect_judge(make_config(judge=settings), local) as judge:
        beside = asyncio.create_task(judge.run())
        yield server, judge
        beside.cancel()
        await asyncio.gather(beside, return_exceptions=True)
    await runner.cleanup()


def one_test() -> Any:
    problem = replace(DOUBLE, tests=(TestCase(input="3\n10\n", output="6\n20\n"),))
    return JudgedProblem(problem).submission("print('wrong')", "g/0")


FAILURES = {"500": status(500), "nonsense": nonsense, "no JSON": no_json, "half an answer": breaks_off}


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_judge_that_fails_three_times_leaves_the_sample_unjudged_and_never_wrong(
    misbehaving: tuple[Misbehaving, Judge], failure: str
) -> None:
    server, judge = misbehaving
    server.answers = [FAILURES[failure]] * 9
    judgement = await judge.judge(one_test())
    assert (judgement.response, judgement.attempts, judge.errors) == (None, 3, 3)


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_failure_that_passes_costs_an_attempt_and_nothing_else(
    misbehaving: tuple[Misbehaving, Judge], failure: str
) -> None:
    server, judge = misbehaving
    server.answers = [FAILURES[failure]]
    judgement = await judge.judge(one_test())
    assert judgement.response is not None
    assert (judgement.response.passed, judgement.attempts, judge.errors) == (True, 2, 1)


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (status(429, **{"Retry-After": "1"}), 1.0),
        (status(503, **{"Retry-After": "1"}), 1.0),
        (status(401), 1.0),
        (status(403), 1.0),
    ],
)
async def test_a_judge_that_takes_nothing_now_is_waited_for_and_nothing_counts_against_the_submission(
    misbehaving: tuple[Misbehaving, Judge], answer: Answering, seconds: float
) -> None:
    server, judge = misbehaving
    server.answers = [answer]
    began = time.monotonic()
    judgement = await judge.judge(one_test())
    assert time.monotonic() - began >= seconds
    assert judgement.response is not None
    assert (judgement.response.passed, judgement.attempts, judge.errors, server.asked) == (True, 1, 0, 2)
