"""The request for one submission: the harness as text and the inputs, without any expected output.

Submissions that cannot be judged there are refused here, with the fix. Scorings other than `strict` run a program in
ways that only our own judge implements, and an output of many megabytes does not fit an API that is made for text.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from deepcoder_contracts.judge import JudgeRequest, Kind, Scoring, TestCase
from deepcoder_contracts.judge_time import submission_limit_s
from deepcoder_contracts.judgeable import misfit
from deepcoder_trainer.judge.together.harness import packed
from deepcoder_trainer.judge.together.runner import SETTINGS
from deepcoder_trainer.types import Problem

OUTPUT_BYTES = 4 << 20
"""Most bytes that a program may write to stdout, to stderr, or to any file there."""
REPORT_BYTES = 8 << 20
"""Most bytes that all tests of a submission may send back, before packing."""

_STARTING_SECONDS = 5.0
_HERE = __package__ or "deepcoder_trainer.judge.together"


@dataclass(frozen=True)
class Job:
    """One execution that judges one submission."""

    request: JudgeRequest
    tests: Sequence[TestCase]
    nonce: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    """Marks the report of this execution only; a script also claims its end with it."""

    @property
    def total_seconds(self) -> float:
        """Wall-clock limit of all tests together, as in our own judge."""
        return submission_limit_s(self.request.time_limit_s, len(self.tests))

    @property
    def deadline_seconds(self) -> float:
        """Seconds after which the answer is given up; the API may be slower than the time measured there."""
        own = 2 * self.total_seconds + _STARTING_SECONDS * len(self.tests) + 60.0
        return min(own, self.request.deadline_s or own)

    def code(self) -> str:
        """The Python text to execute."""
        request = self.request
        job: dict[str, Any] = {
            "nonce": self.nonce,
            "source": request.code,
            "runner": _text("runner.py"),
            "settings_variable": SETTINGS,
            "kind": request.kind.value,
            "fn_name": request.fn_name,
            "time_limit_s": request.time_limit_s,
            "memory_limit_mb": request.memory_limit_mb,
            "total_seconds": self.total_seconds,
            "output_bytes": OUTPUT_BYTES,
            "report_bytes": REPORT_BYTES,
            "stop": request.stop_on_first_failure,
            "inputs": [self._input(test) for test in self.tests],
        }
        return f"{_text('harness.py')}\n\nprint(run(json.loads(zlib.decompress(base64.b64decode({packed(job)!r})))))\n"

    def _input(self, test: TestCase) -> str:
        return f"{self.nonce}\n{test.input}" if self.request.kind is Kind.SCRIPT else test.input


def refusal(problem: Problem) -> str | None:
    """Return why a problem cannot be judged there, with the fix; None if it can."""
    if (reason := scoring_refusal(problem.scoring)) is not None:
        return reason
    expected = [len(test.output.encode(errors="replace")) for test in problem.tests]
    if max(expected) > OUTPUT_BYTES // 2 or sum(expected) > REPORT_BYTES // 2:
        return (
            f"a test expects more than {OUTPUT_BYTES // 2} bytes, or all together more than {REPORT_BYTES // 2}, and "
            "judge.backend Together sends no more back: leave tests out, or use a SandboxPool or judge.backend Local"
        )
    wrong = misfit(problem.kind, problem.scoring, problem.float_tolerance, problem.tests)
    return None if wrong is None else f"{wrong.field}: {wrong.why}"


def scoring_refusal(scoring: Scoring) -> str | None:
    """Return why a scoring is not possible there, or None."""
    if scoring is Scoring.STRICT:
        return None
    return (
        f"judge.backend Together knows scoring strict only, not {scoring.value}: use a SandboxPool or judge.backend "
        "Local, or give the problem scoring: strict"
    )


def _text(name: str) -> str:
    return resources.files(_HERE).joinpath(name).read_text()
