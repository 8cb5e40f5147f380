"""Checks whether a request makes sense before it costs anything, beyond the contract's types.

Every refusal names the field and the fix. What is refused here is the *client's* mistake; a program that merely fails
gets a verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from deepcoder_contracts.json_flood import Flood, flood
from deepcoder_contracts.judge import MAX_CODE_BYTES, MAX_TESTS, JudgeRequest, Problem, Scoring, TestCase
from deepcoder_contracts.judgeable import misfit, no_text


@dataclass(eq=False)  # not frozen: raising an exception sets its traceback
class Refused(Exception):
    """A request cannot be judged."""

    error: str
    field: str | None = None

    def __str__(self) -> str:
        return self.error

    def problem(self) -> Problem:
        """Return the body of the response."""
        return Problem(error=self.error, field=self.field)


MAX_STRUCTURE_BYTES: Final = 1 << 20
"""Maximum bytes of JSON outside its strings: enough for ten thousand tests in a generous layout."""

MAX_TEXTS: Final = 4 * MAX_TESTS + 100
"""Maximum JSON strings of a body, names of fields included: a test has four."""

_SHOWN_CHARS = 200


def check_structure(body: bytes | bytearray) -> None:
    """Raise Refused if a body is a flood of values instead of strings: parsing it takes a hundred times its memory."""
    match flood(body, texts=MAX_TEXTS, structure_bytes=MAX_STRUCTURE_BYTES):
        case Flood.TEXTS:
            raise Refused(
                f"body: more than {MAX_TEXTS} JSON strings: send at most {MAX_TESTS} tests, and no other fields",
                "body",
            )
        case Flood.STRUCTURE:
            raise Refused(
                f"body: more than {MAX_STRUCTURE_BYTES} bytes of JSON outside its strings, which no request has: send"
                " code and tests as JSON strings",
                "body",
            )


def parse_request(body: bytes | bytearray) -> JudgeRequest:
    """Return the request in `body`. Raises Refused, which names the field."""
    check_structure(body)
    try:
        return JudgeRequest.model_validate_json(body)
    except ValidationError as error:
        raise Refused(*explain(error)) from None


def explain(error: ValidationError) -> tuple[str, str | None]:
    """Return (message, field) of the first error, never the offending input. An unknown field's name is truncated."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])[:_SHOWN_CHARS] or None
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        field = "body"
    elif field is None:
        field = next((name for name in ("tests", "fn_name") if name in message), "body")
    return (f"{field}: {message}" if field else message), field


def check(request: JudgeRequest, tests: tuple[TestCase, ...], max_memory_mb: int | None = None) -> None:
    """Raise Refused if a well-formed request cannot be judged as requested."""
    for field, text in (("id", request.id), ("code", request.code)):
        if (wrong := no_text(field, text)) is not None:
            raise Refused(f"{field}: {wrong.why}", field)
    if (length := len(request.code.encode())) > MAX_CODE_BYTES:
        raise Refused(f"code: {length} bytes are more than {MAX_CODE_BYTES}: send a shorter program", "code")
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
    wrong = misfit(request.kind, request.scoring, request.float_tolerance, tests)
    if wrong is not None:
        raise Refused(f"{wrong.field}: {wrong.why}", wrong.field)
