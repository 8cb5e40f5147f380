"""The HTTP contract, over a real socket with a real client and real zygotes."""

import asyncio
import hashlib
import json
import os
import time

import aiohttp
import pytest
from aiohttp import web

from deepcoder_contracts.judge import RUN_HEADER, JudgeResponse, Problem, Tier
from deepcoder_sandbox import admission
from deepcoder_sandbox.pool import Pool
from deepcoder_sandbox.server.app import Judge, make_app
from deepcoder_sandbox.server.auth import BadToken, read_token
from deepcoder_sandbox.server.idempotency import Answers, ContentConflict
from deepcoder_sandbox.server.metrics import Metrics
from deepcoder_sandbox.tests_store import TestStore
from deepcoder_sandbox.zygote_process import ZygoteConfig, ZygoteFailed, ZygoteProcess

TOKEN = "a-token-for-these-tests-only"
SLOW = "import time\ntime.sleep(0.3)\nprint(input())"
BODY = {"id": "a", "code": "print(input())", "tests": [{"input": "1", "output": "1"}]}


@pytest.fixture(scope="module")
def judge():
    metrics = Metrics()
    pool = Pool(ZygoteConfig(), slots=1, worker="here", max_queued=3, observer=metrics.observer())
    judge = Judge(pool, Tier.LANDLOCK, {"memory": True}, metrics, TestStore(1 << 20), Answers(100), 1 << 20, 2048)
    metrics.watch(judge.capacity)
    yield judge
    pool.close(30)


@pytest.fixture
async def client(judge):
    runner = web.AppRunner(make_app(judge, TOKEN), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession(url, headers=headers) as session:
        yield session
    await runner.cleanup()


def unique(**fields):
    return {**BODY, "id": os.urandom(8).hex(), **fields}


async def post(client, body, **options):
    async with client.post("/v1/judge", json=body, **options) as response:
        return response, await response.text()


async def refusal(client, status, **request):
    async with client.post("/v1/judge", **request) as response:
        assert response.status == status, await response.text()
        return Problem.model_validate_json(await response.text())


async def test_program_is_judged(client):
    response, text = await post(client, unique())
    assert response.status == 200
    answer = JudgeResponse.model_validate_json(text)
    assert answer.passed is True
    assert answer.worker == "here"


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", "Bearer \u00e9", f"bearer{TOKEN}"])
async def test_v1_needs_the_token(client, header):
    for method, path in (("POST", "/v1/judge"), ("PUT", "/v1/tests/x"), ("GET", "/v1/capacity")):
        async with client.request(method, path, headers={"Authorization": header}, data=b"{}") as response:
            assert response.status == 401
            assert TOKEN not in await response.text()


async def test_health_and_metrics_need_no_token(client):
    for path in ("/healthz", "/readyz", "/metrics"):
        async with client.get(path, headers={"Authorization": ""}) as response:
            assert response.status == 200
    async with client.get("/metrics") as response:
        text = await response.text()
    assert 'deepcoder_sandbox_isolation_tier{tier="Landlock"} 1.0' in text
    assert 'deepcoder_sandbox_limit_enforced{limit="memory"} 1.0' in text


async def test_capacity_has_the_contracts_fields(client):
    async with client.get("/v1/capacity") as response:
        capacity = await response.json()
    assert capacity == {"slots": 1, "busy": 0, "queued": 0, "tier": "Landlock", "limits": {"memory": True}}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"\xff\xfe{}", "body"),
        (b'{"id": "a\\ud800"}', "body"),
        (json.dumps({**BODY, "tests": []}), "tests"),
        (json.dumps({**BODY, "tests": None}), "tests"),
        (json.dumps({**BODY, "tests_sha256": "0" * 64}), "tests"),
        (json.dumps({**BODY, "language": "rust"}), "language"),
        (json.dumps({**BODY, "code": "x = 1\0"}), "code"),
        (json.dumps({**BODY, "kind": "function"}), "fn_name"),
        (json.dumps({**BODY, "kind": "function", "fn_name": "f(x)"}), "fn_name"),
        (
            json.dumps({**BODY, "kind": "function", "fn_name": "f", "tests": [{"input": "x", "output": "1"}]}),
            "tests.0.input",
        ),
        (
            json.dumps({**BODY, "kind": "function", "fn_name": "f", "tests": [{"input": "1", "output": ""}]}),
            "tests.0.output",
        ),
        (
            json.dumps(
                {**BODY, "kind": "function", "fn_name": "f", "tests": [{"input": "1", "output": "[" * 330 + "]" * 330}]}
            ),
            "tests.0.output",
        ),
        (json.dumps({**BODY, "time_limit_s": -1}), "time_limit_s"),
        (json.dumps({**BODY, "memory_limit_mb": 4096}), "memory_limit_mb"),
        (json.dumps({**BODY, "float_tolerance": 0.1, "scoring": "livecodebench"}), "float_tolerance"),
        (json.dumps({**BODY, "kind": "script", "scoring": "taco-compat"}), "scoring"),
        (json.dumps({**BODY, "scoring": "livecodebench", "stop_on_first_failure": False}), "stop_on_first_failure"),
        (json.dumps({**BODY, "surprise": 1}), "surprise"),
        (json.dumps({**BODY, "id": ""}), "id"),
    ],
)
async def test_bad_request_names_its_field(client, body, field):
    problem = await refusal(client, 400, data=body)
    assert problem.field == field, problem
    assert problem.error


