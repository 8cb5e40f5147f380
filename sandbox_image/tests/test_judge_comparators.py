"""Comparators as pure functions: what counts as right in each scoring, and that hostile text costs nothing extra."""

import json
import random
import tracemalloc
from collections import UserDict
from decimal import Decimal
from fractions import Fraction

import pytest
from time_growth import SHORTER, outgrows

from deepcoder_contracts import strict
from deepcoder_contracts.judgeable import check_depth
from deepcoder_sandbox.compare import livecodebench, taco, values
from deepcoder_sandbox.compare.livecodebench import Collapsed
from deepcoder_sandbox.worker import values as encoding


def decode(encoded, **options):
    """Decode as if something of the same size were expected."""
    return values.decode(encoded, "x" * len(encoded), **options)


@pytest.mark.parametrize(
    ("got", "expected", "right"),
    [
        (b"1 2\n", "1 2", True),
        (b"1\n2", "1 2", True),
        (b"  1   2  ", "1 2\n", True),
        (b"12", "1 2", False),
        (b"1 2 3", "1 2", False),
        (b"1", "1 2", False),
        (b"", "", True),
        (b"", "1", False),
        (b"1.0", "1", False),
        (b"yes", "YES", False),
        ("é".encode(), "é", True),
        (b"\xff", "é", False),
        (b"1\x002", "1 2", False),
    ],
)
def test_strict_compares_tokens_as_written(got, expected, right):
    assert (strict.compare_text(got, expected) is None) is right


@pytest.mark.parametrize(
    ("got", "expected", "right"),
    [
        (b"1.0000001", "1", True),
        (b"1.1", "1", False),
        (b"1000000.5", "1000000", True),
        (b"0.0000005", "0", True),
        (b"1e3", "1000", True),
        (b"nan", "1", False),
        (b"nan", "nan", True),
        (b"inf", "1e999", False),
        (b"1_0", "10", False),
        (b"abc", "abd", False),
        (b"x 1.0000001", "x 1", True),
        (b"1" * 1000, "1", False),
    ],
)
def test_strict_tolerance_is_for_numbers_alone(got, expected, right):
    assert (strict.compare_text(got, expected, 1e-6) is None) is right


def test_line_far_longer_than_the_expected_one_is_wrong_unread():
    assert livecodebench.compare_output(b"0" * (1 << 20) + b"1", "1") is None  # as decimals they are equal
    assert livecodebench.compare_output(b"0" * ((1 << 20) + 16) + b"1", "1") is not None


@pytest.mark.parametrize("got", [b"a " * (8 << 20), b"\n" * (16 << 20), b"1" * (16 << 20)])
@pytest.mark.parametrize("expected", ["1 2 3", "a " * 1000])
def test_flood_of_output_does_not_become_a_flood_of_tokens(got, expected):
    tracemalloc.start()
    try:
        assert strict.compare_text(got, expected) is not None
        assert strict.compare_text(got, expected, 1e-6) is not None
        assert livecodebench.compare_output(got, expected) is not None
        assert tracemalloc.get_traced_memory()[1] < 5 * len(got)
    finally:
        tracemalloc.stop()


PLAIN = [
    None,
    True,
    0,
    -1,
    1.5,
    float("inf"),
    "é\ud800",
    [],
    [1, [2]],
    {"a": [1]},
    10**30,
    -(10**5000),
    (1, (2,)),
    {1: 2},
]


@pytest.mark.parametrize("value", PLAIN, ids=range(len(PLAIN)))
def test_value_survives_the_wall(value):
    decoded = decode(encoding.encode(value))
    if isinstance(decoded, strict.OddDict):
        decoded = dict(decoded.pairs)
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize("value", [{1}, b"x", object(), type("L", (list,), {"__eq__": lambda a, b: True})(), range(3)])
def test_value_without_a_json_counterpart_equals_nothing(value):
    decoded = decode(encoding.encode(value))
    assert decoded != decoded
    assert not strict.equal_as_json(decoded, [])
    assert livecodebench.compare_value(decoded, []) is not None


def test_circular_or_endless_value_is_opaque():
    circle = []
    circle.append(circle)
    assert isinstance(decode(encoding.encode(circle)), values.Opaque)


@pytest.mark.parametrize(
    "broken", [b"", b"{", b"{}", b'{"t": 1}', b'{"i": "x"}', b'{"F": ["0x1", "0x0"]}', b"[" * 99999]
)
def test_broken_encoding_is_a_value_error(broken):
    with pytest.raises(ValueError):
        decode(broken)


@pytest.mark.parametrize(
    ("got", "expected", "right"),
    [
        ((1, 2), [1, 2], True),
        ([(1, 2)], [[1, 2]], True),
        (True, 1, False),
        (1, True, False),
        (2, 2.0, True),
        ({"a": (1,)}, {"a": [1]}, True),
        ({1: 2}, {"1": 2}, True),
        ({True: 2}, {"true": 2}, True),
        ({1: 2, "a": 3}, {"1": 2, "a": 3}, True),
        ({(1,): 2}, {"(1,)": 2}, False),
        ({(1,): 2}, {"None": 2}, False),
        ("1", 1, False),
        (None, None, True),
        (float("nan"), float("nan"), True),
        (float("nan"), 1, False),
        (1.0, float("nan"), False),
        (10**400, 1.5, False),
    ],
)
def test_strict_values_are_equal_as_json(got, expected, right):
    decoded = decode(encoding.encode(got))
    assert strict.equal_as_json(decoded, expected) is right


