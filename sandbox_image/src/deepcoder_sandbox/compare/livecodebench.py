"""LiveCodeBench's comparison, exactly (testing_util.py at commit 28fef95), on this side of the wall.

Lines after stripping, in equal number; each equal as text, or as lists of decimals. No tolerance. `sNaN` cannot be
compared, which takes the whole result down: `Collapsed`. Asked by `deepcoder_sandbox.lcb_session`; the program's half
is `deepcoder_sandbox.worker.livecodebench`.
"""

from __future__ import annotations

from decimal import Decimal, DecimalException, InvalidOperation
from typing import Any

from deepcoder_contracts.strict import OddDict, excerpt
from deepcoder_sandbox.compare.values import Opaque

_INTEGER_BITS = 166_096  # 10 ** 50_000 has one bit more
_SHOWN_CHARS = 80


class Collapsed(Exception):
    """The harness's own comparison failed: its whole result is [-4]."""


def compare_text(got: str, expected: str) -> str | None:
    """Return None if `got` is right, else where it differs. Raises Collapsed."""
    got, expected = got.strip(), expected.strip()
    lines = got.count("\n") + 1
    expected_lines = expected.split("\n")
    if lines != len(expected_lines):
        return f"{lines} lines instead of {len(expected_lines)}"
    for index, (line, wanted) in enumerate(zip(got.split("\n"), expected_lines, strict=True)):
        line, wanted = line.strip(), wanted.strip()
        if line != wanted and not _equal_as_decimals(line, wanted):
            return f"line {index + 1} differs: got {excerpt(line[:_SHOWN_CHARS].encode('utf-8', 'replace'))}"
    return None


def _equal_as_decimals(line: str, wanted: str) -> bool:
    wanted_tokens = wanted.split()
    tokens = line.split(None, len(wanted_tokens))
    if len(tokens) != len(wanted_tokens):
        return False
    decimals, wanted_decimals = _decimals(tokens), _decimals(wanted_tokens)
    if decimals is None or wanted_decimals is None:
        return False
    try:
        return decimals == wanted_decimals
    except InvalidOperation as error:
        raise Collapsed("InvalidOperation: a signaling NaN cannot be compared") from error


def _decimals(tokens: list[str]) -> list[Decimal] | None:
    try:
        return [Decimal(token) for token in tokens]
    except (DecimalException, ValueError):
        return None


def compare_value(got: Any, expected: Any) -> str | None:
    """Return None if `got == expected` after a top-level tuple became a list, else what it is."""
    if isinstance(got, tuple):
        got = list(got)
    if not isinstance(got, Opaque | OddDict) and got == expected:
        return None
    return f"returned {excerpt(_shown(got).encode('utf-8', 'replace'))}"


def cannot_be_shown(got: Any) -> bool:
    """Whether the harness, wanting to show a wrong value, would fail on an integer too long to print."""
    pending = [got]
    while pending:
        value = pending.pop()
        if isinstance(value, int) and value.bit_length() > _INTEGER_BITS:
            return True
        if isinstance(value, list | tuple):
            pending.extend(value)
        elif isinstance(value, dict):
            pending.extend(value.values())
    return False


def _shown(value: Any) -> str:
    try:
        return repr(value)[: _SHOWN_CHARS + 1]
    except (ValueError, RecursionError):
        return "a value too long to show"
