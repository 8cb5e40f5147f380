"""`deepcoder-sandbox judge`: JSON Lines in, JSON Lines out, in input order, streaming.

A line that is no request is answered by a line with `error` and `field`; the rest of the batch goes on. Memory is
bounded by how far reading may run ahead of writing, not by the batch.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from concurrent.futures import Future
from typing import IO

from deepcoder_contracts.judge import JudgeRequest, JudgeResponse, Problem, Scoring, TestCase
from deepcoder_sandbox import admission
from deepcoder_sandbox.admission import Refused
from deepcoder_sandbox.pool import Pool
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.zygote_process import ZygoteConfig

_AHEAD_PER_WORKER = 8
_PROGRESS_EVERY_S = 0.5


def run(source: IO[bytes], sink: IO[bytes], config: ZygoteConfig, workers: int, scoring: Scoring | None) -> int:
    """Judge every line of `source` into `sink`; return the exit status (1 if some line was no request)."""
    ahead = _AHEAD_PER_WORKER * workers
    pool = Pool(config, workers, f"local-{os.getpid()}", max_queued=ahead + 1)
    pending: deque[Future[JudgeResponse] | Problem] = deque()
    progress = _Progress()
    try:
        for line in source:
            if line.strip():
                pending.append(_submit(pool, line, scoring))
            while pending and (len(pending) > ahead or _is_ready(pending[0])):
                _write(sink, pending.popleft(), progress)
        while pending:
            _write(sink, pending.popleft(), progress)
    finally:
        pool.close(timeout_s=5.0)
        progress.finish()
    return 1 if progress.refused else 0


def _submit(pool: Pool, line: bytes, scoring: Scoring | None) -> Future[JudgeResponse] | Problem:
    try:
        request = admission.parse_request(line)
        if scoring is not None:
            request = request.model_copy(update={"scoring": scoring})
        return pool.submit(Submission(request, _tests_of(request)))
    except Refused as refused:
        return refused.problem()


def _tests_of(request: JudgeRequest) -> tuple[TestCase, ...]:
    if request.tests is None:
        raise Refused("tests_sha256: there is no store without a server: give the tests themselves", "tests_sha256")
    tests = tuple(request.tests)
    admission.check(request, tests)
    return tests


def _is_ready(item: Future[JudgeResponse] | Problem) -> bool:
    return isinstance(item, Problem) or item.done()


def _write(sink: IO[bytes], item: Future[JudgeResponse] | Problem, progress: _Progress) -> None:
    answer = item if isinstance(item, Problem) else item.result()
    sink.write(answer.model_dump_json().encode() + b"\n")
    sink.flush()
    progress.count(answer)


class _Progress:
    """A line on stderr while it is a terminal."""

    def __init__(self) -> None:
        self.judged = self.passed = self.refused = 0
        self._shown = 0.0
        self._tty = sys.stderr.isatty()

    def count(self, answer: JudgeResponse | Problem) -> None:
        """Count an answer, and show the state now and then."""
        self.judged += 1
        if isinstance(answer, Problem):
            self.refused += 1
        elif answer.passed:
            self.passed += 1
        if self._tty and time.monotonic() - self._shown > _PROGRESS_EVERY_S:
            self._shown = time.monotonic()
            self._show("\r")

    def finish(self) -> None:
        """Leave the last state on the terminal."""
        if self._tty and self.judged:
            self._show("\n")

    def _show(self, end: str) -> None:
        sys.stderr.write(f"\r{self.judged} judged, {self.passed} passed, {self.refused} refused{end}")
        sys.stderr.flush()
