"""The judge client against a real HTTP server that misbehaves as judges do."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from pathlib import Path

import pytest
from aiohttp import web
from scripted_judges import Handler, Server, asking, client_of, drops, errs, fails, passes, serving, verdict
from virtual_time import in_virtual_time

from deepcoder_contracts.judge import Kind, Scoring, TestCase
from deepcoder_trainer.judge import bearer as bearer_module
from deepcoder_trainer.judge import client as client_module
from deepcoder_trainer.judge import servers as servers_module
from deepcoder_trainer.judge import submission as submission_module
from deepcoder_trainer.judge.backend import JudgeRefused
from deepcoder_trainer.judge.client import Answer
from deepcoder_trainer.judge.endpoints import Endpoint, Endpoints
from deepcoder_trainer.judge.submission import JudgedProblem, Submission
from deepcoder_trainer.types import Problem


async def test_a_wrong_program_is_judged_once_and_is_no_error() -> None:
    async with serving(fails) as ([server], urls):
        client = client_of(Endpoints(urls))
        judgement = await client.judge(asking())
        await client.close()
    assert judgement.response is not None
    assert judgement.response.passed is False
    assert judgement.attempts == 1
    assert server.asked == ["g/0/abc"]
    assert server.headers == ["ns/run/01234567"]


def asked_in_order(urls: list[str]) -> Endpoints:
    """Two judges, of which the first is less busy, and so the first to be asked."""
    endpoints = Endpoints(urls)
    endpoints._all[urls[1]].in_flight = 1
    return endpoints


@pytest.mark.parametrize(("failing", "requests"), [(errs, 1), (drops, 2)], ids=["error verdict", "lost connection"])
async def test_a_judge_that_fails_is_not_asked_again_while_there_is_another(failing: Handler, requests: int) -> None:
    """Over a kept connection a lost one is tried once more, as one that was closed meanwhile looks the same."""
    async with serving(failing, passes) as (servers, urls):
        endpoints = asked_in_order(urls)
        client = client_of(endpoints)
        judgement = await client.judge(asking())
        await client.close()
    assert judgement.response is not None
    assert judgement.response.passed is True
    assert judgement.attempts == 2
    assert [len(s.asked) for s in servers] == [requests, 1]
    assert [endpoints._all[url].held_seconds for url in urls] == [0, 0], "neither counts it as waiting any more"


async def test_three_failures_on_different_judges_leave_the_sample_unjudged_and_never_wrong() -> None:
    async with serving(errs, errs, errs, passes) as (servers, urls):
        endpoints = Endpoints(urls)
        endpoints._all[urls[3]].in_flight = 9
        client = client_of(endpoints)
        judgement = await client.judge(asking())
        await client.close()
    assert judgement.response is None
    assert judgement.attempts == 3
    assert [len(s.asked) for s in servers] == [1, 1, 1, 0]
    assert client.retries == {"failed": 3, "unavailable": 0, "turned_away": 0}


async def test_a_lone_judge_is_asked_again_and_still_only_three_times() -> None:
    async with serving(errs) as ([server], urls):
        client = client_of(Endpoints(urls))
        judgement = await client.judge(asking())
        await client.close()
    assert judgement.response is None
    assert len(server.asked) == 3


async def test_a_full_judge_rests_as_long_as_it_says_and_costs_no_attempt() -> None:
    full = True

    async def full_once(_: web.Request) -> web.Response:
        nonlocal full
        if full:
            full = False
            return web.json_response({"error": "full"}, status=429, headers={"Retry-After": "0.2"})
        return web.json_response(verdict(True))

    async with serving(full_once) as ([server], urls):
        client = client_of(Endpoints(urls))
        judgement = await client.judge(asking())
        await client.close()
    assert judgement.response is not None
    assert judgement.attempts == 1
    assert len(server.asked) == 2
    assert client.retries == {"failed": 0, "unavailable": 1, "turned_away": 0}


def test_a_submission_has_all_that_its_problem_says_of_judging() -> None:
    settings = {"kind": Kind.FUNCTION, "fn_name": "f", "time_limit_s": 7.0, "memory_limit_mb": 300}
    for more in ({"float_tolerance": 0.1}, {"scoring": Scoring.LIVECODEBENCH}):
        problem = Problem("p", "test", "x", (TestCase(input="1", output="2"),), **settings, **more)  # type: ignore[arg-type]
        request = JudgedProblem(problem).submission("pass", "k").request
        assert {name: getattr(request, name) for name in settings | more} == settings | more


async def test_large_test_sets_are_stored_once_and_named_by_digest() -> None:
    seen: list[dict[str, object]] = []
    server: Server

    async def by_digest(request: web.Request) -> web.Response:
        body = await request.json()
        seen.append(body)
        if body["tests_sha256"] not in server.tests:
            return web.json_response({"error": "unknown"}, status=404)
        return web.json_response(verdict(True, body["id"]))

    async with serving(by_digest) as ([server], urls):
        client = client_of(Endpoints(urls))
        problem = JudgedProblem(
            Problem("p", "test", "large", (TestCase(input="x" * 20_000, output="1\n"),), scoring=Scoring.LIVECODEBENCH)
        )
        for _ in range(2):
            judgement = await client.judge(problem.submission("print(1)", "g/0"))
            assert judgement.response is not None
        await client.close()
    [(digest, body)] = server.tests.items()
    assert hashlib.sha256(body).hexdigest() == digest
    assert len(seen) == 3, "refused once, then judged twice"
    assert all("tests" not in s for s in seen)


LARGE = JudgedProblem(Problem("p", "test", "large", (TestCase(input="x" * 20_000, output="1\n"),)))


@pytest.mark.parametrize(("times", "judged", "attempts"), [(3, True, 1), (99, False, 3)])
async def test_tests_that_are_put_out_of_the_store_before_their_use_are_stored_again_until_the_judge_has_failed(
    times: int, judged: bool, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forgets(request: web.Request) -> web.Response:
        if len(server.asked) <= times:
            return web.json_response({"error": "unknown"}, status=404)
        return web.json_response(verdict(True, (await request.json())["id"]))

    monkeypatch.setattr(servers_module, "PUT_PAUSES", (0.0, 0.0, 0.0))
    async with serving(forgets) as ([server], urls):
        client = client_of(Endpoints(urls), patience=30)
        judgement = await client.judge(LARGE.submission("print(1)", "g/0"))
        await client.close()
    assert (judgement.response is not None, judgement.attempts) == (judged, attempts)
    assert len(server.asked) == 4 * attempts
    assert len(server.tests) == 1


async def test_a_judge_that_is_lost_while_it_takes_the_tests_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lacks(_: web.Request) -> web.Response:
        return web.json_response({"error": "unknown"}, status=404)

    async def lost(_server: Server, request: web.Request) -> web.Response:
        return await drops(request)

    monkeypatch.setattr(Server, "put", lost)
    async with serving(lacks) as (_servers, urls):
        client = client_of(Endpoints(urls), patience=30)
        judgement = await client.judge(LARGE.submission("print(1)", "g/0"))
        await client.close()
    assert (judgement.response, judgement.attempts) == (None, 3)


async def test_a_judge_that_says_it_is_our_fault_ends_the_attempt_with_its_words() -> None:
    async def refuses(_: web.Request) -> web.Response:
        return web.json_response({"error": "memory_limit_mb: too much"}, status=400)

    async with serving(refuses) as (_servers, urls):
        client = client_of(Endpoints(urls))
        with pytest.raises(JudgeRefused, match="memory_limit_mb: too much"):
            await client.judge(asking())
        await client.close()


async def test_a_judgement_of_another_submission_is_a_failure_of_the_judge() -> None:
    async def confused(_: web.Request) -> web.Response:
        return web.json_response(verdict(True, "someone/else"))

    async with serving(confused) as (_servers, urls):
        client = client_of(Endpoints(urls))
        judgement = await client.judge(asking())
        await client.close()
    assert judgement.response is None


@pytest.mark.parametrize(
    ("passed", "verdicts"),
    [(True, ["wrong_answer"]), (True, []), (False, ["passed"]), (False, []), (True, ["passed", "skipped"])],
)
async def test_a_judgement_that_its_own_verdicts_deny_is_a_failure_of_the_judge(
    passed: bool, verdicts: list[str]
) -> None:
    async def denies(_: web.Request) -> web.Response:
        listed = [{"verdict": name, "seconds": 0.1} for name in verdicts]
        return web.json_response({**verdict(passed), "verdicts": listed})

    async with serving(denies, passes) as (_servers, urls):
        client = client_of(asked_in_order(urls))
        judgement = await client.judge(asking())
        await client.close()
    assert judgement.response is not None
    assert [v.verdict for v in judgement.response.verdicts] == ["passed"]
    assert (judgement.attempts, client.errors) == (2, 1)


@pytest.mark.parametrize("compressed", [False, True])
async def test_an_answer_without_an_end_is_not_held_in_memory(
    compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers_module, "ANSWER_BYTES", 1 << 20)
    sent = []

    async def endless(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Encoding": "gzip"} if compressed else {})
        await reply.prepare(request)
        piece = gzip.compress(b" " * (1 << 24)) if compressed else b" " * (1 << 16)
        for _ in range(1 << 12):
            await reply.write(piece)
            sent.append(len(piece))
        return reply

    async with serving(endless, passes) as (_servers, urls):
        client = client_of(asked_in_order(urls))
        judgement = await client.judge(asking())
        await client.close()
    assert judgement.response is not None
    assert (judgement.attempts, client.errors) == (2, 1)
    assert sum(sent) < 1 << 26, "what is not read is not sent"


async def test_submissions_wait_for_a_pool_that_has_no_pod_yet() -> None:
    async with serving(passes) as (_servers, urls):
        endpoints = Endpoints()
        client = client_of(endpoints)
        waiting = asyncio.create_task(client.judge(asking()))
        await asyncio.sleep(0)
        assert not waiting.done()
        endpoints.replace(urls)
        assert (await waiting).response is not None
        await client.close()


async def test_a_pool_that_never_answers_is_given_up_in_the_end() -> None:
    client = client_of(Endpoints(["http://127.0.0.1:9"]), patience=0.3)
    judgement = await client.judge(asking())
    await client.close()
    assert judgement.response is None
    assert judgement.attempts == 0, "nobody was there to judge it"


async def test_a_judge_may_say_after_the_deadline_that_its_queue_took_the_time_and_has_not_failed() -> None:
    answers = [503]

    async def in_the_queue_at_first(_: web.Request) -> web.Response:
        if not answers:
            return web.json_response(verdict(True))
        await asyncio.sleep(0.4)
        return web.json_response({"error": "not judged"}, status=answers.pop(), headers={"Retry-After": "0"})

    async with serving(in_the_queue_at_first) as ([server], urls):
        client = client_of(Endpoints(urls))
        judgement = await client.judge(asking(deadline_s=0.2))
        await client.close()
    assert judgement.response is not None
    assert (judgement.attempts, client.errors, len(server.asked)) == (1, 0, 2)


async def test_a_judge_that_stays_silent_after_the_deadline_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    released = asyncio.Event()

    async def hangs(_: web.Request) -> web.Response:
        await released.wait()
        return web.json_response(verdict(True))

    monkeypatch.setattr(client_module, "ERRORS", 1)
    monkeypatch.setattr(submission_module, "ANSWER_SECONDS", 0.1)
    async with serving(hangs) as (_servers, urls):
        client = client_of(Endpoints(urls))
        judgement = await client.judge(asking(deadline_s=0.2))
        released.set()
        await client.close()
    assert judgement.response is None
    assert judgement.attempts == 1


async def test_a_rotated_token_is_picked_up_and_its_file_is_not_read_for_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: list[str | None] = []

    async def notes(request: web.Request) -> web.Response:
        tokens.append(request.headers.get("Authorization"))
        return web.json_response(verdict(True))

    token = tmp_path / "token"
    token.write_text("old\n")
    async with serving(notes) as (_servers, urls):
        client = client_of(Endpoints(urls), token_file=token)
        await client.judge(asking())
        token.write_text("new\n")
        await client.judge(asking())
        monkeypatch.setattr(bearer_module, "SECONDS", 0.0)
        await client.judge(asking())
        await client.close()
    assert tokens == ["Bearer old", "Bearer old", "Bearer new"]


@pytest.mark.parametrize("status", [401, 403, 408])
async def test_a_judge_that_turns_us_away_for_now_is_asked_again_and_costs_no_attempt(status: int) -> None:
    answers = [status]

    async def rotated(_: web.Request) -> web.Response:
        return web.json_response({"error": "not now"}, status=answers.pop()) if answers else await passes(_)

    async with serving(rotated) as ([server], urls):
        client = client_of(Endpoints(urls))
        judgement = await client.judge(asking())
        await client.close()
    assert judgement.response is not None
    assert (judgement.attempts, len(server.asked)) == (1, 2)


class TurnsAway:
    """A transport to a judge that takes no token; `asked` are the times of asking."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def slots(self, judge: Endpoint) -> None: ...

    async def ask(self, judge: Endpoint, submission: Submission) -> Answer:
        self.asked.append(asyncio.get_running_loop().time())
        return Answer(turned_away=True, problem="401")


