"""Judging over the hosted interpreter: what forging a report comes to, and what programs may do to their place."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from hosted_judge import DOUBLE, RIGHT, submission
from together_api import TogetherAPI, job_of

from deepcoder_contracts.judge import TestCase
from deepcoder_trainer.judge.client import JudgeClient


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


@pytest.fixture(scope="module")
def honest() -> dict[str, str]:
    """What one run of the program printed, by its nonce; forgers begin with that under a nonce of theirs."""
    return {}


@cache
def bomb() -> str:
    """No constant: compressing it takes longer than all else that whoever collects these tests does with this file."""
    return base64.b64encode(zlib.compress(b"\0" * (1 << 28))).decode()


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
        lambda report: f"MARK:begin {bomb()} MARK:end",
        lambda report: f"MARK:begin {base64.b64encode(zlib.compress(b'[' * 100_000)).decode()} MARK:end",
    ],
)
async def test_a_report_that_does_not_hold_together_is_no_verdict(
    hosted_api: TogetherAPI,
    hosted_judge: JudgeClient,
    change: Callable[[dict[str, Any]], Any],
    honest: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    really = hosted_api._run

    async def run(code: str) -> str:
        nonce = job_of({"code": code})["nonce"]
        if not honest:
            honest[nonce] = await really(code)
        [(first, printed)] = honest.items()
        return printed.replace(first, nonce)

    monkeypatch.setattr(hosted_api, "_run", run)
    hosted_api.forge = forged(change)
    judgement = await hosted_judge.judge(submission())
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
    hosted_api: TogetherAPI, hosted_judge: JudgeClient, change: Callable[[dict[str, Any]], None]
) -> None:
    hosted_api.forge = forged(lambda report: change(report["runs"][0]))
    judgement = await hosted_judge.judge(submission("print('wrong')"))
    assert judgement.response is not None
    assert judgement.response.passed is False


async def test_a_report_that_a_program_prints_of_itself_is_only_its_output(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient
) -> None:
    blob = base64.b64encode(zlib.compress(json.dumps({"runs": [], "seconds": 0}).encode())).decode()
    judgement = await hosted_judge.judge(submission(f"print('deepcoder:0:begin {blob} deepcoder:0:end')"))
    assert judgement.response is not None
    assert judgement.response.passed is False


@pytest.mark.parametrize(
    "code",
    ["import os, signal; os.kill(os.getppid(), signal.SIGKILL)", "import os, signal; os.kill(os.getpid(), 9)"],
    ids=["its session", "itself"],
)
async def test_a_program_that_kills_what_judges_it_earns_nothing_and_is_not_judged(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient, code: str
) -> None:
    judgement = await hosted_judge.judge(submission(f"{RIGHT}\n{code}"))
    assert (judgement.response, judgement.attempts) == (None, 3)


async def test_processes_that_a_program_leaves_in_its_session_are_ended(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient, tmp_path: Path
) -> None:
    left = tmp_path / "left"
    code = (
        "import subprocess, sys\nleft = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open('{left}', 'w').write(str(left.pid))\n{RIGHT}"
    )
    judgement = await hosted_judge.judge(submission(code, replace(DOUBLE, tests=DOUBLE.tests[:1])))
    assert judgement.response is not None
    assert judgement.response.passed is True
    with suppress(psutil.NoSuchProcess):
        ended = psutil.Process(int(left.read_text()))
        async with asyncio.timeout(60):
            while ended.status() != psutil.STATUS_ZOMBIE:  # whoever inherits it need not reap it
                await asyncio.sleep(0.05)


async def test_a_program_that_removes_what_it_finds_is_judged_by_what_it_wrote(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient
) -> None:
    code = "import os\nfor name in os.listdir(): os.remove(name)\nos.mkfifo('stdout')\n"
    for body, passed in ((RIGHT, True), ("print('wrong')", False)):
        judgement = await hosted_judge.judge(submission(code + body))
        assert judgement.response is not None
        assert judgement.response.passed is passed


async def test_every_test_starts_in_an_empty_folder_and_from_the_program_as_it_was_submitted(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient
) -> None:
    code = f"import os\nassert 'left' not in os.listdir()\nopen('left', 'w')\nopen('source', 'w')\n{RIGHT}"
    judgement = await hosted_judge.judge(submission(code))
    assert judgement.response is not None
    assert judgement.response.passed is True, judgement.response


@pytest.mark.parametrize("byte", [0, 10, 255])
async def test_a_flood_of_any_bytes_is_a_verdict_and_no_way_around_one(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient, byte: int
) -> None:
    problem = replace(DOUBLE, tests=DOUBLE.tests * 4)
    code = f"import sys; sys.stdout.buffer.write(bytes([{byte}]) * ((4 << 20) - 1))"
    judgement = await hosted_judge.judge(submission(code, problem))
    assert judgement.response is not None
    assert [v.verdict.value for v in judgement.response.verdicts] == ["wrong_answer", *["skipped"] * 7]


async def test_tests_that_take_all_the_time_together_are_told_and_the_rest_not_run(
    hosted_api: TogetherAPI, hosted_judge: JudgeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = (TestCase(input="", output="x"),) * 30
    problem = replace(DOUBLE, tests=tests, time_limit_s=1.0)
    given = submission("import time; print('x'); time.sleep(0.2)", problem)
    given = replace(given, request=given.request.model_copy(update={"stop_on_first_failure": False}))
    monkeypatch.setattr("deepcoder_trainer.judge.together.job.Job.total_seconds", 2.0)
    judgement = await hosted_judge.judge(given)
    assert judgement.response is not None
    verdicts = [v.verdict.value for v in judgement.response.verdicts]
    assert len(verdicts) == 30
    assert verdicts[0] == "passed"
    assert set(verdicts[9:]) == {"time_limit"}
