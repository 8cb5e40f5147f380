"""Scoring livecodebench: one process per submission, which runs one test after another, and the harness's own result.

The harness's list and error code are rebuilt from what happened, accidents included: a process that dies, or the global
limit, gives [-2] with code -5; an exception outside a test gives [-4] alone. The program's side is
`deepcoder_sandbox.worker.livecodebench`, and `deepcoder_sandbox.compare.livecodebench` compares.

Time is measured here, not by the program. At a test's limit the alarm is sent, as the harness does. A program that does
not react is ended a second of CPU time later (`deepcoder_sandbox.step_alarm`). Raises ZygoteFailed, KilledFromOutside
or DeadlinePassed, which are the judge's failures.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepcoder_contracts import strict
from deepcoder_contracts.judge import Kind, LiveCodeBenchResult, TestVerdict, Verdict
from deepcoder_sandbox import limits, outcome
from deepcoder_sandbox.compare import livecodebench, values
from deepcoder_sandbox.compare.livecodebench import Collapsed
from deepcoder_sandbox.execution import wait_deadline
from deepcoder_sandbox.limits import ALARM_GRACE_S
from deepcoder_sandbox.memory_file import MemoryFile
from deepcoder_sandbox.outcome import Claim
from deepcoder_sandbox.step_alarm import Alarm
from deepcoder_sandbox.step_clock import StepClock, receive
from deepcoder_sandbox.submission import DeadlinePassed, Submission
from deepcoder_sandbox.worker.packets import (
    IN_FILE,
    INLINE,
    INLINE_BYTES,
    NOT_PREPARED,
    PREPARED,
    SESSION_BYTES,
    WITH_PROGRAM,
    Job,
    RunEnded,
    RunLimits,
)
from deepcoder_sandbox.zygote_process import ZygoteFailed, ZygoteProcess

_SHORTEST_SLEEP_S, _LONGEST_SLEEP_S = 0.01, 1.0
_TAKEN_SLEEP_S = 0.001
_END_S = 5.0  # at least, for a zygote to end a run
_JUDGES_OWN = (errno.ENOMEM, errno.ENOSPC)
"""Errors of writing to a program's file that the program did not cause."""
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
    content = source + name
    longest = max(len(test.input.encode()) for test in submission.tests)
    room = longest if longest > INLINE_BYTES else 0
    is_short = max(len(content), longest) <= INLINE_BYTES
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with (
        ours,
        theirs,
        Path(os.devnull).open("rb+", buffering=0) as null,  # not shared by sessions: a program can change its flags
        nullcontext() if is_short else MemoryFile("given", content, capacity=len(content) + room) as given,
        MemoryFile("output") as output,
    ):
        bounds = limits.of_all_tests(
            request.time_limit_s, len(submission.tests), request.memory_limit_mb, submission.output_bytes
        )
        files = [*[null.fileno()] * 3, theirs.fileno(), output.fileno(), *([given.fileno()] if given else [])]
        session = _Session(zygote, submission, bounds, ours, given, len(content), output, deadline)
        ours.send(WITH_PROGRAM + content if is_short else IN_FILE)
        zygote.start_run(Job(request.kind, bounds, len(source), len(name)), files)
        theirs.close()
        try:
            return session.grade()
        finally:
            session.end()


class _Died(Exception):
    """The process ended, or must be ended for what only a program can have made it do."""

    def __init__(self, ended: RunEnded | None, why: str = "the program answered in the harness's place") -> None:
        self.ended = ended
        self.why = why


class _Overdue(Exception):
    """A step exceeded its limits and did not react to its alarm."""

    def __init__(self, cpu_s: float, reason: str) -> None:
        self.cpu_s = cpu_s
        self.reason = reason


