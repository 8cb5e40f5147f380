"""scoring livecodebench: one process a submission, asked for one test after another, and the harness's own result.

The harness's list and error code are rebuilt from what happened, its accidents included: a process that dies, or the
global limit, is [-2] with code -5; an exception outside a test is [-4] alone. The program's half is
`deepcoder_sandbox.worker.livecodebench`, the comparison `deepcoder_sandbox.compare.livecodebench`.

Time is kept here, not by the program: at a test's limit its alarm is rung, as the harness does, and what does not hear
it is ended a second of CPU time later. Fails with ZygoteFailed, KilledFromOutside or DeadlinePassed: the judge's
failures.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from deepcoder_contracts import strict
from deepcoder_contracts.judge import Kind, LiveCodeBenchResult, TestVerdict, Verdict
from deepcoder_sandbox import limits, outcome
from deepcoder_sandbox.compare import livecodebench, values
from deepcoder_sandbox.compare.livecodebench import Collapsed
from deepcoder_sandbox.execution import wait_deadline
from deepcoder_sandbox.limits import ALARM_GRACE_S, WALL_PER_CPU
from deepcoder_sandbox.memory_file import MemoryFile
from deepcoder_sandbox.outcome import Claim
from deepcoder_sandbox.step_clock import StepClock, receive, receive_with_pid
from deepcoder_sandbox.submission import DeadlinePassed, Submission
from deepcoder_sandbox.worker.packets import (
    IN_FILE,
    INLINE,
    INLINE_BYTES,
    PREPARED,
    SESSION_BYTES,
    Job,
    RunEnded,
    RunLimits,
)
from deepcoder_sandbox.zygote_process import ZygoteProcess

_SHORTEST_SLEEP_S, _LONGEST_SLEEP_S = 0.01, 1.0
_JUDGES_OWN = (errno.ENOMEM, errno.ENOSPC)
"""What writing to a program's file may fail of without the program's doing."""
_DIED = LiveCodeBenchResult(results=[-2], error_code=-5)
_COLLAPSED = LiveCodeBenchResult(results=[-4], error_code=-4)


@dataclass(frozen=True)
class Graded:
    """Verdicts, and what the harness would have returned."""

    verdicts: list[TestVerdict]
    lcb: LiveCodeBenchResult


def judge_in_one_process(zygote: ZygoteProcess, submission: Submission, deadline: float) -> Graded:
    """Grade a submission. Raises ZygoteFailed, KilledFromOutside or DeadlinePassed: the judge's failures."""
    request = submission.request
    source, name = request.code.encode(), (request.fn_name or "").encode()
    longest = max(len(test.input.encode()) for test in submission.tests)
    room = longest if longest > INLINE_BYTES else 0
    with (
        MemoryFile("given", source + name, capacity=len(source + name) + room) as given,
        MemoryFile("output") as output,
        _control() as (ours, theirs),
    ):
        bounds = limits.of_all_tests(
            request.time_limit_s, len(submission.tests), request.memory_limit_mb, submission.output_bytes
        )
        files = [_null(), _null(), _null(), theirs.fileno(), given.fileno(), output.fileno()]
        session = _Session(zygote, submission, bounds, ours, given, len(source + name), output, deadline)
        session.ask(submission.tests[0].input)
        zygote.start_run(Job(request.kind, bounds, len(source), len(name)), files)
        theirs.close()
        try:
            return session.grade()
        finally:
            session.end()


@contextmanager
def _control() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        yield ours, theirs


@functools.cache
def _null() -> int:
    """A descriptor of /dev/null, this process's for good."""
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


class _Died(Exception):
    """The process ended, or is to be ended for what only a program can make it do."""

    def __init__(self, ended: RunEnded | None, why: str = "the program answered in the harness's place") -> None:
        self.ended = ended
        self.why = why


class _Overdue(Exception):
    """A step went on past its limits, deaf to its alarm."""

    def __init__(self, cpu_s: float, reason: str) -> None:
        self.cpu_s = cpu_s
        self.reason = reason


