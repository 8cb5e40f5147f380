"""Comparators against independent, plain re-statements of what they mean, on inputs that hypothesis draws.

Short and always the same in `make test`; the long form draws afresh, many times as much, and asks LiveCodeBench's own
functions too where `DEEPCODER_LIVECODEBENCH` names a checkout. What was found is kept as an example.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, UserString, defaultdict, deque
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from types import MappingProxyType

import pytest
from fuzz_settings import LONG, SHORT
from hypothesis import given
from hypothesis import strategies as st

from deepcoder_contracts import strict
from deepcoder_sandbox.compare import livecodebench, taco, values
from deepcoder_sandbox.worker import values as encoding


def short_and_long(*examples, **strategies):
    """Make a property two tests: one that is short and always the same, and a long one."""

    def decorate(check):
        def short():
            for drawn in examples:
                check(*drawn)
            SHORT(given(**strategies)(check))()

        @pytest.mark.long
        def long():
            LONG(given(**strategies)(check))()

        frame = sys._getframe(1).f_globals
        frame[f"test_{check.__name__}"] = short
        frame[f"test_{check.__name__}_many_times"] = pytest.mark.timeout(1800)(long)
        return check

    return decorate


pieces = st.sampled_from(
    (
        *("1", "2", "0", "12", "-", "+", ".", "e", "E5", "_", "nan", "NaN", "sNaN", "inf", "a", "YES", "no", "1e9999"),
        *(" ", " ", "\n", "\n", "\r", "\r\n", "\t", "\x0b", "\x0c", "\x1c", "\x85", "\xa0", "\u2028", "\u3000"),
        *("１", "٣", "½", "é", "\x00", "😀"),
    )
)
texts = st.lists(pieces, max_size=12).map("".join)
outputs = texts.map(str.encode) | st.binary(max_size=12)


@st.composite
def near_pairs(draw):
    """An expected text and an output that is often nearly the same."""
    expected = draw(st.lists(pieces, max_size=10))
    changes = draw(st.lists(st.tuples(st.integers(0, 9), pieces | st.just("")), max_size=2))
    got = list(expected)
    for place, piece in changes:
        got[place : place + 1] = [piece]
    return "".join(got).encode(), "".join(expected)


pairs = near_pairs() | st.tuples(outputs, texts)


@short_and_long(pair=pairs)
def strict_is_equality_of_tokens(pair):
    got, expected = pair
    assert (strict.compare_text(got, expected) is None) is (got.split() == expected.encode().split())


@short_and_long(
    ((b"1e9998", "1e9999"), 1e-9),
    ((b"1e99991", "1e9999"), 1e-9),
    pair=pairs,
    tolerance=st.sampled_from([1e-9, 1e-3, 0.5]),
)
def strict_tolerance_is_a_bound_on_each_number(pair, tolerance):
    got, expected = pair

    def number(token):
        if not set(token) <= set(b"0123456789+-.eE"):
            return None
        try:
            value = float(token)
        except ValueError:
            return None
        exponent = token.lower().partition(b"e")[2].lstrip(b"+-")
        return value if math.isfinite(value) and len(token) <= 400 and len(exponent) <= 4 else None

    def close(one, other):
        a, b = number(one), number(other)
        return one == other or (None not in (a, b) and abs(a - b) <= tolerance * max(1.0, abs(b)))

    tokens, wanted = got.split(), expected.encode().split()
    right = len(tokens) == len(wanted) and all(map(close, tokens, wanted))
    assert (strict.compare_text(got, expected, tolerance) is None) is right


def harness_compares(got: str, expected: str):
    """What LiveCodeBench's grading says of two texts: True, False, or None where it fails itself."""
    lines, wanted = ([line.strip() for line in text.strip().split("\n")] for text in (got, expected))
    if len(lines) != len(wanted):
        return False
    for line, wanted_line in zip(lines, wanted, strict=True):
        if line == wanted_line:
            continue
        try:
            decimals = [[Decimal(token) for token in text.split()] for text in (line, wanted_line)]
        except (InvalidOperation, ValueError):
            return False
        try:
            if decimals[0] != decimals[1]:
                return False
        except InvalidOperation:
            return None
    return True


def ours_compares(got: bytes, expected: str):
    try:
        return livecodebench.compare_output(got, expected) is None
    except livecodebench.Collapsed:
        return None


