"""A slot: one zygote and the thread's worth of work that goes through it.

It starts a zygote when it has none, ends it after a number of runs or after any failure, and turns every failure of the
judge's own into an `error` answer after one more attempt on a fresh zygote. It never raises for what a program did.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from deepcoder_contracts.judge import JudgeResponse, LiveCodeBenchResult, Scoring, TestVerdict, Verdict
from deepcoder_sandbox import lcb_session, outcome, process_per_test
from deepcoder_sandbox.outcome import KilledFromOutside
from deepcoder_sandbox.submission import DeadlinePassed, Submission
from deepcoder_sandbox.zygote_process import ZygoteConfig, ZygoteFailed, ZygoteProcess

_log = logging.getLogger("deepcoder_sandbox")

_ATTEMPTS = 2
RECYCLE_AFTER_RUNS = 5000
"""Runs after which a zygote is replaced."""


class Slot:
    """Judges one submission at a time. Not thread-safe: one thread owns it; others only read its failures."""

    def __init__(
        self, config: ZygoteConfig, worker: str, on_recycle: Callable[[str], None] = lambda reason: None
    ) -> None:
        self._config = config
        self._worker = worker
        self._on_recycle = on_recycle
        self._zygote: ZygoteProcess | None = None
        self.failed_starts = 0
        """Zygotes in a row, up to now, that could not be started."""
        self.failing_since: float | None = None
        """When the first of them was (monotonic)."""

    def ensure_zygote(self) -> ZygoteProcess:
        """Return the running zygote, started if need be. Raises ZygoteFailed."""
        if self._zygote is not None and (self._zygote.spent or self._zygote.runs >= RECYCLE_AFTER_RUNS):
            self._drop("unclean" if self._zygote.spent else "runs")
        if self._zygote is None:
            self._zygote = self._start()
        return self._zygote

    def _start(self) -> ZygoteProcess:
        try:
            zygote = ZygoteProcess(self._config)
        except ZygoteFailed as error:
            self.failed_starts += 1
            self.failing_since = self.failing_since or time.monotonic()
            _log.warning("cannot start a zygote, for the %d. time in a row: %s", self.failed_starts, error)
            raise
        self.failed_starts, self.failing_since = 0, None
        return zygote

    @property
    def zygote_pid(self) -> int | None:
        """The zygote's process, for tests that kill it."""
        return self._zygote.pid if self._zygote else None

    def _drop(self, reason: str) -> None:
        if self._zygote is not None:
            self._zygote.kill()
            self._zygote = None
            self._on_recycle(reason)

    def close(self) -> None:
        """End the zygote."""
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None

    def judge(self, submission: Submission, deadline: float) -> JudgeResponse:
        """Return the answer to a submission; `deadline` (monotonic) bounds it."""
        started = time.monotonic()
        failure = "not tried"
        for _ in range(_ATTEMPTS):
            try:
                return self._answer(submission, started, self._grade(submission, deadline))
            except (ZygoteFailed, KilledFromOutside) as error:
                failure = str(error)
                self._drop("failed")
            except DeadlinePassed as error:
                failure = str(error)
                break
            except (OSError, MemoryError) as error:
                failure = f"{type(error).__name__}: {error}"
                self._drop("failed")
            if time.monotonic() > deadline:
                break
        return self.error_answer(submission, failure, started)

    def _grade(self, submission: Submission, deadline: float) -> tuple[list[TestVerdict], LiveCodeBenchResult | None]:
        if submission.request.scoring is Scoring.LIVECODEBENCH:
            graded = lcb_session.judge_in_one_process(self.ensure_zygote(), submission, deadline)
            return graded.verdicts, graded.lcb
        return process_per_test.judge_each_test(self.ensure_zygote(), submission, deadline), None

    def _answer(
        self,
        submission: Submission,
        started: float,
        graded: tuple[list[TestVerdict], LiveCodeBenchResult | None],
    ) -> JudgeResponse:
        verdicts, lcb = graded
        return JudgeResponse(
            id=submission.request.id,
            passed=all(verdict.verdict is Verdict.PASSED for verdict in verdicts),
            verdicts=verdicts,
            lcb=lcb,
            seconds=time.monotonic() - started,
            worker=self._worker,
        )

    def error_answer(self, submission: Submission, failure: str, started: float) -> JudgeResponse:
        """Return the answer that says the judge failed: `error` for every test, `passed` null."""
        error = outcome.make(Verdict.ERROR, 0.0, failure)
        return JudgeResponse(
            id=submission.request.id,
            passed=None,
            verdicts=[error] * len(submission.tests),
            seconds=time.monotonic() - started,
            worker=self._worker,
        )