async def test_source_or_body_too_large_is_refused(client):
    problem = await refusal(client, 413, json=unique(code="#" * (2 << 20)))
    assert problem.field == "body"
    assert "PUT /v1/tests" in problem.error


async def test_run_header_has_to_be_one(client):
    problem = await refusal(client, 400, json=unique(), headers={RUN_HEADER: "no slashes"})
    assert problem.field == RUN_HEADER


async def test_same_id_and_content_is_judged_once(client, judge):
    body = unique(code=SLOW)
    before = judge.metrics.exposition()
    answers = await asyncio.gather(*(post(client, {**body, "deadline_s": 50 + n}) for n in range(3)))
    texts = {text for _, text in answers}
    _, later = await post(client, body)
    assert texts == {later}
    assert passed_submissions(judge.metrics.exposition()) == passed_submissions(before) + 1


def passed_submissions(exposition):
    for line in exposition.decode().splitlines():
        if line.startswith('deepcoder_sandbox_submissions_total{outcome="passed",scoring="strict"}'):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


async def test_same_id_with_other_content_conflicts_unless_the_run_is_another(client):
    body = unique()
    await post(client, body, headers={RUN_HEADER: "ns/run/12345678"})
    problem = await refusal(client, 409, json={**body, "code": "1"}, headers={RUN_HEADER: "ns/run/12345678"})
    assert problem.field == "id"
    response, _ = await post(client, {**body, "code": "1"}, headers={RUN_HEADER: "ns/run/87654321"})
    assert response.status == 200


async def test_full_queue_answers_429_with_retry_after_and_loses_nothing(client):
    bodies = [unique(code=SLOW) for _ in range(12)]
    answers = await asyncio.gather(*(post(client, body) for body in bodies))
    statuses = [response.status for response, _ in answers]
    assert set(statuses) == {200, 429}
    for response, text in answers:
        if response.status == 429:
            assert int(response.headers["Retry-After"]) >= 1
            assert Problem.model_validate_json(text).error
    for body, (response, _) in zip(bodies, answers, strict=True):
        while response.status == 429:
            await asyncio.sleep(0.05)
            response, text = await post(client, body)
        assert response.status == 200


async def test_client_that_hangs_up_finds_its_answer_later(client):
    body = unique(code=SLOW)
    with pytest.raises(asyncio.TimeoutError):
        await post(client, body, timeout=aiohttp.ClientTimeout(total=0.1))
    _, text = await post(client, body)
    assert JudgeResponse.model_validate_json(text).passed is True


