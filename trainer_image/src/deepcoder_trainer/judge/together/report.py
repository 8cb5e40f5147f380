"""Reads the hosted interpreter's output and compares it here: from a report to a response. Pure.

A program may forge everything in a report, so nothing in it is trusted. An output earns only what it equals, and a
claim of failure counts against the program. An inconsistent report (none, two, missing runs, invalid numbers) is
`BadReport`: the judge failed. The work is bounded by sizes that are checked before anything is unpacked.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import signal
import zlib
from typing import Annotated, Literal

from pydantic import AfterValidator, Base64Bytes, BaseModel, ConfigDict, Field, ValidationError

from deepcoder_contracts import strict
from deepcoder_contracts.judge import JudgeResponse, Kind, TestCase, TestVerdict, Verdict
from deepcoder_trainer.judge.together.job import OUTPUT_BYTES, REPORT_BYTES, Job

UNPACKED_BYTES = (REPORT_BYTES + 2 * OUTPUT_BYTES) * 4 // 3 + (1 << 20)
"""Longest base64 report that is unpacked; it includes the run that exceeded the limit."""

_STARTING_CPU_SECONDS = 0.1
"""CPU time of an interpreter's start, which is measured there with the program but is not the program's."""

_DETAIL_CHARS = 1000
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _bounded(output: bytes) -> bytes:
    if len(output) > OUTPUT_BYTES:
        raise ValueError(f"more than {OUTPUT_BYTES} bytes")
    return output


_Output = Annotated[Base64Bytes, AfterValidator(_bounded)]


class BadReport(Exception):
    """There is no report, or it is unusable."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _Run(_Message):
    """One test, as the harness reported it."""

    killed: Literal["wall", "cpu", "total", "starved"] | None
    status: int | None = None
    signal: int | None = None
    cpu: _Seconds = 0.0
    stdout: _Output = b""
    stderr: _Output = b""
    report: _Output = b""
    written: int = 0
    """Number of streams (stdout, stderr) that reached their limit."""


class _Report(_Message):
    runs: list[_Run]
    seconds: _Seconds


class _Claim(_Message):
    """The claim of the program's process about itself."""

    failure: str | None = None
    detail: str | None = None
    completed: str | None = None
    value: str | None = None
    opaque: str | None = None


def judge(job: Job, printed: str, worker: str) -> JudgeResponse:
    """Return the response for a job's printed report. Raises BadReport."""
    report = _unpack(job, printed)
    verdicts = [_verdict(job, test, run) for test, run in zip(job.tests, report.runs, strict=False)]
    failed = next((i for i, v in enumerate(verdicts) if v.verdict is not Verdict.PASSED), None)
    if failed is not None and job.request.stop_on_first_failure:
        verdicts = verdicts[: failed + 1] + [_skipped()] * (len(job.tests) - failed - 1)
    if report.runs and report.runs[-1].killed == "total":
        verdicts += [verdicts[-1]] * (len(job.tests) - len(verdicts))
    if len(verdicts) != len(job.tests) or len(report.runs) > len(job.tests):
        raise BadReport(f"the report has {len(report.runs)} runs for {len(job.tests)} tests")
    return JudgeResponse(
        id=job.request.id,
        passed=failed is None,
        verdicts=verdicts,
        seconds=report.seconds,
        worker=worker,
    )


def _unpack(job: Job, printed: str) -> _Report:
    mark = re.escape(f"deepcoder:{job.nonce}")
    found = re.findall(rf"{mark}:begin(.*?){mark}:end", printed, re.DOTALL)
    if len(found) != 1:
        raise BadReport("there is no report in the output" if not found else "there is more than one report")
    unpacker = zlib.decompressobj()
    try:
        packed = base64.b64decode("".join(found[0].split()), validate=True)
        text = unpacker.decompress(packed, UNPACKED_BYTES)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise BadReport(f"the report is damaged: {error}") from None
    if not unpacker.eof:
        raise BadReport("the report is too long, or ends before its end")
    try:
        return _Report.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadReport(f"the report is invalid at {where or 'its beginning'}: {first['msg']}") from None