def test_strict_values_within_the_tolerance_are_equal():
    assert strict.equal_as_json([1.0000001, 10**400], [1, 10**400], 1e-6)
    assert not strict.equal_as_json([1.1], [1], 1e-6)


def test_json_integers_of_up_to_fifty_thousand_digits_are_read():
    assert strict.parse_json("9" * 50_000) == 10**50_000 - 1
    assert strict.parse_json("-" + "7" * 9001) == -7 * (10**9001 - 1) // 9
    with pytest.raises(ValueError, match="50000"):
        strict.parse_json("9" * 50_001)


def test_signaling_nan_collapses_the_whole_result():
    with pytest.raises(Collapsed):
        livecodebench.compare_output(b"sNaN", "1")
    assert livecodebench.compare_output(b"x sNaN", "1 2") is not None


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ("YES", "NO"),
        ("Alice 3", "Bob 3"),
        ("1000000", "1000009"),
        ("1\n2", "2\n1"),
        ("12", "1 2"),
        ("123", "1\n2\n3"),
        ("1\n\n2", "1\n2"),
    ],
)
def test_taco_compat_keeps_each_defect_of_the_released_comparator(got, expected):
    assert taco.compare_text(got, expected) is None
    assert strict.compare_text(got.encode(), expected) is not None or got.split() == expected.split()


@pytest.mark.parametrize(
    ("got", "expected"), [("Alice 3", "Bob 4"), ("1", "2"), ("", "1"), ("a b", "a"), ("1\n2\n3", "1\n2")]
)
def test_taco_compat_still_tells_some_things_apart(got, expected):
    assert taco.compare_text(got, expected) is not None


@pytest.mark.parametrize(
    ("got", "expected", "right"),
    [
        ([1], [1], True),
        (1, [1], True),
        ((1, 2), [1, 2], True),
        ([(1, 2)], [[[1, 2]]], True),
        ([(1, 2)], [[1, 2]], False),
        ({1: 2}, {"1": 2}, True),
        ({1: 2}, [{"1": 2}], True),
    ],
)
def test_taco_compat_takes_a_value_and_a_list_of_it_for_the_same(got, expected, right):
    assert taco.compare_value(decode(encoding.encode(got)), expected) is right


def test_taco_flood_is_bounded():
    flood = "ab " * (4 << 20)
    tracemalloc.start()
    try:
        assert taco.compare_text(flood, "1 2 3") is not None
        assert tracemalloc.get_traced_memory()[1] < 8 * len(flood)
    finally:
        tracemalloc.stop()


def test_right_output_is_right_in_every_scoring():
    chance = random.Random(7)
    for _ in range(300):
        words = [
            [str(chance.randrange(100)) for _ in range(chance.randrange(1, 5))] for _ in range(chance.randrange(1, 5))
        ]
        text = "\n".join(" ".join(line) for line in words)
        assert strict.compare_text(f"{text}\n".encode(), text) is None
        assert livecodebench.compare_output(f"{text}\n".encode(), text) is None
        assert taco.compare_text(f"{text}\n", text) is None


def test_decoding_any_bytes_raises_nothing_but_value_error():
    chance = random.Random(11)
    shapes = [b'{"t":', b"[", b"]", b"}", b"1", b'"i"', b":", b'{"d":[[', b",", b'{"c":[1,2]}', b'{"D":"x"}', b"null"]
    for _ in range(3000):
        data = b"".join(chance.choice(shapes) for _ in range(chance.randrange(1, 9)))
        try:
            json.dumps(repr(decode(data)))
        except ValueError:
            continue


def huge(bits, kind):
    number, other = (hex(random.Random(seed).getrandbits(bits)) for seed in (1, 2))
    return {
        "fraction": f'{{"F":["{number}","{other}"]}}',
        "fraction in a list": f'[{{"F":["{number}","0x3"]}}]',
        "integer": f'{{"i":"{number}"}}',
        "decimal": f'{{"D":"{"7" * (bits // 4)}"}}',
    }[kind].encode()