async def test_answer_of_error_is_judged_again_when_asked_again(client):
    body = unique(code=SLOW)
    _, text = await post(client, {**body, "deadline_s": 0.05})
    assert JudgeResponse.model_validate_json(text).passed is None
    _, text = await post(client, body)
    assert JudgeResponse.model_validate_json(text).passed is True


async def test_long_body_is_read_without_holding_up_others(client, monkeypatch):
    parse = admission.parse_request

    def parse_slowly(body):
        time.sleep(0.5)
        return parse(body)

    monkeypatch.setattr("deepcoder_sandbox.admission.parse_request", parse_slowly)
    long = asyncio.ensure_future(post(client, unique(code="#" * 200_000 + "\nprint(input())")))
    longest, before = 0.0, time.monotonic()
    while not long.done():
        await asyncio.sleep(0.01)
        longest, before = max(longest, time.monotonic() - before), time.monotonic()
    assert longest < 0.4
    assert JudgeResponse.model_validate_json((await long)[1]).passed is True


async def test_answers_are_forgotten_oldest_first_and_none_in_flight():
    answers = Answers(max_answers=2)
    loop = asyncio.get_running_loop()
    in_flight = loop.create_future()
    answers.find_or_start(("run", "slow"), "d", lambda: in_flight)
    for number in range(5):
        answer = loop.create_future()
        answers.find_or_start(("run", str(number)), "d", lambda answer=answer: answer)
        answer.set_result(JudgeResponse(id=str(number), passed=True, verdicts=[], seconds=0, worker="w"))
        await asyncio.sleep(0)
        if number == 3:
            assert answers.find(("run", "2"), "d") is not None  # asked for again: newer than 3
    known = [number for number in range(5) if answers.find(("run", str(number)), "d")]
    assert known == [2, 4]
    assert answers.find(("run", "slow"), "d") is in_flight
    with pytest.raises(ContentConflict):
        answers.find(("run", "4"), "another")
    in_flight.cancel()
    await asyncio.sleep(0)
    assert answers.find(("run", "slow"), "d") is None


async def put_tests(client, tests, digest=None):
    body = json.dumps({"tests": tests}).encode()
    digest = digest or hashlib.sha256(body).hexdigest()
    async with client.put(f"/v1/tests/{digest}", data=body) as response:
        return digest, response.status, await response.json()


async def test_stored_tests_are_judged_by_their_digest(client):
    digest, status, stored = await put_tests(client, [{"input": "1", "output": "1"}, {"input": "2", "output": "2"}])
    assert (status, stored) == (200, {"sha256": digest, "tests": 2})
    _, text = await post(client, unique(tests=None, tests_sha256=digest))
    assert len(JudgeResponse.model_validate_json(text).verdicts) == 2


async def test_unknown_tests_are_404_with_the_mend(client):
    problem = await refusal(client, 404, json=unique(tests=None, tests_sha256="1" * 64))
    assert problem.field == "tests_sha256"
    assert "PUT" in problem.error


async def test_tests_with_another_digest_or_shape_are_refused(client):
    _, status, problem = await put_tests(client, [{"input": "1", "output": "1"}], "2" * 64)
    assert (status, problem["field"]) == (400, "sha256")
    _, status, problem = await put_tests(client, [])
    assert (status, problem["field"]) == (400, "tests")
    _, status, problem = await put_tests(client, [{"input": "1", "output": "x" * (2 << 20)}])
    assert (status, problem["field"]) == (413, "body")


async def test_store_is_bounded_and_drops_the_oldest(client):
    digests = []
    for number in range(5):
        digest, status, _ = await put_tests(client, [{"input": str(number), "output": "x" * 300_000}])
        assert status == 200
        digests.append(digest)
    await refusal(client, 404, json=unique(tests=None, tests_sha256=digests[0]))
    response, _ = await post(client, unique(tests=None, tests_sha256=digests[-1]))
    assert response.status == 200


