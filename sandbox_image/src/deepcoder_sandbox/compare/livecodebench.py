"""LiveCodeBench's comparison, exactly (testing_util.py at commit 28fef95), on the judge's side of the boundary.

After stripping, the number of lines must be equal, and each line must be equal as text or as a list of decimals. There
is no tolerance. `sNaN` cannot be compared, and spoils the whole result: `Collapsed`. `deepcoder_sandbox.lcb_session`
calls this; the program's side is `deepcoder_sandbox.worker.livecodebench`.

The output is read line by line, never as one text, because one non-ASCII character would make that four times as large.
A line far longer than the expected one is wrong without being read, unlike in the harness.
"""

from __future__ import annotations

from decimal import Decimal, DecimalException, InvalidOperation
from typing import Any

from deepcoder_contracts.strict import OddDict, excerpt
from deepcoder_sandbox.compare.values import Opaque

_INTEGER_BITS = 166_096  # 10 ** 50_000 has one bit more
_SHOWN_CHARS = 80
_SHOWN_BYTES = 4 * _SHOWN_CHARS
_TIMES_EXPECTED, _BYTES_MORE = 16, 1 << 20
_PIECE = 1 << 12


class Collapsed(Exception):
    """The harness's own comparison failed: its whole result is [-4]."""


def compare_output(got: bytes, expected: str) -> str | None:
    """Return None if `got`, which need not be UTF-8, is right, else where it differs. Raises Collapsed."""
    expected = expected.strip()
    if got.strip() == expected.encode():
        return None
    start, end = _strip(got, 0, len(got))
    wanted_lines = expected.split("\n")
    lines = got.count(b"\n", start, end) + 1
    if lines != len(wanted_lines):
        return f"{lines} lines instead of {len(wanted_lines)}"
    for index, wanted in enumerate(wanted_lines):
        line_end = got.find(b"\n", start, end)
        if line_end < 0:
            line_end = end
        if not _lines_equal(got, start, line_end, wanted.strip()):
            start, line_end = _strip(got, start, line_end)
            return f"line {index + 1} differs: got {excerpt(got[start : min(line_end, start + _SHOWN_BYTES)])}"
        start = line_end + 1
    return None


def _lines_equal(got: bytes, start: int, end: int, wanted: str) -> bool:
    encoded = wanted.encode()
    if end - start < _PIECE and got[start:end].strip() == encoded:
        return True
    start, end = _strip(got, start, end)
    if end - start == len(encoded) and got.startswith(encoded, start):
        return True
    if end - start > _TIMES_EXPECTED * len(encoded) + _BYTES_MORE:
        return False
    # invalid UTF-8 becomes characters that no expected text can contain
    return _equal_as_decimals(got[start:end].decode("utf-8", "surrogateescape"), wanted)


def _strip(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Return the bounds of data[start:end] without surrounding white space as str.strip sees it, read in pieces."""
    while start < end:
        cut = _character_start(data, min(start + _PIECE, end), end)
        text = data[start:cut].decode("utf-8", "surrogateescape").lstrip()
        start = cut - len(text.encode("utf-8", "surrogateescape"))
        if text:
            break
    while start < end:
        cut = _character_start(data, max(start, end - _PIECE), end)
        text = data[cut:end].decode("utf-8", "surrogateescape").rstrip()
        end = cut + len(text.encode("utf-8", "surrogateescape"))
        if text:
            break
    return start, end


def _character_start(data: bytes, index: int, end: int) -> int:
    """Return where the next character starts, at most three bytes further."""
    for beyond in range(3):
        if index + beyond >= end or data[index + beyond] & 0xC0 != 0x80:
            return index + beyond
    return index + 3


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
    """Return None if `got == expected`, with a top-level tuple as a list, else what was returned."""
    if isinstance(got, tuple):
        got = list(got)
    if not isinstance(got, Opaque | OddDict) and got == expected:
        return None
    return f"returned {excerpt(_shown(got).encode('utf-8', 'replace'))}"


def cannot_be_shown(got: Any) -> bool:
    """Return whether the harness would fail to print a wrong value, because of an integer that is too long."""
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
