"""A slot: a zygote, or one of each kind, which judge one submission after another on one thread.

It starts a zygote when it needs one, and ends it after a number of runs or after any failure: a failed zygote may still
send an answer, which must not be taken for the next submission's. Every failure of the judge itself, even an unexpected
one, becomes an `error` answer after one more attempt on a fresh zygote. Nothing that a program does raises an error.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Final

from deepcoder_contracts.judge import JudgeResponse, LiveCodeBenchResult, Scoring, TestVerdict, Verdict
from deepcoder_sandbox import lcb_session, outcome, process_per_test
from deepcoder_sandbox.observer import Observer, Phase, Recycled
from deepcoder_sandbox.outcome import KilledFromOutside
from deepcoder_sandbox.submission import DeadlinePassed, Submission
from deepcoder_sandbox.zygote_process import ZygoteConfig, ZygoteFailed, ZygoteProcess

_log = logging.getLogger("deepcoder_sandbox")

_ATTEMPTS = 2
RECYCLE_AFTER_RUNS: Final = 5000
"""Default number of runs after which a zygote is replaced."""


class Slot:
    """Judges one submission at a time. Not thread-safe: one thread owns it; others only read its failures."""

    def __init__(
        self,
        config: ZygoteConfig,
        worker: str,
        observer: Observer | None = None,
        recycle_after_runs: int = RECYCLE_AFTER_RUNS,
    ) -> None:
        self._config = config
        self._worker = worker
        self._observer = observer or Observer()
        self._recycle_after_runs = recycle_after_runs
        self._zygotes: dict[bool, ZygoteProcess] = {}
        self._harness = False
        self._failed_harness = False
        self._starting_s = 0.0
        self._run_by_others_s = 0.0
        self.failed_starts = 0
        """Number of zygotes in a row, up to now, that could not be started."""
        self.failing_since: float | None = None
        """When the first of them failed (monotonic)."""

    def ensure_zygote(self, harness: bool = False) -> ZygoteProcess:
        """Return the running zygote for scoring livecodebench (`harness`) or for all others; start it if needed.

        Both can run side by side. Raises ZygoteFailed.
        """
        self._harness = harness
        zygote = self._zygotes.get(harness)
        if zygote is not None and (zygote.spent or zygote.runs >= self._recycle_after_runs):
            self._drop(Recycled.UNCLEAN if zygote.spent else Recycled.RUNS)
        if harness not in self._zygotes:
            self._zygotes[harness] = self._start(replace(self._config, harness=harness))
        return self._zygotes[harness]

    def start_again(self) -> None:
        """Try again to start the zygote whose start failed last; the other one may be running. Raises ZygoteFailed."""
        self.ensure_zygote(self._failed_harness)

    def _start(self, config: ZygoteConfig) -> ZygoteProcess:
        started = time.monotonic()
        try:
            zygote = ZygoteProcess(config)
        except (ZygoteFailed, OSError, MemoryError) as error:
            self.failed_starts += 1
            self._failed_harness = config.harness
            self.failing_since = self.failing_since or time.monotonic()
            _log.warning("cannot start a zygote (failure %d in a row): %s", self.failed_starts, error)
            raise ZygoteFailed(str(error)) from error
        finally:
            self._starting_s += time.monotonic() - started
        self.failed_starts, self.failing_since = 0, None
        return zygote

    @property
    def zygote_pid(self) -> int | None:
        """Pid of the zygote that was used last, for tests that kill it."""
        zygote = self._zygotes.get(self._harness)
        return zygote.pid if zygote else None

    def _running_s(self) -> float:
        """Return the seconds of all runs so far, by these zygotes and their predecessors."""
        return self._run_by_others_s + sum(zygote.run_wall_s for zygote in self._zygotes.values())

    def _drop(self, reason: Recycled) -> None:
        """End the zygote that was used last."""
        zygote = self._zygotes.pop(self._harness, None)
        if zygote is not None:
            self._run_by_others_s += zygote.run_wall_s
            zygote.kill()
            self._observer.recycled(reason)

    def close(self) -> None:
        """End the zygotes."""
        while self._zygotes:
            self._zygotes.popitem()[1].close()

    def judge(self, submission: Submission, deadline: float) -> JudgeResponse:
        """Return the answer to a submission; `deadline` (monotonic) bounds it."""
        started, starting_s, running_s = time.monotonic(), self._starting_s, self._running_s()
        try:
            return self._try(submission, deadline, started)
        finally:
            starting_s, running_s = self._starting_s - starting_s, self._running_s() - running_s
            self._observer.spent(Phase.ZYGOTE, starting_s)
            self._observer.spent(Phase.RUN, running_s)
            self._observer.spent(Phase.COMPARE, max(0.0, time.monotonic() - started - starting_s - running_s))

    def _try(self, submission: Submission, deadline: float, started: float) -> JudgeResponse:
        failure = "not tried"
        for _ in range(_ATTEMPTS):
            try:
                return self._answer(submission, started, self._grade(submission, deadline))
            except DeadlinePassed as error:
                failure = str(error)
                break
            except Exception as error:
                reason = _reason(error)
                failure = (
                    f"{type(error).__name__}: {error}"
                    if reason in (Recycled.RESOURCES, Recycled.DEFECT)
                    else str(error)
                )
                self._drop(reason)
            if time.monotonic() > deadline:
                break
        return self.error_answer(submission, failure, started)

    def _grade(self, submission: Submission, deadline: float) -> tuple[list[TestVerdict], LiveCodeBenchResult | None]:
        if submission.request.scoring is Scoring.LIVECODEBENCH:
            graded = lcb_session.judge_in_one_process(self.ensure_zygote(harness=True), submission, deadline)
            return graded.verdicts, graded.lcb
        return process_per_test.judge_each_test(self.ensure_zygote, submission, deadline), None

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
        """Return the answer for a failure of the judge: `error` for every test, `passed` null."""
        error = outcome.make(Verdict.ERROR, 0.0, failure)
        return JudgeResponse(
            id=submission.request.id,
            passed=None,
            verdicts=[error] * len(submission.tests),
            seconds=time.monotonic() - started,
            worker=self._worker,
        )


def _reason(error: Exception) -> Recycled:
    if isinstance(error, ZygoteFailed):
        return Recycled.ZYGOTE_FAILED
    if isinstance(error, KilledFromOutside):
        return Recycled.RUNNER_KILLED
    return Recycled.RESOURCES if isinstance(error, OSError | MemoryError) else Recycled.DEFECT