@pytest.mark.parametrize("kind", ["fraction", "fraction in a list", "integer", "decimal"])
@pytest.mark.parametrize("expected_bytes", [1, 1 << 20])
def test_huge_number_costs_no_more_than_its_length(kind, expected_bytes):
    def compare(encoded):
        try:
            got = values.decode(encoded, "1" * expected_bytes)
        except ValueError:
            got = None
        assert not strict.equal_as_json(got, 1)
        assert livecodebench.compare_value(got, 1) is not None
        assert not taco.compare_value(got, 1)

    short, long = huge((16 << 20) // SHORTER, kind), huge(16 << 20, kind)
    assert not outgrows(lambda: compare(short), lambda: compare(long))


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (Fraction(6, 2), 3),
        (Fraction(1, 4), 0.25),
        (Fraction(0.1), 0.1),
        (Fraction(5e-324), 5e-324),
        ([Fraction(-7, 1)], [-7]),
        (Decimal("3.00"), 3),
        (complex(3, 0), 3),
    ],
)
def test_number_that_json_does_not_know_equals_its_value_in_published_scorings_and_nothing_in_strict(got, expected):
    text = json.dumps(expected)
    encoded = encoding.encode(got)
    assert livecodebench.compare_value(values.decode(encoded, text), expected) is None
    assert taco.compare_value(values.decode(encoded, text), expected)
    assert not strict.equal_as_json(values.decode(encoded, text, json_only=True), expected)


@pytest.mark.parametrize("pair", [(1, 3), (1, 10), (1, 2**1075), (2**60 + 1, 2**60), (6, 2)])
def test_fraction_that_no_json_number_equals_is_opaque(pair):
    encoded = json.dumps({"F": [hex(part) for part in pair]}).encode()
    assert isinstance(decode(encoded), values.Opaque)


def test_equal_value_is_never_too_long_for_what_is_expected():
    for value, text in [
        (Fraction(5e-324), "5e-324"),
        (10**308, "1e308"),
        ("\U0001f600" * 9999, json.dumps("\U0001f600" * 9999, ensure_ascii=False)),
        ([1.0000000000000002] * 9999, json.dumps([1] * 9999)),
        ([Fraction(5e-324)] * 9999, "[" + ",".join(["5e-324"] * 9999) + "]"),
        ([()] * 9999, "[" + ",".join(["[]"] * 9999) + "]"),
    ]:
        values.decode(encoding.encode(value), text)


def test_flood_of_lists_is_wrong_unread_and_an_equal_value_never_looks_like_one():
    for brackets in (b"[" * 60_000, b"[" + b"{}," * 20_000 + b"{}]"):
        with pytest.raises(ValueError, match="far more values than expected"):
            values.decode(brackets, "[1, 2]")
    for value, text in [
        ("[" * 60_000, json.dumps("[" * 60_000)),
        ("[" * 60_000, '"' + "\\u005b" * 60_000 + '"'),
        ([UserDict({"a": (1,)})] * 9999, "[" + ",".join(['{"a":[1]}'] * 9999) + "]"),
    ]:
        values.decode(encoding.encode(value), text)
    assert values.decode(encoding.encode([[]] * 900), "[1, 2]") == [[]] * 900, "wrong, but no flood"


def test_depth_of_brackets_counts_and_brackets_in_texts_do_not():
    check_depth("[" * 200 + "]" * 200)
    check_depth(json.dumps(["[{" * 500, '"[' * 500]))
    check_depth("[[1],[2]]" * 500)
    with pytest.raises(ValueError, match="200"):
        check_depth("[" * 201 + "]" * 201)
    with pytest.raises(ValueError, match="200"):
        check_depth('{"a":' * 201 + "1" + "}" * 201)


@pytest.mark.parametrize(
    ("got", "expected", "right"),
    [
        (None, [None], True),
        ([{2: "a"}], [{"2": "a"}], True),
        ([{"a": 1}], [{"a": 1}], True),
        ([{"a": 1}, 2], [{"a": 1}, 2], True),
        ({"a": 1}, [{"a": 1}], True),
        ([float("nan")], [json.loads("NaN")], False),
        ((), [], True),
        (0, [], False),
    ],
)
def test_taco_compat_values_that_drawing_found(got, expected, right):
    assert taco.compare_value(decode(encoding.encode(got)), expected) is right


def test_numbers_of_numpy_are_numbers_in_published_scorings():
    numpy = pytest.importorskip("numpy")
    for value, plain in [
        (numpy.int64(3), 3),
        (numpy.float64(0.1), 0.1),
        (numpy.bool_(True), True),
        ([numpy.int32(1), numpy.float64(2.0)], [1, 2]),
        ({"a": numpy.uint8(7)}, {"a": 7}),
        (numpy.complex128(3), 3),
    ]:
        encoded = encoding.encode(value)
        assert livecodebench.compare_value(decode(encoded), plain) is None
        assert taco.compare_value(decode(encoded), plain)
        assert not strict.equal_as_json(decode(encoded, json_only=True), plain)
    for value in (numpy.array([1]), numpy.longdouble(1), numpy.datetime64("2020-01-01"), numpy.str_("a")):
        assert livecodebench.compare_value(decode(encoding.encode(value)), [1]) is not None


def test_text_without_an_end_and_number_without_one_are_looked_at_once():
    def look(size):
        check_depth("[]" * 201 + '"' + '\\"' * size)
        assert strict.compare_text(b"1", "1" * size + "x", 1e-6) is not None

    assert not outgrows(lambda: look(200_000 // SHORTER), lambda: look(200_000))