@dataclass
class _Session:
    zygote: ZygoteProcess
    submission: Submission
    bounds: RunLimits
    control: socket.socket
    given: MemoryFile | None
    """The program, followed by room for an input; None if both are short and are sent in packets."""
    given_at: int
    """Offset of the input in `given`."""
    output: MemoryFile
    deadline: float
    verdicts: list[TestVerdict] = field(default_factory=list)
    running: bool = True
    clock: StepClock | None = None
    """None until the program's process has made itself known."""

    def __post_init__(self) -> None:
        self._limit_s = self.submission.request.time_limit_s
        self._alarm = Alarm(self._limit_s)
        self._quiet_s = min(max(self._limit_s, _SHORTEST_SLEEP_S), _LONGEST_SLEEP_S)
        self._until = wait_deadline(self.bounds, self.deadline)
        self._answered = [(self.control.fileno(), select.POLLIN)]
        self._poller = select.poll()
        self._poller.register(self.control, select.POLLIN)
        self._poller.register(self.zygote.fileno(), 0)  # reports only whether it is gone

    def grade(self) -> Graded:
        """Wait until the program is loaded, then run test after test until one fails."""
        try:
            packet = self._receive()
            if packet[:1] == NOT_PREPARED:
                return self._collapse(_exception_verdict(_failure(packet[1:]), 0.0))
            clock = self._clock()
            if packet != PREPARED:
                raise _Died(None)
            clock.cpu_s()
            is_function = self.submission.request.kind is Kind.FUNCTION
            wanted = _all_json(self.submission) if is_function else None
            for index, test in enumerate(self.submission.tests):
                self._start(clock)
                self.ask(test.input)
                packet = self._receive()
                seconds = clock.cpu_s()
                if packet[:1] == INLINE:
                    text = packet[1:]
                elif packet[:1] == IN_FILE:
                    text = self.output.read(self.bounds.file_bytes)
                else:
                    return self._exception(_failure(packet), seconds)
                if seconds > self._limit_s + ALARM_GRACE_S:  # and the judge could not look in time
                    return self._late(seconds)
                if len(text) >= self.bounds.file_bytes:
                    return self._fail(outcome.make(Verdict.OUTPUT_LIMIT, seconds, "too much output"), [-2], -2)
                if wanted is None:
                    difference = livecodebench.compare_output(text, test.output)
                    wrong: list[bool | int] = [-2]
                else:
                    difference, wrong = _compare_value(text, test.output, wanted[index])
                if difference is not None:
                    return self._fail(outcome.make(Verdict.WRONG_ANSWER, seconds, difference), wrong, _code_of(wrong))
                self.verdicts.append(outcome.passed(seconds))
        except _Died as died:
            return self._done(self._death_verdict(died), _DIED)
        except _Overdue as overdue:
            return self._done(outcome.make(Verdict.TIME_LIMIT, overdue.cpu_s, overdue.reason), _DIED)
        except Collapsed as collapsed:
            return self._collapse(outcome.make(Verdict.RUNTIME_ERROR, 0.0, str(collapsed)))
        return Graded(self.verdicts, LiveCodeBenchResult(results=[True] * len(self.verdicts)))

    def _start(self, clock: StepClock) -> None:
        """Begin a step, whose alarm has not been rung."""
        clock.start()
        self._alarm = Alarm(self._limit_s)

    def ask(self, given: str) -> None:
        """Request a test."""
        encoded = given.encode()
        if self.given is None or len(encoded) <= INLINE_BYTES:
            packet = INLINE + encoded
        else:
            self._put(self.given, encoded)
            packet = b"%b%d" % (IN_FILE, len(encoded))
        try:
            self.control.send(packet, socket.MSG_DONTWAIT)
        except BlockingIOError:
            raise _Died(None) from None  # it does not read the judge's packets, but keeps answering
        except OSError:
            raise _Died(self._wait_for_end()) from None

    def _put(self, file: MemoryFile, given: bytes) -> None:
        try:
            file.overwrite(given, self.given_at)
        except OSError as error:
            if error.errno in _JUDGES_OWN:
                raise
            raise _Died(None, "the program tampered with its input") from error

    def _late(self, seconds: float) -> Graded:
        """Return the result for a test whose output came too late, but before its process was ended."""
        late = outcome.make(Verdict.TIME_LIMIT, seconds, f"used more than {self._limit_s:g} s of CPU time")
        return self._done(late, _DIED) if self._alarm.rung else self._fail(late, [-3], -3)

    def _exception(self, failed: dict[str, Any], seconds: float) -> Graded:
        """Return the result for a test that did not finish."""
        if failed.get("collapsed") is True:
            return self._collapse(_exception_verdict(failed, seconds))
        if failed.get("timed_out") is True:
            return self._fail(outcome.make(Verdict.TIME_LIMIT, seconds, "the alarm went off"), [-3], -3)
        return self._fail(_exception_verdict(failed, seconds), [-4], -4)

    def _clock(self) -> StepClock:
        """Return the clock of the program's process, which must have made itself known. Raises ZygoteFailed."""
        clock = self._meet()
        if clock is None:
            raise ZygoteFailed("a runner answered before it made itself known")
        return clock

    def _meet(self) -> StepClock | None:
        """Return the clock; None until the runner has made itself known, which it does before it loads the program."""
        if self.clock is None:
            self.running = False  # if the next line raises: the zygote has told the end, or is gone
            if (started := self.zygote.started()) is not None:
                self.clock = StepClock(started.pid, self._limit_s, *started[1:])
            self.running = True
        return self.clock

    def _receive(self) -> bytes:
        """Wait for the answer to a step, and ring the alarm at its limit. Raises _Died if the process ends instead."""
        left_s = max(0.0, self._until - time.monotonic())
        ready = self._poller.poll(min(self._quiet_s, left_s) * 1000)
        hung_up = ready != self._answered and self._await(ready)
        packet = receive(self.control, SESSION_BYTES)
        if not packet:
            raise _Died(self._wait_for_end() if hung_up else None)  # not hung up: the program sent an empty packet
        return packet

    def _await(self, ready: list[tuple[int, int]]) -> bool:
        """Keep waiting for the answer if `ready` was not just that; return whether the program hung up."""
        while True:
            events = dict(ready)
            if self.control.fileno() in events:
                self._see_alarm_taken()
                return bool(events[self.control.fileno()] & select.POLLHUP)
            if events:
                raise _Died(self._wait_for_end())
            left_s = self._left_s()
            quiet_s = self._look()
            ready = self._poller.poll(min(max(quiet_s, _SHORTEST_SLEEP_S), _LONGEST_SLEEP_S, left_s) * 1000)

    def _left_s(self) -> float:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise DeadlinePassed("the deadline passed before every test was run")
        return left_s

    def _see_alarm_taken(self) -> None:
        """Wait until the zygote has received the alarm, which would otherwise go off in the next step."""
        while self._alarm.rung and not self.zygote.has_taken_all():
            time.sleep(min(_TAKEN_SLEEP_S, self._left_s()))

    def _look(self) -> float:
        """Ring the alarm, or raise _Overdue, if it is time to; return for how long nothing can be due."""
        clock, alarm = self._meet(), self._alarm
        if clock is None:
            return _LONGEST_SLEEP_S
        sample_in_s = clock.sample_in_s()
        wall_s, states = clock.look()
        cpu_s = clock.cpu_s()
        if alarm.rung and alarm.taken_at is None and self.zygote.has_taken_all():
            alarm.taken_at = cpu_s, wall_s
        unheard = alarm.unheard(cpu_s, wall_s, states)
        is_due = alarm.is_due(cpu_s, wall_s, states)
        if (unheard or is_due) and self._poller.poll(0):  # it answered or ended after the look
            return 0.0
        if unheard:
            raise _Overdue(cpu_s, unheard)
        if is_due:
            self.zygote.ring_alarm()
            alarm.rung = True
        return min(sample_in_s, alarm.quiet_s(cpu_s, wall_s))

    def _wait_for_end(self) -> RunEnded:
        """Return how the process ended that has hung up. One that goes on keeps its step's limits: raises _Overdue."""
        self.zygote.tell_hung_up()
        self._meet()  # so that what the zygote says next is about the end
        self._poller.unregister(self.control)
        self._poller.modify(self.zygote.fileno(), select.POLLIN)
        try:
            quiet_s = 0.0
            while not self._poller.poll(min(max(quiet_s, _SHORTEST_SLEEP_S), _LONGEST_SLEEP_S, self._left_s()) * 1000):
                quiet_s = self._look()
        except _Overdue:
            ended = self._cancel()
            if ended.killed_for is not None:
                raise
            return ended  # long ago, but the zygote could not look
        self.running = False
        return self.zygote.finish_run(wait_deadline(self.bounds, self.deadline))

    def _cancel(self) -> RunEnded:
        self.running = False
        self.zygote.cancel_run()
        # If the deadline has passed, the zygote is not to blame.
        return self.zygote.finish_run(max(time.monotonic() + _END_S, wait_deadline(self.bounds, self.deadline)))

    def end(self) -> None:
        """Have the zygote end the process, if it has not ended."""
        if self.running:
            self._cancel()

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
    """Return how the program failed, as its process reports. Raises _Died for any other packet."""
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


def _all_json(submission: Submission) -> list[Any]:
    """Return what is expected. The harness parses all tests before it runs the first; one that is no JSON fails all."""
    wanted = []
    try:
        for test in submission.tests:
            wanted.append(strict.parse_json(test.output))
            for line in test.input.split("\n"):
                strict.parse_json(line)
    except (ValueError, RecursionError) as error:
        raise Collapsed(f"a test is not JSON: {error}"[:200]) from error
    return wanted


def _compare_value(encoded: bytes, expected: str, wanted: Any) -> tuple[str | None, list[bool | int]]:
    """Return (difference, what the harness appends to its results)."""
    if len(encoded) > limits.VALUE_BYTES:
        return f"returned more than {limits.VALUE_BYTES} bytes", [False]
    try:
        got = values.decode(encoded, expected)
    except ValueError as error:
        return str(error), [False]
    try:
        difference = livecodebench.compare_value(got, wanted)
    except (ArithmeticError, RecursionError) as error:
        return f"returned what cannot be compared: {type(error).__name__}", [-4]
    if difference is not None and livecodebench.cannot_be_shown(got):
        return difference, [False, -4]
    return difference, [False]


def _code_of(result: list[bool | int]) -> int:
    return -4 if result[-1] == -4 else -2