@short_and_long((("\ud800".encode("utf-8", "surrogatepass"), "\ufffd" * 3),), pair=pairs)
def livecodebench_compares_as_its_harness(pair):
    got, expected = pair
    assert ours_compares(got, expected) is harness_compares(got.decode("utf-8", "surrogateescape"), expected)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_harness_compares_as_it_is_re_stated_here():
    checkout = os.environ.get("DEEPCODER_LIVECODEBENCH")
    if not checkout:
        pytest.skip("DEEPCODER_LIVECODEBENCH names no checkout of LiveCodeBench")
    sys.path.insert(0, checkout)
    testing_util = pytest.importorskip("lcb_runner.evaluation.testing_util")

    @LONG
    @given(pairs)
    def check(pair):
        got, expected = pair[0].decode("utf-8", "surrogateescape"), pair[1]
        lines, wanted = testing_util.get_stripped_lines(got), testing_util.get_stripped_lines(expected)
        told = len(lines) == len(wanted)
        for line, wanted_line in zip(lines, wanted, strict=False):
            if not told or line == wanted_line:
                continue
            read, decimals = testing_util.convert_line_to_decimals(line)
            wanted_read, wanted_decimals = testing_util.convert_line_to_decimals(wanted_line)
            try:
                told = read and wanted_read and decimals == wanted_decimals
            except InvalidOperation:
                told = None
                break
        assert harness_compares(got, expected) is told

    check()


def released_compares(got: bytes, expected: str) -> bool:
    """What DeepCoder's released reward says, from its description: a chain of ever more lenient comparisons."""
    try:
        text = got.decode().replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
    except UnicodeDecodeError:
        return False
    if text.strip() == expected.strip():
        return True
    numbers = [as_float(text.strip()), as_float(expected.strip())]
    if None not in numbers:
        if isclose(*numbers):
            return True
    elif same_shape(text, expected):
        return True
    lines = [line.strip() for line in expected.split("\n") if line]
    digits, wanted = [as_float(character) for character in text], [as_float(line) for line in lines]
    if len(digits) == len(wanted) and None not in digits + wanted and all(map(isclose, digits, wanted)):
        return True
    sets = {frozenset(token) for token in text.split()}, {frozenset(line.split()) for line in lines}
    if sets[0] == sets[1]:
        return True
    try:
        rounded = [{frozenset(round(float(part), 3) for part in one) for one in many} for many in sets]
    except (ValueError, OverflowError):
        return False
    return rounded[0] == rounded[1]


def as_float(text):
    try:
        return float(text)
    except ValueError:
        return None


def isclose(one, other):
    return one == other or (
        math.isfinite(one) and math.isfinite(other) and abs(one - other) <= 1e-8 + 1e-5 * abs(other)
    )


def same_shape(text, expected):
    lines, wanted = ([line.split() for line in one.split("\n") if line.strip()] for one in (text, expected))
    if list(map(len, lines)) != list(map(len, wanted)):
        return False
    tokens = [both for line, other in zip(lines, wanted, strict=True) for both in zip(line, other, strict=True)]
    differing = [(as_float(one), as_float(other)) for one, other in tokens if one != other]
    return all(isclose(*both) for both in differing if None not in both)


@short_and_long(((b"1\r2", "1\n3"),), ((b"YES\xff", "NO"),), ((b"YES", "NO"),), pair=pairs)
def taco_compat_compares_as_the_released_reward(pair):
    assert (taco.compare_output(*pair) is None) is released_compares(*pair)


numbers = st.integers(-(10**30), 10**30) | st.floats(width=32) | st.sampled_from([0.1, -0.0, 2.0**60, 2**53 + 1, True])
json_scalars = st.none() | st.booleans() | numbers | st.sampled_from(["", "a", "1", "é", "\ud800", "😀"])
odd_scalars = (
    st.fractions(max_denominator=8)
    | st.decimals(allow_nan=False, places=2, min_value=-99, max_value=99)
    | st.sampled_from([3 + 0j, b"a", frozenset({1}), range(2), Decimal("NaN"), float("nan"), UserString("a"), Ellipsis])
)