async def test_other_paths_and_methods_are_problems_too(client):
    async with client.get("/v1/judge") as response:
        assert response.status == 405
        assert Problem.model_validate_json(await response.text()).error
    async with client.get("/v1/nothing") as response:
        assert response.status == 404


async def test_draining_server_is_not_ready_and_refuses_with_503(make):
    pool = Pool(ZygoteConfig(), slots=1, worker="here", max_queued=3)
    judge = Judge(pool, Tier.LANDLOCK, {}, Metrics(), TestStore(1 << 20), Answers(10), 1 << 20)
    runner = web.AppRunner(make_app(judge, None), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
        last = asyncio.ensure_future(post(session, unique(code=SLOW)))
        while not (judge.pool.busy or judge.pool.queued):
            await asyncio.sleep(0.005)
        pool.drain()
        async with session.get("/readyz") as response:
            assert response.status == 503
        problem = await refusal(session, 503, json=unique())
        assert "draining" in problem.error
        response, text = await last
        assert JudgeResponse.model_validate_json(text).passed is True
    await runner.cleanup()
    assert pool.close(30) is True


async def test_judge_that_cannot_start_zygotes_is_not_ready_then_not_healthy_and_recovers(monkeypatch):
    def fail(config):
        raise ZygoteFailed("no more processes")

    monkeypatch.setattr("deepcoder_sandbox.pool._START_AGAIN_S", 0.05)
    monkeypatch.setattr("deepcoder_sandbox.slot.ZygoteProcess", fail)
    pool = Pool(ZygoteConfig(), slots=1, worker="here", max_queued=3)
    judge = Judge(pool, Tier.LANDLOCK, {}, Metrics(), TestStore(1 << 20), Answers(10), 1 << 20)
    runner = web.AppRunner(make_app(judge, None), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:

        async def becomes(path, status):
            async with asyncio.timeout(20):
                while True:
                    async with session.get(path) as response:
                        if response.status == status:
                            return
                    await asyncio.sleep(0.02)

        await becomes("/readyz", 503)
        await becomes("/healthz", 200)
        _, text = await post(session, unique())
        assert JudgeResponse.model_validate_json(text).passed is None
        monkeypatch.setattr("deepcoder_sandbox.server.app.UNHEALTHY_AFTER_S", 0.2)
        await becomes("/healthz", 503)
        monkeypatch.setattr("deepcoder_sandbox.slot.ZygoteProcess", ZygoteProcess)
        await becomes("/readyz", 200)
        await becomes("/healthz", 200)
        _, text = await post(session, unique())
        assert JudgeResponse.model_validate_json(text).passed is True
    await runner.cleanup()
    assert pool.close(30) is True


def test_one_zygote_that_fails_to_start_is_no_failing_judge(monkeypatch):
    failures = [ZygoteFailed("a bad moment")] * 2

    def fail_at_first(config):
        if failures:
            raise failures.pop()
        return ZygoteProcess(config)

    monkeypatch.setattr("deepcoder_sandbox.pool._START_AGAIN_S", 0.05)
    monkeypatch.setattr("deepcoder_sandbox.slot.ZygoteProcess", fail_at_first)
    pool = Pool(ZygoteConfig(), slots=1, worker="here", max_queued=3)
    until = time.monotonic() + 20
    while failures and time.monotonic() < until:
        assert pool.failing_s == 0
        time.sleep(0.01)
    assert pool.close(30) is True
    assert pool.failing_s == 0


@pytest.mark.parametrize("text", ["", "short", "two tokens in here", "non-ascii-tokén-000"])
def test_token_file_of_no_use_is_refused_without_showing_it(tmp_path, text):
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(BadToken, match="--token-file") as bad:
        read_token(path)
    assert not text or text not in str(bad.value)