@dataclass
class _Session:
    zygote: ZygoteProcess
    submission: Submission
    bounds: RunLimits
    control: socket.socket
    given: MemoryFile
    given_at: int
    """Where in that an input begins: behind the program."""
    output: MemoryFile
    deadline: float
    verdicts: list[TestVerdict] = field(default_factory=list)
    asked: float = field(default_factory=time.monotonic)
    running: bool = True
    clock: StepClock = field(init=False)

    def __post_init__(self) -> None:
        self._poller = select.poll()
        self._poller.register(self.control, select.POLLIN)
        self._poller.register(self.zygote.fileno(), select.POLLIN)

    def grade(self) -> Graded:
        """Prepare, then test by test until one fails. The first has been asked for."""
        try:
            self._meet()
            prepared = self._receive()
            if prepared != PREPARED:
                return self._collapse(_exception_verdict(_failure(prepared), 0.0))
            if self.submission.request.kind is Kind.FUNCTION:
                _check_all_json(self.submission)
            for index, test in enumerate(self.submission.tests):
                self.clock.start()
                if index:
                    self.ask(test.input)
                finished = self._finish_test(test.output)
                if finished is not None:
                    return finished
        except _Died as died:
            return self._done(self._death_verdict(died), _DIED)
        except _Overdue as overdue:
            return self._done(outcome.make(Verdict.TIME_LIMIT, overdue.cpu_s, overdue.reason), _DIED)
        except Collapsed as collapsed:
            return self._collapse(outcome.make(Verdict.RUNTIME_ERROR, 0.0, str(collapsed)))
        return Graded(self.verdicts, LiveCodeBenchResult(results=[True] * len(self.verdicts)))

    def ask(self, given: str) -> None:
        """Ask for a test."""
        encoded = given.encode()
        if len(encoded) <= INLINE_BYTES:
            packet = INLINE + encoded
        else:
            self._put(encoded)
            packet = b"%b%d" % (IN_FILE, len(encoded))
        try:
            self.control.send(packet, socket.MSG_DONTWAIT)
        except BlockingIOError:
            raise _Died(None) from None  # it leaves the judge's packets unread, and goes on answering
        except OSError:
            raise _Died(self._wait_for_end()) from None

    def _put(self, given: bytes) -> None:
        try:
            self.given.overwrite(given, self.given_at)
        except OSError as error:
            if error.errno in _JUDGES_OWN:
                raise
            raise _Died(None, "the program tampered with its input") from error

    def _finish_test(self, expected: str) -> Graded | None:
        packet = self._receive()
        seconds = self.clock.cpu_s()
        if packet[:1] == INLINE:
            text = packet[1:]
        elif packet[:1] == IN_FILE:
            text = self.output.read(self.bounds.file_bytes)
        else:
            return self._exception(_failure(packet), seconds)
        if len(text) >= self.bounds.file_bytes:
            return self._fail(outcome.make(Verdict.OUTPUT_LIMIT, seconds, "too much output"), [-2], -2)
        if self.submission.request.kind is not Kind.FUNCTION:
            difference = livecodebench.compare_output(text, expected)
            wrong: list[bool | int] = [-2]
        else:
            difference, wrong = _compare_value(text, expected)
        if difference is not None:
            return self._fail(outcome.make(Verdict.WRONG_ANSWER, seconds, difference), wrong, _code_of(wrong))
        self.verdicts.append(outcome.make(Verdict.PASSED, seconds))
        return None

    def _exception(self, failed: dict[str, Any], seconds: float) -> Graded:
        """What becomes of a test that did not come to its end."""
        if failed.get("collapsed") is True:
            return self._collapse(_exception_verdict(failed, seconds))
        if failed.get("timed_out") is True:
            return self._fail(outcome.make(Verdict.TIME_LIMIT, seconds, "the alarm went off"), [-3], -3)
        return self._fail(_exception_verdict(failed, seconds), [-4], -4)

    def _meet(self) -> None:
        """Wait for the runner's first packet, which is sent before the program is loaded, and start its clock."""
        self._await(_LONGEST_SLEEP_S, lambda: _LONGEST_SLEEP_S)
        packet, pid = receive_with_pid(self.control, SESSION_BYTES)
        if not packet:
            raise _Died(self._wait_for_end())
        self.clock = StepClock(pid, self.submission.request.time_limit_s, self.asked)

    def _receive(self) -> bytes:
        """Wait for the answer to a step, ringing the alarm at its limit, or for the end of the process."""
        rung = False
        limit_s = self.submission.request.time_limit_s

        def look() -> float:
            nonlocal rung
            sample_in_s = self.clock.sample_in_s()
            cpu_s, wall_s = self.clock.cpu_s(), self.clock.wall_s()
            if cpu_s > limit_s + ALARM_GRACE_S:
                raise _Overdue(cpu_s, f"used more than {limit_s:g} s of CPU time and did not hear the alarm")
            if wall_s > WALL_PER_CPU * limit_s + ALARM_GRACE_S and not self.clock.is_runnable():
                raise _Overdue(cpu_s, f"still there after {WALL_PER_CPU * limit_s:g} s and did not hear the alarm")
            if not rung and wall_s >= limit_s and (cpu_s >= limit_s or not self.clock.is_runnable()):
                self.zygote.ring_alarm()
                rung = True
            return min(sample_in_s, limit_s + ALARM_GRACE_S - cpu_s if rung else limit_s - wall_s)

        hung_up = self._await(limit_s, look)
        packet = receive(self.control, SESSION_BYTES)[0]
        if not packet:
            raise _Died(self._wait_for_end() if hung_up else None)  # not hung up: the program sent an empty packet
        return packet

    def _await(self, quiet_s: float, look: Callable[[], float]) -> bool:
        """Wait until there is something to receive; return whether the program hung up.

        `quiet_s` and then `look` tell how long nothing can be due.
        """
        until = wait_deadline(self.bounds, self.deadline)
        while True:
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise DeadlinePassed("the deadline passed before every test was run")
            ready = dict(self._poller.poll(min(max(quiet_s, _SHORTEST_SLEEP_S), _LONGEST_SLEEP_S, left_s) * 1000))
            if self.control.fileno() in ready:
                return bool(ready[self.control.fileno()] & select.POLLHUP)
            if ready:
                raise _Died(self._wait_for_end())
            quiet_s = look()

    def _wait_for_end(self) -> RunEnded:
        self.zygote.tell_hung_up()
        return self._finish()

    def _finish(self) -> RunEnded:
        self.running = False
        return self.zygote.finish_run(wait_deadline(self.bounds, self.deadline))

    def end(self) -> None:
        """Have the zygote end the process, if it has not ended."""
        if self.running:
            self.zygote.cancel_run()
            self._finish()

    def _death_verdict(self, died: _Died) -> TestVerdict:
        if died.ended is None:
            return outcome.make(Verdict.RUNTIME_ERROR, 0.0, died.why)
        failed = outcome.failed_run(died.ended, self.bounds, Claim(), self.output.size(), b"")
        if failed is not None:
            return failed
        how = f"ended its process with status {died.ended.exit_status}"
        return outcome.make(Verdict.RUNTIME_ERROR, died.ended.cpu_s, how)

    def _fail(self, verdict: TestVerdict, result: list[bool | int], code: int) -> Graded:
        earlier: list[bool | int] = [True] * len(self.verdicts)
        return self._done(verdict, LiveCodeBenchResult(results=earlier + result, error_code=code))

    def _collapse(self, verdict: TestVerdict) -> Graded:
        return self._done(verdict, _COLLAPSED)

    def _done(self, verdict: TestVerdict, lcb: LiveCodeBenchResult) -> Graded:
        return Graded(outcome.fill_skipped([*self.verdicts, verdict], len(self.submission.tests)), lcb)