@in_virtual_time
async def test_a_token_that_stays_wrong_leaves_the_sample_unjudged_and_does_not_end_the_run() -> None:
    transport = TurnsAway()
    client = client_module.JudgeClient(Endpoints(["http://a"]), transport, patience=10)  # type: ignore[arg-type]
    judgement = await client.judge(asking())
    assert (judgement.response, judgement.attempts) == (None, 0)
    assert transport.asked == [0, 1, 3, 7], "asked again after a second, then less often"
    assert client.retries == {"failed": 0, "unavailable": 0, "turned_away": 4}


@pytest.mark.parametrize("closes", [1, 2], ids=["once", "whenever the connection is used again"])
async def test_a_kept_connection_that_the_judge_has_closed_is_no_failure_of_the_judge(closes: int) -> None:
    connections = requests = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections, requests
        connections += 1
        for number in range(2):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(
                int(head.split("content-length:")[1].split()[0]) if "content-length:" in head else 0
            )
            capacity = head.startswith("get ")
            requests += not capacity
            if number and connections <= closes:
                writer.close()  # the second request on this connection gets no answer
                return
            body = json.dumps({"slots": 1} if capacity else verdict(True)).encode()
            status = b"404 Not Found" if capacity else b"200 OK"
            writer.write(
                b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
            )
            writer.write(body)

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = client_of(Endpoints([url]))
    judgements = [await client.judge(asking()) for _ in range(2)]
    await client.close()
    server.close()
    assert [j.attempts for j in judgements] == [1, 1]
    assert all(j.response is not None for j in judgements)
    assert client.errors == 0
