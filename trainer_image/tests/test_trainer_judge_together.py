"""Judging over the hosted interpreter: its protocol, its failures, its key, and what forging a report comes to."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from curation_world import livecodebench_row
from together_api import KEY, TogetherAPI, executed, job_of, together_api

from deepcoder_contracts.judge import Kind, Scoring, TestCase
from deepcoder_contracts.stage import (
    Evaluation,
    EvaluationDataset,
    JudgeBackend,
    JudgeEndpoint,
    StageConfig,
    TogetherEndpoint,
)
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge import bearer as bearer_module
from deepcoder_trainer.judge.backend import JudgeRefused
from deepcoder_trainer.judge.client import JudgeClient
from deepcoder_trainer.judge.endpoints import Endpoints
from deepcoder_trainer.judge.submission import JudgedProblem, Submission
from deepcoder_trainer.judge.together import transport as transport_module
from deepcoder_trainer.judge.together.transport import TogetherTransport
from deepcoder_trainer.running.judgeable import refuse_unjudgeable
from deepcoder_trainer.types import Problem

DOUBLE = Problem(
    "double",
    "test",
    "double the number",
    (TestCase(input="3\n", output="6-expected\n"), TestCase(input="10\n", output="20-expected\n")),
    time_limit_s=5.0,
)
RIGHT = 'print(f\'{2*int(input())}-{"exp" + "ected"}\')'


def submission(code: str = RIGHT, problem: Problem = DOUBLE) -> Submission:
    return JudgedProblem(problem).submission(code, "g/0")


@pytest_asyncio.fixture
async def api() -> AsyncIterator[TogetherAPI]:
    async with together_api() as (api, url):
        api.url = url  # type: ignore[attr-defined]
        yield api


@pytest_asyncio.fixture
async def judge(api: TogetherAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JudgeClient]:
    monkeypatch.setattr(transport_module, "PAUSE_SECONDS", 0.01)
    (tmp_path / "key").write_text(f"{KEY}\n")
    endpoints = Endpoints([api.url], limit=3)  # type: ignore[attr-defined]
    client = JudgeClient(endpoints, TogetherTransport(tmp_path / "key"), patience=30)
    yield client
    await client.close()


async def test_a_submission_is_one_execution_in_a_session_of_its_own(api: TogetherAPI, judge: JudgeClient) -> None:
    judgements = [await judge.judge(submission()) for _ in range(2)]
    assert [set(body) for body in api.asked] == [{"code", "language"}] * 2, "no session_id: a new session each"
    assert [headers["Authorization"] for headers in api.headers] == [f"Bearer {KEY}"] * 2
    assert all(headers["Content-Type"] == "application/json" for headers in api.headers)
    workers = [j.response.worker for j in judgements if j.response]
    assert workers == ["together/ses_1", "together/ses_2"]


@pytest.mark.parametrize("kind", [Kind.STDIN, Kind.FUNCTION])
async def test_what_is_expected_never_leaves_the_trainer(api: TogetherAPI, judge: JudgeClient, kind: Kind) -> None:
    tests = (TestCase(input='"a"', output='"the-expected-1"'), TestCase(input='"b"', output='"the-expected-2"'))
    problem = replace(DOUBLE, kind=kind, fn_name="f" if kind is Kind.FUNCTION else None, tests=tests)
    await judge.judge(submission("def f(x): return x", problem))
    [body] = api.asked
    assert job_of(body)["inputs"] == ['"a"', '"b"']
    assert "the-expected" not in json.dumps(job_of(body))
    assert "the-expected" not in body["code"]


def answering(status: int = 200, body: Any = None, text: str | None = None, **headers: str) -> Callable[..., Any]:
    async def answer(_request: web.Request, _body: dict[str, Any]) -> web.Response:
        return web.Response(
            status=status,
            text=json.dumps(body) if text is None else text,
            content_type="application/json",
            headers=headers,
        )

    return answer


async def drops(request: web.Request, _body: dict[str, Any]) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def breaks_off(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
    reply = web.StreamResponse(headers={"Content-Length": "5000"})
    await reply.prepare(request)
    await reply.write(b'{"data": {"outp')
    assert request.transport is not None
    request.transport.abort()
    return reply


ERROR_OUTPUT = {"data": {"session_id": "s", "outputs": [{"type": "error", "data": "MemoryError"}]}, "errors": None}
FAILURES = {
    "500": answering(500, {"error": "internal"}),
    "520": answering(520, text="<html>a proxy's</html>"),
    "400": answering(400, {"error": {"message": "Invalid request"}}),
    "413": answering(413, {"error": "too large"}),
    "404": answering(404, {"error": "no such route"}),
    "redirect": answering(302, {}, Location="http://127.0.0.1:9/elsewhere"),
    "failed execution": answering(200, {"data": None, "errors": ["could not start a session"]}),
    "expired session": answering(200, {"data": None, "errors": [{"message": "session has expired"}]}),
    "error output": answering(200, ERROR_OUTPUT),
    "no outputs": answering(200, {"data": {"session_id": "s"}, "errors": None}),
    "nothing printed": answering(200, executed("")),
    "printed something else": answering(200, executed("6-expected\n20-expected\n")),
    "no object": answering(200, [1, 2]),
    "no JSON": answering(200, text="{"),
    "deep JSON": answering(200, text="[" * 100_000),
    "empty": answering(200, text=""),
    "lost connection": drops,
    "half an answer": breaks_off,
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_failure_of_the_place_is_tried_three_times_and_is_never_a_wrong_answer(
    api: TogetherAPI, judge: JudgeClient, failure: str
) -> None:
    api.answers = [FAILURES[failure]] * 3
    judgement = await judge.judge(submission("print('wrong')"))
    assert (judgement.response, judgement.attempts) == (None, 3)
    assert judge.errors == 3
    assert len(api.asked) == 3


@pytest.mark.parametrize("failure", ["500", "lost connection", "nothing printed"])
async def test_a_failure_that_passes_leaves_the_verdict_that_the_program_earns(
    api: TogetherAPI, judge: JudgeClient, failure: str
) -> None:
    api.answers = [FAILURES[failure]]
    judgement = await judge.judge(submission())
    assert judgement.response is not None
    assert (judgement.response.passed, judgement.attempts) == (True, 2)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_rate_limit_is_waited_out_by_everybody_and_costs_no_attempt(
    api: TogetherAPI, judge: JudgeClient, status: int
) -> None:
    api.answers = [answering(status, {"error": "slow down"}, **{"Retry-After": "1"})]
    loop = asyncio.get_running_loop()
    began = loop.time()
    first = asyncio.create_task(judge.judge(submission()))
    while not api.asked:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    second = await judge.judge(submission("print(0)"))
    assert loop.time() - began > 1.0
    assert second.attempts == 1
    judgement = await first
    assert (judgement.attempts, judge.errors) == (1, 0)
    assert judgement.response is not None


async def test_nobody_asks_more_at_once_than_the_config_allows(api: TogetherAPI, judge: JudgeClient) -> None:
    assert judge.capacity == 3
    code = "import time; time.sleep(0.1); " + RIGHT
    judgements = await asyncio.gather(*(judge.judge(submission(f"{code}  # {n}")) for n in range(9)))
    assert all(j.response is not None and j.response.passed for j in judgements)
    assert api.most_running == 3


async def test_no_answer_in_time_is_the_place_s_failure(
    api: TogetherAPI, judge: JudgeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = asyncio.Event()

    async def hangs(_request: web.Request, _body: dict[str, Any]) -> web.Response:
        await released.wait()
        return web.Response()

    api.answers = [hangs]
    given = submission()
    soon = replace(given, request=given.request.model_copy(update={"deadline_s": 0.3}))
    asking = asyncio.create_task(judge.judge(soon))
    while len(api.asked) < 2:
        await asyncio.sleep(0.01)
    released.set()
    judgement = await asking
    assert judge.errors >= 1
    assert judgement.response is None or judgement.response.passed


async def test_an_answer_without_end_is_not_kept(
    api: TogetherAPI, judge: JudgeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "BODY_BYTES", 100_000)
    api.answers = [answering(200, executed("x" * 300_000))] * 3
    assert (await judge.judge(submission())).response is None


async def test_a_key_that_is_refused_is_tried_again_as_its_file_changes(
    api: TogetherAPI, judge: JudgeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bearer_module, "SECONDS", 0.0)
    api.key = "tgp_v1_the-next-key-of-the-account"
    asking = asyncio.create_task(judge.judge(submission()))
    while not api.asked:
        await asyncio.sleep(0.01)
    (tmp_path / "key").write_text("")  # a Secret is swapped: for a moment there is nothing
    await asyncio.sleep(0.05)
    (tmp_path / "key").write_text(api.key)
    judgement = await asking
    assert judgement.response is not None
    assert (judgement.response.passed, judgement.attempts, judge.errors) == (True, 1, 0)
    assert api.headers[-1]["Authorization"] == f"Bearer {api.key}"


async def test_the_key_is_in_no_log_no_error_and_no_repr(
    api: TogetherAPI, judge: JudgeClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def quoting(status: int) -> Callable[..., Any]:
        async def answer(request: web.Request, _body: dict[str, Any]) -> web.Response:
            quoted = f"bad key {request.headers['Authorization']} ({KEY[:9]}…{KEY[-8:]})"
            return web.json_response({"error": quoted}, status=status)

        return answer

    caplog.set_level(logging.DEBUG)
    for logger in ("aiohttp", "aiohttp.client", "asyncio"):
        caplog.set_level(logging.DEBUG, logger)
    told = []
    for status in (500, 401, 429, 400):
        api.answers = [quoting(status)]
        told.append(repr(await judge.judge(submission())))
    api.answers = [answering(200, {"data": None, "errors": [f"key {KEY}"]})] * 3
    told.append(repr(await judge.judge(submission())))
    transport = judge._transport
    told += [repr(transport), str(vars(transport)), repr(vars(judge))]
    for error in (_error(lambda: TogetherTransport(tmp_path / "none")), _error(lambda: _broken(tmp_path))):
        told += [repr(error), str(error), repr(error.__context__), repr(error.__cause__)]
    everything = "\n".join([*told, caplog.text])
    assert "[redacted]" in everything
    for part in (KEY, KEY[:8], KEY[-8:], "SECRETSECRET"):
        assert part not in everything


def _broken(tmp_path: Path) -> TogetherTransport:
    (tmp_path / "two").write_text(f"{KEY}\n{KEY}\n")
    return TogetherTransport(tmp_path / "two")


def _error(make: Callable[[], object]) -> BadConfig:
    with pytest.raises(BadConfig, match=r"judge\.together\.keyFile .* cannot be used: .*: mount the Secret") as caught:
        make()
    return caught.value


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def forged(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    """A program that owns the place changes the report, mark and all."""

    def forge(printed: str) -> str:
        found = re.search(r"(deepcoder:\w+):begin\s+(\S+)\s+\1:end", printed)
        assert found is not None
        document = json.loads(zlib.decompress(base64.b64decode(found[2])))
        changed = change(document)
        if isinstance(changed, str):
            return changed.replace("MARK", found[1])
        packed = base64.b64encode(zlib.compress(json.dumps(document).encode())).decode()
        return f"{found[1]}:begin\n{packed}\n{found[1]}:end\n"

    return forge


BOMB = base64.b64encode(zlib.compress(b"\0" * (1 << 28))).decode()


@pytest.mark.parametrize(
    "change",
    [
        lambda report: report["runs"].pop(),
        lambda report: report["runs"].clear(),
        lambda report: report["runs"].append(report["runs"][0]),
        lambda report: report["runs"][0].update(cpu=-1.0),
        lambda report: report["runs"][0].update(cpu=float("nan")),
        lambda report: report["runs"][0].update(status="0"),
        lambda report: report["runs"][0].update(status=None),
        lambda report: report["runs"][0].update(stdout=["6"]),
        lambda report: report["runs"][0].update(stdout="6-expected"),
        lambda report: report["runs"][0].update(stdout=b64("x" * ((4 << 20) + 1))),
        lambda report: report.update(seconds=float("inf")),
        lambda report: report.pop("runs"),
        lambda report: "MARK:begin AAAA MARK:end MARK:begin AAAA MARK:end",
        lambda report: "MARK:begin AAAA MARK:end",
        lambda report: "MARK:begin !!!! MARK:end",
        lambda report: "MARK:end MARK:begin",
        lambda report: f"MARK:begin {BOMB} MARK:end",
        lambda report: f"MARK:begin {base64.b64encode(zlib.compress(b'[' * 100_000)).decode()} MARK:end",
    ],
)
async def test_a_report_that_does_not_hold_together_is_no_verdict(
    api: TogetherAPI, judge: JudgeClient, change: Callable[[dict[str, Any]], Any]
) -> None:
    api.forge = forged(change)
    judgement = await judge.judge(submission())
    assert (judgement.response, judgement.attempts) == (None, 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda run: run.update(status=0, report=b64('{"completed": "passed"}')),
        lambda run: run.update(status=0, stdout=b64("6\n")),
        lambda run: run.update(status=0, verdict="passed", passed=True),
        lambda run: run.update(status=0, killed="cpu", stdout=b64("6-expected")),
        lambda run: run.update(status=0, report=b64('{"failure": "memory"}'), stdout=b64("6-expected")),
    ],
)
async def test_a_forged_run_earns_nothing_without_the_right_output(
    api: TogetherAPI, judge: JudgeClient, change: Callable[[dict[str, Any]], None]
) -> None:
    api.forge = forged(lambda report: change(report["runs"][0]))
    judgement = await judge.judge(submission("print('wrong')"))
    assert judgement.response is not None
    assert judgement.response.passed is False


async def test_a_report_that_a_program_prints_of_itself_is_only_its_output(
    api: TogetherAPI, judge: JudgeClient
) -> None:
    blob = base64.b64encode(zlib.compress(json.dumps({"runs": [], "seconds": 0}).encode())).decode()
    judgement = await judge.judge(submission(f"print('deepcoder:0:begin {blob} deepcoder:0:end')"))
    assert judgement.response is not None
    assert judgement.response.passed is False


@pytest.mark.parametrize(
    "code",
    ["import os, signal; os.kill(os.getppid(), signal.SIGKILL)", "import os, signal; os.kill(os.getpid(), 9)"],
    ids=["its session", "itself"],
)
async def test_a_program_that_kills_what_judges_it_earns_nothing_and_is_not_judged(
    api: TogetherAPI, judge: JudgeClient, code: str
) -> None:
    judgement = await judge.judge(submission(f"{RIGHT}\n{code}"))
    assert (judgement.response, judgement.attempts) == (None, 3)


async def test_processes_that_a_program_leaves_in_its_session_are_ended(
    api: TogetherAPI, judge: JudgeClient, tmp_path: Path
) -> None:
    mark = tmp_path / "still-there"
    code = (
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1); "
        f'open("{mark}", "w")\'])\n{RIGHT}'
    )
    judgement = await judge.judge(submission(code, replace(DOUBLE, tests=DOUBLE.tests[:1])))
    assert judgement.response is not None
    assert judgement.response.passed is True
    await asyncio.sleep(1.3)
    assert not mark.exists()


async def test_a_program_that_removes_what_it_finds_is_judged_by_what_it_wrote(
    api: TogetherAPI, judge: JudgeClient
) -> None:
    code = "import os\nfor name in os.listdir(): os.remove(name)\nos.mkfifo('stdout')\n"
    for body, passed in ((RIGHT, True), ("print('wrong')", False)):
        judgement = await judge.judge(submission(code + body))
        assert judgement.response is not None
        assert judgement.response.passed is passed


async def test_every_test_starts_in_an_empty_folder_and_from_the_program_as_it_was_submitted(
    api: TogetherAPI, judge: JudgeClient
) -> None:
    code = f"import os\nassert 'left' not in os.listdir()\nopen('left', 'w')\nopen('source', 'w')\n{RIGHT}"
    judgement = await judge.judge(submission(code))
    assert judgement.response is not None
    assert judgement.response.passed is True, judgement.response


@pytest.mark.parametrize("byte", [0, 10, 255])
async def test_a_flood_of_any_bytes_is_a_verdict_and_no_way_around_one(
    api: TogetherAPI, judge: JudgeClient, byte: int
) -> None:
    problem = replace(DOUBLE, tests=DOUBLE.tests * 4)
    code = f"import sys; sys.stdout.buffer.write(bytes([{byte}]) * ((4 << 20) - 1))"
    judgement = await judge.judge(submission(code, problem))
    assert judgement.response is not None
    assert [v.verdict.value for v in judgement.response.verdicts] == ["wrong_answer", *["skipped"] * 7]


async def test_tests_that_take_all_the_time_together_are_told_and_the_rest_not_run(
    api: TogetherAPI, judge: JudgeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = (TestCase(input="", output="x"),) * 30
    problem = replace(DOUBLE, tests=tests, time_limit_s=0.1)
    given = submission("import time; print('x'); time.sleep(0.1)", problem)
    given = replace(given, request=given.request.model_copy(update={"stop_on_first_failure": False}))
    monkeypatch.setattr("deepcoder_trainer.judge.together.job.Job.total_seconds", 1.0)
    judgement = await judge.judge(given)
    assert judgement.response is not None
    verdicts = [v.verdict.value for v in judgement.response.verdicts]
    assert len(verdicts) == 30
    assert verdicts[0] == "passed"
    assert set(verdicts[9:]) == {"time_limit"}


@pytest.mark.parametrize("scoring", [Scoring.LIVECODEBENCH, Scoring.TACO_COMPAT])
async def test_other_scorings_are_refused_by_name_before_anything_is_run(
    api: TogetherAPI, judge: JudgeClient, scoring: Scoring
) -> None:
    problem = replace(DOUBLE, scoring=scoring)
    assert judge.refusal(DOUBLE) is None
    assert f"strict only, not {scoring}" in str(judge.refusal(problem))
    with pytest.raises(JudgeRefused, match="strict only"):
        await judge.judge(submission(problem=problem))
    assert not api.asked


@pytest.mark.parametrize("where", ["dataset", "evaluate.datasets[lcb]"])
async def test_a_stage_whose_problems_cannot_all_be_judged_is_refused_before_anything_is_sampled(
    api: TogetherAPI, judge: JudgeClient, tmp_path: Path, make_config: Callable[..., StageConfig], where: str
) -> None:
    (tmp_path / "lcb.jsonl").write_text(json.dumps(livecodebench_row(question_id="p7")) + "\n")
    together = TogetherEndpoint(key_file=str(tmp_path / "key"))
    config = make_config(judge=JudgeEndpoint(backend=JudgeBackend.TOGETHER, together=together))
    training = [replace(DOUBLE), replace(DOUBLE, id="p7", scoring=Scoring.LIVECODEBENCH)]
    if where != "dataset":
        evaluate = Evaluation(datasets=[EvaluationDataset(name="lcb", uri=str(tmp_path / "lcb.jsonl"))])
        config = config.model_copy(update={"stage": config.stage.model_copy(update={"evaluate": evaluate})})
        training = training[:1]
    with pytest.raises(JudgeRefused, match=rf"^{re.escape(where)}: 1 problems cannot be judged, .* p7: .*strict only"):
        refuse_unjudgeable(config, judge, training, Sources())
    own = config.model_copy(update={"judge": JudgeEndpoint()})
    refuse_unjudgeable(own, judge, training, Sources())


def test_outputs_that_would_not_come_back_are_refused(tmp_path: Path) -> None:
    from deepcoder_trainer.judge.together.job import refusal

    assert refusal(replace(DOUBLE, tests=(TestCase(input="", output="x" * (3 << 20)),))) is not None
    assert refusal(replace(DOUBLE, tests=(TestCase(input="x" * (9 << 20), output="x"),))) is None
    assert refusal(replace(DOUBLE, tests=(TestCase(input="", output="ß" * (1 << 20)),) * 3)) is not None


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("https://api.together.ai/v1", {"https_proxy": "http://proxy:3128"}, "http://proxy:3128"),
        ("https://api.together.ai/v1", {"https_proxy": "http://proxy:3128", "no_proxy": "together.ai"}, None),
        ("https://api.together.ai/v1", {}, None),
    ],
)
def test_a_cluster_s_proxy_is_used(
    url: str, environment: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert transport_module._proxy(url) == proxy
