"""Slots whose programs are names of what is to happen, in the place of those that judge."""

import threading
import time

from deepcoder_contracts.judge import JudgeResponse, TestVerdict, Verdict
from deepcoder_sandbox.zygote_process import ZygoteFailed


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class ScriptedSlot:
    """One of a pool's."""

    made: list["ScriptedSlot"] = []
    clock = time
    judging_s = 0.0

    def __init__(self, config, worker, observer, recycle_after_runs):
        self.number = len(self.made)
        self.made.append(self)
        self.failed_starts = 0
        self.failing_since = None
        self.judged: list[str] = []
        self.may_go_on = threading.Event()
        self.broken = False
        self.ensured = False

    def ensure_zygote(self):
        if self.broken:
            self.failed_starts += 1
            self.failing_since = self.failing_since or self.clock.monotonic()
            raise ZygoteFailed("broken")
        self.failed_starts, self.failing_since = 0, None
        self.ensured = True

    def start_again(self):
        self.ensure_zygote()

    def judge(self, submission, deadline):
        self.judged.append(submission.request.id)
        if submission.request.code == "wait":
            self.may_go_on.wait(30)
        if submission.request.code == "slow":  # as long as it is given
            while self.clock.monotonic() < deadline:
                self.clock.sleep(0.005)
            return self.error_answer(submission, "the deadline passed", 0.0)
        if submission.request.code == "defect":
            raise RuntimeError("a defect")
        try:
            self.ensure_zygote()
        except ZygoteFailed as failed:
            return self.error_answer(submission, str(failed), 0.0)
        self.clock.sleep(self.judging_s)
        return self._answer(submission, Verdict.PASSED, "")

    def error_answer(self, submission, failure, started):
        return self._answer(submission, Verdict.ERROR, failure)

    def _answer(self, submission, verdict, detail):
        return JudgeResponse(
            id=submission.request.id,
            passed=None if verdict is Verdict.ERROR else True,
            verdicts=[TestVerdict(verdict=verdict, seconds=0.0, detail=detail)],
            seconds=0.0,
            worker=str(self.number),
        )

    def close(self):
        pass


def wait_until(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)