def containers(items):
    keyed = st.dictionaries(st.sampled_from(["a", "b", "1"]), items, max_size=3)
    return (
        st.lists(items, max_size=3)
        | st.lists(items, max_size=3).map(tuple)
        | keyed
        | keyed.map(OrderedDict)
        | keyed.map(lambda given: defaultdict(int, given))
        | st.dictionaries(st.sampled_from([1, None, True, 1.5, "a", (1,)]), items, max_size=2)
        | st.lists(items, max_size=2).map(deque)
        | st.lists(items, max_size=2).map(UserList)
        | keyed.map(UserDict)
        | keyed.map(ChainMap)
        | keyed.map(MappingProxyType)
        | st.just(Counter("ab"))
    )


any_values = st.recursive(json_scalars | odd_scalars, containers, max_leaves=8)
json_values = st.recursive(
    json_scalars,
    lambda items: st.lists(items, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "1"]), items, max_size=3),
    max_leaves=8,
)


def as_json(value):
    """The JSON value that resembles a value most."""
    if isinstance(value, list | tuple | deque | UserList):
        return [as_json(item) for item in value]
    if hasattr(value, "items"):
        return {str(key): as_json(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return float(value) if isinstance(value, Fraction | Decimal) else str(value)


def decoded(value, text, json_only=False):
    """A value as it comes out on the other side of the wall; the text is padded, for the bound on its length."""
    return values.decode(encoding.encode(value), text + " " * 4096, json_only=json_only)


@short_and_long(
    (float("nan"), None),
    (json.loads("NaN"), None),
    ([json.loads("NaN")], None),
    ([float("nan")], None),
    (UserDict(a=1), None),
    value=any_values,
    other=st.none() | json_values.map(lambda value: [value]),
)
def livecodebench_finds_equal_what_python_finds_equal(value, other):
    text = json.dumps(as_json(value) if other is None else other[0])
    expected = json.loads(text)
    plainly = (list(value) if isinstance(value, tuple) else value) == expected
    assert (livecodebench.compare_value(decoded(value, text), expected) is None) is bool(plainly), (value, text)


@short_and_long(value=json_values, other=json_values)
def strict_finds_equal_what_is_the_same_json(value, other):
    def canonical(given):
        if isinstance(given, bool) or given is None or isinstance(given, str):
            return repr(given)
        if isinstance(given, int | float):
            return "nan" if given != given else str(Fraction(given)) if abs(given) != math.inf else repr(given)
        if isinstance(given, dict):
            return "{" + ",".join(f"{key!r}:{canonical(given[key])}" for key in sorted(given)) + "}"
        return "[" + ",".join(map(canonical, given)) + "]"

    text = json.dumps(value)
    assert strict.equal_as_json(decoded(value, text, json_only=True), json.loads(text))
    same = canonical(value) == canonical(other)
    assert strict.equal_as_json(decoded(other, text, json_only=True), json.loads(text)) is same


@short_and_long(value=any_values, expected=json_values)
def comparing_any_value_raises_nothing_unforeseen(value, expected):
    text = json.dumps(expected)
    compare_all(encoding.encode(value), text)


def compare_all(encoded, text):
    expected = strict.parse_json(text)
    for json_only in (True, False):
        try:
            got = values.decode(encoded, text + " " * 4096, json_only=json_only)
        except ValueError:
            continue
        try:
            strict.equal_as_json(got, expected, 1e-6)
            strict.equal_as_json(got, expected)
            taco.compare_value(got, expected)
            livecodebench.cannot_be_shown(got)
            livecodebench.compare_value(got, expected)
        except (ArithmeticError, RecursionError):
            pass  # the callers' word for what cannot be compared


encoded_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda items: (
        st.lists(items, max_size=3)
        | st.dictionaries(st.sampled_from("itdFDconw?"), items, min_size=1, max_size=2)
        | st.fixed_dictionaries({"d": st.lists(st.lists(items, max_size=3), max_size=3)})
        | st.fixed_dictionaries({"F": st.lists(st.sampled_from(["0x1", "-0x2", "0x0", "x", ""]), max_size=3)})
        | st.fixed_dictionaries({"D": st.sampled_from(["1", "sNaN", "NaN", "1e999999999", "x"])})
    ),
    max_leaves=8,
)


@short_and_long(({"D": "sNaN"}, 1), ({"w": {"w": []}}, []), encoded=encoded_values, expected=json_values)
def hostile_encoding_raises_nothing_unforeseen(encoded, expected):
    compare_all(json.dumps(encoded).encode(), json.dumps(expected))


@short_and_long(data=st.binary(max_size=40))
def hostile_bytes_raise_nothing_unforeseen(data):
    compare_all(data, "[1]")
