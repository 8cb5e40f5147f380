"""The judge's protocol: a program and its tests in, one verdict a test out.

Names are snake_case here, as in the HTTP bodies and JSON Lines of `deepcoder-sandbox`. The one rule that everything
else rests on: `passed` is None if and only if some verdict is `error`, which means that the *judge* failed. A client
may retry such a submission elsewhere and must never take it for a wrong answer.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

RUN_HEADER = "X-Deepcoder-Run"
"""Header `<namespace>/<name>/<uid8>` that scopes a submission's id."""

VERSION_HEADER = "X-Deepcoder-Judge"
"""Header of the answer to `GET /v1/capacity`: which code grades, so that results tell it from another."""

EXIT_REFUSED = 64
"""Exit status of a judge that refuses to start: it cannot confine, listen or hold what it is asked to, and says why in
its last line. It says so at each start, until somebody mends it."""

MAX_CODE_BYTES = 1 << 20
"""Largest accepted program."""

MAX_TESTS = 10_000
"""Most tests in one submission."""


class JudgeMessage(BaseModel):
    """A message of the judge's protocol: strict, frozen, snake_case."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JudgeAnswer(JudgeMessage):
    """What a judge answers: one of a later release is read as far as it is known here."""

    model_config = ConfigDict(extra="ignore")


class Verdict(StrEnum):
    """Outcome of one test. Only `error` is the judge's own failure."""

    PASSED = "passed"
    WRONG_ANSWER = "wrong_answer"
    TIME_LIMIT = "time_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    RUNTIME_ERROR = "runtime_error"
    COMPILE_ERROR = "compile_error"
    SKIPPED = "skipped"
    ERROR = "error"


class Kind(StrEnum):
    """How a program is run: on stdin, by calling a function, or as a script whose exit status counts."""

    STDIN = "stdin"
    FUNCTION = "function"
    SCRIPT = "script"


class Scoring(StrEnum):
    """strict is the default; the others reproduce published graders."""

    STRICT = "strict"
    LIVECODEBENCH = "livecodebench"
    TACO_COMPAT = "taco-compat"


class TestCase(JudgeMessage):
    """One test. For `function`, `input` has one JSON argument a line and `output` is one JSON value."""

    __test__ = False  # not a test class of pytest's

    input: str
    """What the program reads."""

    output: str
    """What is expected."""


class TestSet(JudgeMessage):
    """Body of `PUT /v1/tests/{sha256}`: stored once, named by the sha256 of the body's bytes."""

    __test__ = False

    tests: Annotated[list[TestCase], Field(min_length=1, max_length=MAX_TESTS)]
    """The tests, in order."""


class JudgeRequest(JudgeMessage):
    """Body of `POST /v1/judge`, and a line of the command line's input."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """Idempotency key within the run: the same id with the same content is judged once."""

    code: Annotated[str, StringConstraints(max_length=MAX_CODE_BYTES)]
    """Source text of the program."""

    language: Literal["python"] = "python"
    """Programming language."""

    kind: Kind = Kind.STDIN
    """stdin, function or script."""

    tests: Annotated[list[TestCase], Field(min_length=1, max_length=MAX_TESTS)] | None = None
    """The tests; or name a stored set."""

    tests_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    """A test set stored before; unknown: 404."""

    fn_name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)?$")] | None = None
    """`function`: what is called (a top-level function, or a method of class Solution)."""

    time_limit_s: float = Field(default=6.0, gt=0, le=600)
    """Seconds of CPU time a test."""

    memory_limit_mb: int = Field(default=1024, ge=16, le=65536)
    """Memory a test, in MiB."""

    deadline_s: float | None = Field(default=None, gt=0, le=3600)
    """Seconds of wall-clock time after which the client no longer waits."""

    stop_on_first_failure: bool = True
    """Skip the tests after the first that does not pass."""

    scoring: Scoring = Scoring.STRICT
    """How outputs are compared and programs are run."""

    float_tolerance: float | None = Field(default=None, gt=0, le=1)
    """strict: relative and absolute tolerance for numeric tokens. Default: compare as written."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.tests is None) == (self.tests_sha256 is None):
            raise ValueError("give exactly one of tests and tests_sha256")
        if (self.kind is Kind.FUNCTION) != (self.fn_name is not None):
            raise ValueError("fn_name is needed by kind function, and by no other kind")
        return self


class TestVerdict(JudgeAnswer):
    """Outcome of one test."""

    __test__ = False

    verdict: Verdict
    """Outcome."""

    seconds: float = Field(ge=0)
    """CPU seconds used."""

    detail: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """A bounded, escaped excerpt for people; never the expected output."""


class LiveCodeBenchResult(JudgeAnswer):
    """What LiveCodeBench's own harness would have returned."""

    results: list[bool | int]
    """Its list of True, False, -1 to -5."""

    error_code: int | None = None
    """Its error code, if any."""


class JudgeResponse(JudgeAnswer):
    """Answer to a submission."""

    id: str
    """The request's id."""

    passed: bool | None
    """Whether every test passed; None if and only if a verdict is `error`."""

    verdicts: list[TestVerdict]
    """One a test, in order."""

    lcb: LiveCodeBenchResult | None = None
    """scoring livecodebench: the harness's own result."""

    seconds: float = Field(ge=0)
    """Wall-clock seconds spent judging, queueing left out."""

    worker: str
    """Which judge answered; a retry goes to another."""

    @model_validator(mode="after")
    def _passed_is_null_on_error(self) -> Self:
        failed = any(v.verdict is Verdict.ERROR for v in self.verdicts)
        if failed != (self.passed is None):
            raise ValueError("passed must be null if and only if some verdict is error")
        return self


class Tier(StrEnum):
    """How programs are confined: by namespaces, by Landlock and seccomp alone, or not at all."""

    NAMESPACES = "Namespaces"
    LANDLOCK = "Landlock"
    UNCONFINED = "Unconfined"


class Capacity(JudgeAnswer):
    """Answer of `GET /v1/capacity`."""

    slots: int = Field(ge=0)
    """Programs judged at once."""

    busy: int = Field(ge=0)
    """Slots in use."""

    queued: int = Field(ge=0)
    """Submissions waiting for a slot."""

    oldest_wait_s: float = Field(default=0.0, ge=0)
    """Seconds for which the oldest of them has waited."""

    tier: Tier
    """Confinement in force."""

    limits: dict[str, bool]
    """Limit to whether it is really enforced here."""


class Problem(JudgeAnswer):
    """Body of every 4xx and 5xx answer."""

    error: str
    """What is wrong and how to mend it."""

    field: str | None = None
    """The field at fault."""