def _verdict(job: Job, test: TestCase, run: _Run) -> TestVerdict:
    limit = job.request.time_limit_s
    if run.killed == "total":
        return _made(Verdict.TIME_LIMIT, run, "earlier tests used up the time of all tests")
    if run.killed == "cpu" or run.signal == signal.SIGXCPU or run.cpu > limit + _STARTING_CPU_SECONDS:
        return _made(Verdict.TIME_LIMIT, run, f"used more than {limit:g} s of CPU time")
    if run.killed == "wall":
        return _made(Verdict.TIME_LIMIT, run, "still running after its wall-clock limit, mostly waiting")
    if run.killed == "starved":
        raise BadReport("other processes kept a program from the CPUs for longer than its own limit")
    if run.signal == signal.SIGKILL:
        raise BadReport("a program was killed, perhaps for lack of memory: the cause cannot be determined")
    if run.signal == signal.SIGXFSZ or run.written:
        return _made(Verdict.OUTPUT_LIMIT, run, f"wrote more than {OUTPUT_BYTES} bytes")
    claim = _claim(run.report)
    if claim.failure is not None:
        return _made(_CLAIMED.get(claim.failure, Verdict.RUNTIME_ERROR), run, claim.detail)
    if run.signal is not None:
        return _made(Verdict.RUNTIME_ERROR, run, f"died of signal {run.signal}")
    if run.status is None:
        raise BadReport("a run has neither an exit status nor a signal")
    if run.status != 0:
        last = run.stderr.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1][:300]
        return _made(Verdict.RUNTIME_ERROR, run, last or f"exit status {run.status}")
    return _compared(job, test, run, claim)


_CLAIMED = {
    "compile": Verdict.COMPILE_ERROR,
    "memory": Verdict.MEMORY_LIMIT,
    "output": Verdict.OUTPUT_LIMIT,
}


def _compared(job: Job, test: TestCase, run: _Run, claim: _Claim) -> TestVerdict:
    if job.request.kind is Kind.SCRIPT:
        if claim.completed == job.nonce:
            return _made(Verdict.PASSED, run)
        return _made(Verdict.RUNTIME_ERROR, run, "the program left before the test had run")
    if job.request.kind is Kind.FUNCTION:
        difference = _value_difference(claim, test, job.request.float_tolerance)
    else:
        difference = strict.compare_text(run.stdout, test.output, job.request.float_tolerance)
    return _made(Verdict.PASSED if difference is None else Verdict.WRONG_ANSWER, run, difference)


def _value_difference(claim: _Claim, test: TestCase, tolerance: float | None) -> str | None:
    if claim.opaque is not None:
        return f"returned a value of type {claim.opaque[:100]}, which is none of JSON's"
    if claim.value is None:
        return "the program left without returning"
    try:
        equal = strict.equal_as_json(strict.parse_json(claim.value), strict.parse_json(test.output), tolerance)
    except (ValueError, ArithmeticError, RecursionError) as error:
        return f"returned what cannot be compared: {type(error).__name__}"
    return None if equal else f"returned {strict.excerpt(claim.value.encode('utf-8', 'replace'))}"


def _claim(text: bytes) -> _Claim:
    """Parse the claim of a program's process; invalid text is an empty claim."""
    try:
        return _Claim.model_validate(json.loads(text)) if text else _Claim()
    except (ValueError, RecursionError):
        return _Claim()


def _made(verdict: Verdict, run: _Run, detail: str | None = None) -> TestVerdict:
    shown = None if not detail else detail.encode("ascii", "backslashreplace").decode()[:_DETAIL_CHARS]
    return TestVerdict(verdict=verdict, seconds=run.cpu, detail=shown)


def _skipped() -> TestVerdict:
    return TestVerdict(verdict=Verdict.SKIPPED, seconds=0.0)
