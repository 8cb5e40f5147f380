"""Whether a request makes sense, before it costs anything: the checks beyond the contract's types.

Every refusal names the field and the mend. What is refused here is the *client's* mistake; a program that merely fails
gets a verdict.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from deepcoder_contracts.judge import JudgeRequest, Kind, Problem, Scoring, TestCase
from deepcoder_contracts.judgeable import misfit
from deepcoder_sandbox.compare.values import check_depth


@dataclass(eq=False)  # not frozen: whoever passes an exception on sets its traceback
class Refused(Exception):
    """A request that is not judged."""

    error: str
    field: str | None = None

    def __str__(self) -> str:
        return self.error

    def problem(self) -> Problem:
        """Return the body of the answer."""
        return Problem(error=self.error, field=self.field)


MAX_STRUCTURE_BYTES: Final = 1 << 20
"""Most JSON outside of its texts: enough for ten thousand tests, generously laid out."""

_TEXT = re.compile(rb'"[^"\\]*+(?:\\.?+[^"\\]*+)*+"?+', re.DOTALL)
"""A JSON text. It matches at every quote, one without an end too: looking for such again and again would be slow."""


def check_structure(body: bytes | bytearray) -> None:
    """Raise Refused where a body is no texts but a flood of values: reading it takes a hundred times its memory."""
    if len(body) <= MAX_STRUCTURE_BYTES:
        return
    outside = end = 0
    for text in _TEXT.finditer(body):
        outside += text.start() - end
        end = text.end()
        if outside > MAX_STRUCTURE_BYTES:
            break
    else:
        outside += len(body) - end
    if outside > MAX_STRUCTURE_BYTES:
        raise Refused(
            f"body: more than {MAX_STRUCTURE_BYTES} bytes of JSON outside of its texts, which no request has: send"
            " code and tests as JSON strings",
            "body",
        )


def parse_request(body: bytes | bytearray) -> JudgeRequest:
    """Return the request in `body`. Raises Refused naming the field."""
    check_structure(body)
    try:
        return JudgeRequest.model_validate_json(body)
    except ValidationError as error:
        raise Refused(*explain(error)) from None


def explain(error: ValidationError) -> tuple[str, str | None]:
    """Return (message, field) of the first thing wrong; never the offending input."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or None
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        field = "body"
    elif field is None:
        field = next((name for name in ("tests", "fn_name") if name in message), "body")
    return (f"{field}: {message}" if field else message), field


def check(request: JudgeRequest, tests: tuple[TestCase, ...], max_memory_mb: int | None = None) -> None:
    """Raise Refused where a well-formed request cannot be judged as asked."""
    _check_texts(request, tests)
    if "\0" in request.code:
        raise Refused("code: contains a NUL byte, which no Python source may: remove it", "code")
    if max_memory_mb is not None and request.memory_limit_mb > max_memory_mb:
        raise Refused(
            f"memory_limit_mb: {request.memory_limit_mb} is more than this judge's {max_memory_mb}: ask for less, or"
            " give its pods more memory and raise --max-memory-mb",
            "memory_limit_mb",
        )
    if request.scoring is Scoring.LIVECODEBENCH and not request.stop_on_first_failure:
        raise Refused(
            "stop_on_first_failure: scoring livecodebench always stops there: leave it out, or use strict",
            "stop_on_first_failure",
        )
    if request.kind is Kind.FUNCTION:
        _check_depth(tests)
    wrong = misfit(request.kind, request.scoring, request.float_tolerance, tests)
    if wrong is not None:
        raise Refused(f"{wrong.field}: {wrong.why}", wrong.field)


def _check_texts(request: JudgeRequest, tests: tuple[TestCase, ...]) -> None:
    """Refuse lone surrogates: a body of JSON cannot hold them, a text of Python can, and nothing could pass them on."""
    _check_text("id", request.id)
    _check_text("code", request.code)
    for index, test in enumerate(tests):
        _check_text(f"tests.{index}.input", test.input)
        _check_text(f"tests.{index}.output", test.output)


def _check_text(field: str, text: str) -> None:
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise Refused(
            f"{field}: holds a lone surrogate at character {error.start}, which is no text: replace it, or decode its"
            " source as what it is",
            field,
        ) from None


def _check_depth(tests: tuple[TestCase, ...]) -> None:
    for index, test in enumerate(tests):
        for field, text in (("input", test.input), ("output", test.output)):
            try:
                check_depth(text)
            except ValueError as error:
                name = f"tests.{index}.{field}"
                raise Refused(f"{name}: {error}: flatten it, or leave the test out", name) from None
