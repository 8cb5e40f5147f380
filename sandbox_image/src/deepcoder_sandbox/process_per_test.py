"""Judges one submission with one process per test (strict, taco-compat): the loop over its tests.

`deepcoder_sandbox.lcb_session` has one process per submission. Expected outputs never leave this side. Raises
ZygoteFailed, KilledFromOutside or DeadlinePassed, which are the judge's failures and pass through to the caller.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import assert_never

from deepcoder_contracts import strict
from deepcoder_contracts.judge import JudgeRequest, Kind, Scoring, TestCase, TestVerdict, Verdict
from deepcoder_sandbox import limits, outcome
from deepcoder_sandbox.compare import taco, values
from deepcoder_sandbox.execution import Execution, Program, execute
from deepcoder_sandbox.memory_file import MemoryFile
from deepcoder_sandbox.submission import DeadlinePassed, Submission
from deepcoder_sandbox.worker.packets import RunLimits
from deepcoder_sandbox.zygote_process import ZygoteProcess


def judge_each_test(
    zygote_for_run: Callable[[], ZygoteProcess], submission: Submission, deadline: float
) -> list[TestVerdict]:
    """Return one verdict per test, each from a process of its own; `deadline` is monotonic.

    `zygote_for_run` is called before each test, because a zygote that could not be cleaned is not used again.

    Raises ZygoteFailed, KilledFromOutside or DeadlinePassed: the judge's failures.
    """
    verdicts: list[TestVerdict] = []
    cpu_s, allowed_s = 0.0, limits.submission_limit_s(submission.request.time_limit_s, len(submission.tests))
    request = submission.request
    source, name = request.code.encode(), (request.fn_name or "").encode()
    with MemoryFile("code", source + name, sealable=True) as code:
        preamble = request.scoring is Scoring.TACO_COMPAT or request.kind is Kind.FUNCTION
        program = Program(code, len(source), request.kind, len(name), preamble=preamble)
        for test in submission.tests:
            verdict, took_s = _run_test(zygote_for_run(), submission, program, test, deadline, allowed_s, cpu_s)
            allowed_s -= max(0.0, took_s)
            cpu_s += verdict.seconds
            verdicts.append(verdict)
            if verdict.verdict is Verdict.PASSED:
                continue
            if request.stop_on_first_failure:
                break
            if verdict.verdict is Verdict.COMPILE_ERROR:  # the same for every test
                return verdicts + [verdict] * (len(submission.tests) - len(verdicts))
    return outcome.fill_skipped(verdicts, len(submission.tests))


def _run_test(
    zygote: ZygoteProcess,
    submission: Submission,
    program: Program,
    test: TestCase,
    deadline: float,
    allowed_s: float,
    cpu_s: float,
) -> tuple[TestVerdict, float]:
    """Return a test's verdict and the seconds it took, without those in which others kept it from running.

    `allowed_s` is what is left of the seconds that all tests may take together; `cpu_s` is the earlier ones' CPU time.
    """
    request = submission.request
    if time.monotonic() > deadline:
        raise DeadlinePassed("the deadline passed before every test was run")
    if allowed_s <= 0:
        limit_s = limits.submission_limit_s(request.time_limit_s, len(submission.tests))
        why = f"earlier tests used up the {limit_s:g} s of all tests, {cpu_s:.1f} s of that as CPU time"
        return outcome.make(Verdict.TIME_LIMIT, 0.0, why), 0.0
    bounds = limits.of_one_test(request.time_limit_s, request.memory_limit_mb, submission.output_bytes)
    if allowed_s < bounds.wall_limit_s:
        bounds = bounds._replace(wall_limit_s=allowed_s)
    word = secrets.token_hex(8) if request.kind is Kind.SCRIPT else ""
    given = f"{word}\n{test.input}" if word else test.input
    answer_bytes = limits.VALUE_BYTES if request.kind is Kind.FUNCTION else limits.CLAIM_BYTES
    run = execute(zygote, program, given.encode(), bounds, deadline, answer_bytes)
    return _verdict(submission, test, bounds, run, word), run.ended.wall_s - run.ended.starved_s


def _verdict(submission: Submission, test: TestCase, bounds: RunLimits, run: Execution, word: str) -> TestVerdict:
    request = submission.request
    cpu_s = run.ended.cpu_s
    compat = request.scoring is Scoring.TACO_COMPAT
    crash_counts = not compat or request.kind is Kind.FUNCTION
    failed = outcome.failed_run(run.ended, bounds, run.claim, run.written_bytes, run.stderr, crash_counts)
    if failed is not None:
        return failed
    if request.kind is Kind.SCRIPT:
        if run.claim.completed == word:
            return outcome.make(Verdict.PASSED, cpu_s)
        return outcome.make(Verdict.RUNTIME_ERROR, cpu_s, "the program left before the test had run")
    if request.kind is Kind.FUNCTION:
        difference = _compare_value(run.answer, test, request)
    else:
        difference = _compare_output(run.stdout, test.output, request)
    return outcome.passed(cpu_s) if difference is None else outcome.make(Verdict.WRONG_ANSWER, cpu_s, difference)


def _compare_output(got: bytes, expected: str, request: JudgeRequest) -> str | None:
    match request.scoring:
        case Scoring.STRICT:
            return strict.compare_text(got, expected, request.float_tolerance)
        case Scoring.TACO_COMPAT:
            return taco.compare_output(got, expected)
        case Scoring.LIVECODEBENCH:
            raise AssertionError("it has one process per submission: deepcoder_sandbox.lcb_session")
        case other:
            assert_never(other)


def _compare_value(encoded: bytes, test: TestCase, request: JudgeRequest) -> str | None:
    if not encoded:
        return "the program left without returning"
    compat = request.scoring is Scoring.TACO_COMPAT
    try:
        got = values.decode(encoded, test.output, json_only=not compat)
    except ValueError as error:
        return str(error)
    expected = strict.parse_json(test.output)
    try:
        if compat:
            equal = taco.compare_value(got, expected)
        else:
            equal = strict.equal_as_json(got, expected, request.float_tolerance)
    except (ArithmeticError, RecursionError) as error:
        return f"returned what cannot be compared: {type(error).__name__}"
    return None if equal else f"returned {strict.excerpt(encoded)}"
