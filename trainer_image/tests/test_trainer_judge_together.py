"""Judging over the hosted interpreter: its protocol, its failures, its key, and what it does not judge."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from curation_world import livecodebench_row
from hosted_judge import DOUBLE, RIGHT, submission
from together_api import KEY, TogetherAPI, executed, job_of

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
from deepcoder_trainer.judge.together import transport as transport_module
from deepcoder_trainer.judge.together.transport import TogetherTransport
from deepcoder_trainer.running.judgeable import refuse_unjudgeable


async def test_a_submission_is_one_execution_in_a_session_of_its_own(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient
) -> None:
    judgements = [await hosted_judge.judge(submission()) for _ in range(2)]
    assert [set(body) for body in hosted_api.asked] == [{"code", "language"}] * 2, "no session_id: a new session each"
    assert [headers["Authorization"] for headers in hosted_api.headers] == [f"Bearer {KEY}"] * 2
    assert all(headers["Content-Type"] == "application/json" for headers in hosted_api.headers)
    workers = [j.response.worker for j in judgements if j.response]
    assert workers == ["together/ses_1", "together/ses_2"]


@pytest.mark.parametrize("kind", [Kind.STDIN, Kind.FUNCTION])
async def test_what_is_expected_never_leaves_the_trainer(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient, kind: Kind
) -> None:
    tests = (TestCase(input='"a"', output='"the-expected-1"'), TestCase(input='"b"', output='"the-expected-2"'))
    problem = replace(DOUBLE, kind=kind, fn_name="f" if kind is Kind.FUNCTION else None, tests=tests)
    await hosted_judge.judge(submission("def f(x): return x", problem))
    [body] = hosted_api.asked
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
    hosted_api: TogetherAPI, hosted_judge: JudgeClient, failure: str
) -> None:
    hosted_api.answers = [FAILURES[failure]] * 3
    judgement = await hosted_judge.judge(submission("print('wrong')"))
    assert (judgement.response, judgement.attempts) == (None, 3)
    assert hosted_judge.errors == 3
    assert len(hosted_api.asked) == 3


@pytest.mark.parametrize("failure", ["500", "lost connection", "nothing printed"])
async def test_a_failure_that_passes_leaves_the_verdict_that_the_program_earns(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient, failure: str
) -> None:
    hosted_api.answers = [FAILURES[failure]]
    judgement = await hosted_judge.judge(submission())
    assert judgement.response is not None
    assert (judgement.response.passed, judgement.attempts) == (True, 2)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_rate_limit_is_waited_out_by_everybody_and_costs_no_attempt(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient, status: int
) -> None:
    hosted_api.answers = [answering(status, {"error": "slow down"}, **{"Retry-After": "1"})]
    loop = asyncio.get_running_loop()
    began = loop.time()
    first = asyncio.create_task(hosted_judge.judge(submission()))
    while not hosted_api.asked:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    second = await hosted_judge.judge(submission("print(0)"))
    assert loop.time() - began > 1.0
    assert second.attempts == 1
    judgement = await first
    assert (judgement.attempts, hosted_judge.errors) == (1, 0)
    assert judgement.response is not None


async def test_nobody_asks_more_at_once_than_the_config_allows(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient
) -> None:
    assert hosted_judge.capacity == 3
    code = "import time; time.sleep(0.1); " + RIGHT
    judgements = await asyncio.gather(*(hosted_judge.judge(submission(f"{code}  # {n}")) for n in range(9)))
    assert all(j.response is not None and j.response.passed for j in judgements)
    assert hosted_api.most_running == 3


async def test_no_answer_in_time_is_the_place_s_failure(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = asyncio.Event()

    async def hangs(_request: web.Request, _body: dict[str, Any]) -> web.Response:
        await released.wait()
        return web.Response()

    hosted_api.answers = [hangs]
    given = submission()
    soon = replace(given, request=given.request.model_copy(update={"deadline_s": 0.3}))
    asking = asyncio.create_task(hosted_judge.judge(soon))
    while len(hosted_api.asked) < 2:
        await asyncio.sleep(0.01)
    released.set()
    judgement = await asking
    assert hosted_judge.errors >= 1
    assert judgement.response is None or judgement.response.passed


async def test_an_answer_without_end_is_not_kept(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "BODY_BYTES", 100_000)
    hosted_api.answers = [answering(200, executed("x" * 300_000))] * 3
    assert (await hosted_judge.judge(submission())).response is None


async def test_a_key_that_is_refused_is_tried_again_as_its_file_changes(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bearer_module, "SECONDS", 0.0)
    hosted_api.key = "tgp_v1_the-next-key-of-the-account"
    asking = asyncio.create_task(hosted_judge.judge(submission()))
    while not hosted_api.asked:
        await asyncio.sleep(0.01)
    (tmp_path / "key").write_text("")  # a Secret is swapped: for a moment there is nothing
    await asyncio.sleep(0.05)
    (tmp_path / "key").write_text(hosted_api.key)
    judgement = await asking
    assert judgement.response is not None
    assert (judgement.response.passed, judgement.attempts, hosted_judge.errors) == (True, 1, 0)
    assert hosted_api.headers[-1]["Authorization"] == f"Bearer {hosted_api.key}"


async def test_the_key_is_in_no_log_no_error_and_no_repr(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
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
        hosted_api.answers = [quoting(status)]
        told.append(repr(await hosted_judge.judge(submission())))
    hosted_api.answers = [answering(200, {"data": None, "errors": [f"key {KEY}"]})] * 3
    told.append(repr(await hosted_judge.judge(submission())))
    transport = hosted_judge._transport
    told += [repr(transport), str(vars(transport)), repr(vars(hosted_judge))]
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


@pytest.mark.parametrize("scoring", [Scoring.LIVECODEBENCH, Scoring.TACO_COMPAT])
async def test_other_scorings_are_refused_by_name_before_anything_is_run(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient, scoring: Scoring
) -> None:
    problem = replace(DOUBLE, scoring=scoring)
    assert hosted_judge.refusal(DOUBLE) is None
    assert f"strict only, not {scoring}" in str(hosted_judge.refusal(problem))
    with pytest.raises(JudgeRefused, match="strict only"):
        await hosted_judge.judge(submission(problem=problem))
    assert not hosted_api.asked


@pytest.mark.parametrize("where", ["dataset", "evaluate.datasets[lcb]"])
async def test_a_stage_whose_problems_cannot_all_be_judged_is_refused_before_anything_is_sampled(
    hosted_api: TogetherAPI,
    hosted_judge: JudgeClient,
    tmp_path: Path,
    make_config: Callable[..., StageConfig],
    where: str,
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
        refuse_unjudgeable(config, hosted_judge, training, Sources())
    own = config.model_copy(update={"judge": JudgeEndpoint()})
    refuse_unjudgeable(own, hosted_judge, training, Sources())


@pytest.mark.parametrize("text", [None, "not JSON"])
async def test_an_evaluation_set_that_cannot_be_read_is_refused_by_its_own_field(
    hosted_judge: JudgeClient, tmp_path: Path, make_config: Callable[..., StageConfig], text: str | None
) -> None:
    path = tmp_path / "held.jsonl"
    if text is not None:
        path.write_text(text)
    together = TogetherEndpoint(key_file=str(tmp_path / "key"))
    config = make_config(judge=JudgeEndpoint(backend=JudgeBackend.TOGETHER, together=together))
    evaluate = Evaluation(datasets=[EvaluationDataset(name="held", uri=str(path))])
    config = config.model_copy(update={"stage": config.stage.model_copy(update={"evaluate": evaluate})})
    with pytest.raises(BadConfig, match=r"held") as refused:
        refuse_unjudgeable(config, hosted_judge, (), Sources())
    assert refused.value.field == "stage.evaluate.datasets.0.uri"


def test_outputs_that_would_not_come_back_are_refused(tmp_path: Path) -> None:
    from deepcoder_trainer.judge.together.job import refusal

    assert refusal(replace(DOUBLE, tests=(TestCase(input="", output="x" * (3 << 20)),))) is not None
    assert refusal(replace(DOUBLE, tests=(TestCase(input="x" * (9 << 20), output="x"),))) is None
    assert refusal(replace(DOUBLE, tests=(TestCase(input="", output="ß" * (1 << 20)),) * 3)) is not None


@pytest.mark.parametrize("changed", ["strict.py", "judgeable.py", "report.py", "harness.py"])
async def test_verdicts_are_filed_under_the_code_of_ours_that_grades(
    hosted_api: TogetherAPI,
    hosted_judge: JudgeClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: str,
) -> None:
    before = await hosted_judge.version()
    assert re.fullmatch(rf"together {re.escape(hosted_api.url)} sha256:[0-9a-f]{{16}}", before)
    assert await hosted_judge.version() == before
    files = transport_module.grading_files()
    [original] = [path for path in files if path.name == changed]
    (tmp_path / changed).write_bytes(original.read_bytes() + b"# as of a later release\n")
    later = tuple(tmp_path / changed if path == original else path for path in files)
    monkeypatch.setattr(transport_module, "grading_files", lambda: later)
    assert await hosted_judge.version() != before


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
