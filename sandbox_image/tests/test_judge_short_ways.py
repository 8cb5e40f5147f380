"""Ways that most programs take since they are short or plain: nothing else comes of them than of the long ways."""

from __future__ import annotations

import importlib

import pytest

from deepcoder_sandbox.worker import lcb_preamble
from deepcoder_sandbox.worker.packets import CANCELLED, INLINE_BYTES, decode_ended

_EXPORTED = [name for module in lcb_preamble.SELDOM for name in importlib.import_module(module).__all__]
_ELSEWHERE = (
    "globals()",
    "vars(f)",
    "dir()",
    "gc",
    "sys.modules",
    "inspect",
    "f.__dict__",
    "__builtins__",
    "ｍean([1])",
)


@pytest.mark.parametrize("over", [-1, 0, 1, INLINE_BYTES])
def test_a_program_is_handed_over_whole_whether_or_not_it_fits_a_packet(judge_once, over):
    code, first, second = "print(len(input()), {!r})", "x" * 100, "y" * 50
    filling = "z" * (INLINE_BYTES + over - len(code.format("")))
    tests = [(given, f"{len(given)} {filling}") for given in (first, second)]
    answer = judge_once(code.format(filling), *tests, scoring="livecodebench")
    assert answer.passed is True, answer


def test_a_method_is_called_whether_or_not_its_program_fits_a_packet(judge_once):
    for length in (1, INLINE_BYTES):
        code = f"class Solution:\n    def f(self, n):\n        return len({'z' * length!r}) + n"
        tests = [("1", str(length + 1)), ("-3", str(length - 3))]
        answer = judge_once(code, *tests, scoring="livecodebench", kind="function", fn_name="f")
        assert answer.passed is True, answer


def test_a_short_program_reads_long_inputs(judge_once):
    tests = [("x" * length, str(length)) for length in (1, INLINE_BYTES + 1, 2, 3 * INLINE_BYTES)]
    answer = judge_once("print(len(input()))", *tests, scoring="livecodebench")
    assert answer.passed is True, answer


@pytest.mark.parametrize("named", [*_EXPORTED, *lcb_preamble.SELDOM, *_ELSEWHERE])
def test_a_program_that_may_see_a_name_finds_it(named):
    names: dict[str, object] = {}
    lcb_preamble.put_seldom(f"print({named})", names)
    assert {"mean", "timedelta"} <= names.keys()


@pytest.mark.parametrize("source", ["print(1)", "meant = input()", "print('modest')", "s = '≤ 3'"])
def test_a_program_that_sees_none_pays_for_none(source):
    names: dict[str, object] = {}
    lcb_preamble.put_seldom(source, names)
    assert not names


@pytest.mark.parametrize("clean", [False, True])
def test_a_run_that_was_cancelled_is_told_without_numbers(clean):
    ended = decode_ended(CANCELLED[clean])
    assert (ended.killed_for, ended.clean, ended.signal) == ("cancelled", clean, 9)