def _failure(packet: bytes) -> dict[str, Any]:
    """How the program failed, as its process tells. Raises _Died where that is no such packet."""
    try:
        failed = json.loads(packet)
    except (ValueError, RecursionError):
        raise _Died(None) from None
    if not isinstance(failed, dict):
        raise _Died(None)
    return failed


def _exception_verdict(answer: dict[str, Any], seconds: float) -> TestVerdict:
    if answer.get("memory") is True:
        verdict = Verdict.MEMORY_LIMIT
    else:
        verdict = Verdict.COMPILE_ERROR if answer.get("compile") is True else Verdict.RUNTIME_ERROR
    detail = answer.get("detail")
    return outcome.make(verdict, seconds, detail if isinstance(detail, str) else None)


def _check_all_json(submission: Submission) -> None:
    """The harness reads every test before it runs the first: one that is no JSON spoils all."""
    try:
        for test in submission.tests:
            strict.parse_json(test.output)
            for line in test.input.split("\n"):
                strict.parse_json(line)
    except (ValueError, RecursionError) as error:
        raise Collapsed(f"a test is not JSON: {error}"[:200]) from error


def _compare_value(encoded: bytes, expected: str) -> tuple[str | None, list[bool | int]]:
    """Return (difference, what the harness appends to its results)."""
    if len(encoded) > limits.VALUE_BYTES:
        return f"returned more than {limits.VALUE_BYTES} bytes", [False]
    try:
        got = values.decode(encoded, expected)
    except ValueError as error:
        return str(error), [False]
    wanted = strict.parse_json(expected)
    try:
        difference = livecodebench.compare_value(got, wanted)
    except (ArithmeticError, RecursionError) as error:
        return f"returned what cannot be compared: {type(error).__name__}", [-4]
    if difference is not None and livecodebench.cannot_be_shown(got):
        return difference, [False, -4]
    return difference, [False]


def _code_of(result: list[bool | int]) -> int:
    return -4 if result[-1] == -4 else -2
