"""The judge's protocol: a program and its tests in, one verdict per test out.

Names are snake_case, as in the HTTP bodies and JSON Lines of `deepcoder-sandbox`. Everything rests on one rule:
`passed` is None if and only if some verdict is `error`, which means that the *judge* failed. A client may retry such a
submission elsewhere and must never treat it as a wrong answer.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

RUN_HEADER = "X-Deepcoder-Run"
"""Request header `<namespace>/<name>/<uid8>`, which scopes a submission's id."""

VERSION_HEADER = "X-Deepcoder-Judge"
"""Response header of `GET /v1/capacity`. It identifies the grading code, so that results can record it."""

EXIT_REFUSED = 64
"""Exit status of a judge that refuses to start, because it cannot confine programs, listen, or hold what it is
configured for. Its last line says why. Every restart fails the same way until somebody fixes the cause."""

MAX_CODE_BYTES = 1 << 20
"""Largest accepted program, in bytes of UTF-8."""

MAX_TESTS = 10_000
"""Largest number of tests in one submission."""

MAX_BODY_BYTES = 64 << 20
"""Largest body of a request that a judge accepts, unless it is started to accept others; so also the largest TestSet,
in bytes."""


FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)?$")]
"""Name of a program's function: a top-level function, or a method of class Solution."""


class JudgeMessage(BaseModel):
    """A message of the judge's protocol: strict, frozen, snake_case."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JudgeAnswer(JudgeMessage):
    """An answer of the judge. Fields that a later release added are ignored."""

    model_config = ConfigDict(extra="ignore")


class Verdict(StrEnum):
    """Outcome of one test. Only `error` is a failure of the judge."""

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
    """How a program runs: with input on stdin, by calling a function, or as a script whose exit status counts."""

    STDIN = "stdin"
    FUNCTION = "function"
    SCRIPT = "script"


class Scoring(StrEnum):
    """How outputs are compared. strict is the default; the others reproduce published graders."""

    STRICT = "strict"
    LIVECODEBENCH = "livecodebench"
    TACO_COMPAT = "taco-compat"


class TestCase(JudgeMessage):
    """One test. For kind `function`, `input` has one JSON argument per line and `output` is one JSON value."""

    __test__ = False  # keeps pytest from collecting it

    input: str
    """Input of the program."""

    output: str
    """Expected output."""


class TestSet(JudgeMessage):
    """Body of `PUT /v1/tests/{sha256}`. It is stored once, under the SHA-256 of the body's bytes."""

    __test__ = False

    tests: Annotated[list[TestCase], Field(min_length=1, max_length=MAX_TESTS)]
    """The tests, in order."""


class JudgeRequest(JudgeMessage):
    """Body of `POST /v1/judge`, and a line of the command line's input."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """Idempotency key within the run. The same id with the same content is judged once."""

    code: Annotated[str, StringConstraints(max_length=MAX_CODE_BYTES)]
    """Source text of the program."""

    language: Literal["python"] = "python"
    """Programming language."""

    kind: Kind = Kind.STDIN
    """How the program runs: stdin, function or script."""

    tests: Annotated[list[TestCase], Field(min_length=1, max_length=MAX_TESTS)] | None = None
    """Tests of the submission. Set either tests or tests_sha256."""

    tests_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 of a stored test set. If the judge does not have it, the answer is 404."""

    fn_name: FunctionName | None = None
    """`function`: name of the function to call: a top-level function, or a method of class Solution."""

    time_limit_s: float = Field(default=6.0, gt=0, le=600)
    """CPU time limit per test, in seconds."""

    memory_limit_mb: int = Field(default=1024, ge=16, le=65536)
    """Memory limit per test, in MiB."""

    deadline_s: float | None = Field(default=None, gt=0, le=3600)
    """Wall-clock time, in seconds, after which the client stops waiting."""

    stop_on_first_failure: bool = True
    """Whether to skip the tests after the first one that does not pass."""

    scoring: Scoring = Scoring.STRICT
    """How outputs are compared and programs are run."""

    float_tolerance: float | None = Field(default=None, gt=0, le=1)
    """strict: relative and absolute tolerance for numeric tokens. Default: tokens are compared as written."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.tests is None) == (self.tests_sha256 is None):
            raise ValueError("give exactly one of tests and tests_sha256")
        if (self.kind is Kind.FUNCTION) != (self.fn_name is not None):
            raise ValueError("fn_name is needed for kind function, and not allowed for other kinds")
        return self


class TestVerdict(JudgeAnswer):
    """Outcome of one test."""

    __test__ = False

    verdict: Verdict
    """Outcome of the test."""

    seconds: float = Field(ge=0)
    """CPU time used, in seconds."""

    detail: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """Short, escaped excerpt for people. It never contains the expected output."""


class LiveCodeBenchResult(JudgeAnswer):
    """The result that LiveCodeBench's own harness would have returned."""

    results: list[bool | int]
    """The harness's list of True, False and -1 to -5."""

    error_code: int | None = None
    """The harness's error code, if any."""


class JudgeResponse(JudgeAnswer):
    """Answer to a submission."""

    id: str
    """Id of the request."""

    passed: bool | None
    """Whether every test passed. None if and only if a verdict is `error`."""

    verdicts: list[TestVerdict]
    """One verdict per test, in order."""

    lcb: LiveCodeBenchResult | None = None
    """scoring livecodebench: the result of the harness."""

    seconds: float = Field(ge=0)
    """Wall-clock time spent judging, in seconds, without time in the queue."""

    worker: str
    """Name of the judge that answered. A retry goes to another judge."""

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
    """Number of programs that the judge runs at once."""

    busy: int = Field(ge=0)
    """Number of slots in use."""

    queued: int = Field(ge=0)
    """Number of submissions that wait for a slot."""

    oldest_wait_s: float = Field(default=0.0, ge=0)
    """Time, in seconds, that the oldest waiting submission has waited."""

    tier: Tier
    """Confinement in force."""

    limits: dict[str, bool]
    """Whether each limit is really enforced here, by name of the limit."""

    max_memory_mb: int | None = Field(default=None, ge=1)
    """Largest `memory_limit_mb` that the judge accepts, in MiB; null if it has no bound or reports none."""


class Problem(JudgeAnswer):
    """Body of every 4xx and 5xx answer."""

    error: str
    """What is wrong and how to fix it."""

    field: str | None = None
    """The field at fault."""
