"""taco-compat: the comparator of DeepCoder's released reward, defects included, for comparing with published curves.

From rllm's TACO grader of April 2025 (recipe: "stripped_string_compare" and what follows it). It is lenient in ways
that nobody meant, and 97 % of the released training problems were judged by it:

- Two tokens that differ and are not both numbers count as *equal*: "YES" passes for "NO", as long as the lines have
  as many tokens each.
- Numbers are equal within 1e-5 of relative difference: 1000000 passes for 1000009.
- Tokens are taken apart into characters and compared as sets of sets: "12" passes for "1 2", lines pass in any order.
- Digits of one long number pass for lines of single digits.
- Exit status is ignored: right output and then a crash passes.

It is never a default. Its work is bounded all the same: a hostile output's tokens are never put into a list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from deepcoder_contracts.strict import OddDict
from deepcoder_sandbox.compare.values import Opaque

_LONG_TEXT, _NUMBER_CHARS = 1000, re.compile(r"[-+.\d_einfatyEINFATY]*")
_LINE = re.compile(r"\S[^\n]*")
_PIECE = re.compile(r"\S.{,65536}\S*", re.DOTALL)
_TIMES_EXPECTED, _BYTES_MORE = 16, 1 << 20
_MAX_ODD_KEYS = 5_000  # numbers chosen to collide take time that grows with the square of this


def compare_output(got: bytes, expected: str) -> str | None:
    """Return None if the released comparator would accept `got` as read from a pipe: UTF-8, any line ending."""
    if not got.isascii() and len(got) > _TIMES_EXPECTED * len(expected) + _BYTES_MORE:
        return f"{len(got)} bytes of output are far more than expected"  # a str could take four times as many
    try:
        text = got.decode()
    except UnicodeDecodeError:
        return "the output is not UTF-8"
    return compare_text(text.replace("\r\n", "\n").replace("\r", "\n"), expected)


def compare_text(got: str, expected: str) -> str | None:
    """Return None if the released comparator would accept `got`."""
    got = got.rstrip("\n")
    if _lines_match(got, expected) or _digits_match(got, expected) or _sets_match(got, expected):
        return None
    return "the output differs even by the released comparator"


def is_close(got: float, expected: float) -> bool:
    """Return what numpy.isclose returns with its defaults."""
    if got == expected:
        return True
    if not (math.isfinite(got) and math.isfinite(expected)):
        return False
    return abs(got - expected) <= 1e-8 + 1e-5 * abs(expected)


def _lines_match(got: str, expected: str) -> bool:
    got, expected = got.strip(), expected.strip()
    if got == expected:
        return True
    try:
        return is_close(_number(got), _number(expected))
    except ValueError:
        pass
    wanted = [line.strip() for line in expected.split("\n") if line.strip()]
    lines = 0
    for _ in _LINE.finditer(got):
        lines += 1
        if lines > len(wanted):
            return False
    if lines != len(wanted):
        return False
    given = (match.group() for match in _LINE.finditer(got))
    return all(_tokens_match(line, wanted_line) for line, wanted_line in zip(given, wanted, strict=True))


def _number(text: str) -> float:
    """Return float(text). For a long text that is no number, the error does not quote all of it."""
    if len(text) > _LONG_TEXT and not _NUMBER_CHARS.fullmatch(text):
        raise ValueError("no number")
    return float(text)


def _tokens_match(line: str, wanted: str) -> bool:
    wanted_tokens = wanted.split()
    tokens = line.split(None, len(wanted_tokens))
    if len(tokens) != len(wanted_tokens):
        return False
    for token, wanted_token in zip(tokens, wanted_tokens, strict=True):
        try:
            if token != wanted_token and not is_close(_number(token), _number(wanted_token)):
                return False
        except ValueError:
            continue  # the defect: not numbers, so the difference is ignored
    return True


def _wanted_lines(expected: str) -> list[str]:
    return [line.strip() for line in expected.split("\n") if line]


def _digits_match(got: str, expected: str) -> bool:
    """Compare each *character* of the output with each line."""
    wanted = _wanted_lines(expected)
    if len(got) != len(wanted):
        return False
    try:
        pairs = zip([float(character) for character in got], [float(line) for line in wanted], strict=True)
        return all(is_close(character, line) for character, line in pairs)
    except ValueError:
        return False


def _sets_match(got: str, expected: str) -> bool:
    """Compare the set of the output's tokens, each as a set of characters, with the lines as sets of their tokens."""
    wanted = [line.split() for line in _wanted_lines(expected)]
    return _same_sets(got, wanted, lambda part: part) or _same_sets(got, wanted, lambda part: round(float(part), 3))


def _same_sets(got: str, wanted: list[list[str]], read: Callable[[str], Any]) -> bool:
    try:
        expected_sets = {frozenset(read(token) for token in line) for line in wanted}
        seen: set[frozenset[Any]] = set()
        for match in _PIECE.finditer(got):
            for token in set(match.group().split()):
                characters = frozenset(read(character) for character in set(token))
                if characters not in expected_sets:
                    return False
                seen.add(characters)
    except (ValueError, OverflowError):
        return False
    return seen == expected_sets


def compare_value(got: Any, expected: Any) -> bool:
    """Return whether the released grader would accept a returned value as the expected one or as its first item."""
    expected = _with_integer_keys(expected)
    got = _plain(got)
    if isinstance(got, tuple):
        got = list(got)
    if isinstance(got, list) and len(got) == 1:
        got = [_plain(got[0])]
    if not (isinstance(expected, list) and expected):
        return bool(got == expected)
    if got == expected or got == expected[0]:
        return True
    if isinstance(got, list) and got and isinstance(got[0], tuple):
        return all(isinstance(item, Iterable) for item in got) and [list(item) for item in got] == expected[0]
    return False


def _with_integer_keys(expected: Any) -> Any:
    """Make the first item's keys integers again if possible, as the released grader does; JSON has strings only."""
    first = expected[0] if isinstance(expected, list) and expected else expected
    if not isinstance(first, dict):
        return expected
    try:
        return [{int(key): item for key, item in first.items()}]
    except ValueError:
        return expected


def _plain(value: Any) -> Any:
    """Return a dictionary even if its keys are not strings. A value without a JSON counterpart equals nothing."""
    if isinstance(value, OddDict) and len(value.pairs) <= _MAX_ODD_KEYS:
        try:
            return dict(value.pairs)
        except TypeError:
            return Opaque("dict")
    return value
