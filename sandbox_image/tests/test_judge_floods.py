"""Output made to be slow or large to compare: every scoring takes time and memory by its length, and no more."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest
from time_growth import SHORTER, outgrows

from deepcoder_contracts import strict
from deepcoder_contracts.judge import Scoring
from deepcoder_sandbox.compare import livecodebench, taco


def compare_as_livecodebench(got: bytes, expected: str):
    with contextlib.suppress(livecodebench.Collapsed):
        livecodebench.compare_output(got, expected)


def floods(size):
    """Outputs made to take long or to grow, of about `size` bytes."""
    return {
        "white space": b" " * size,
        "lines": b"\n" * size,
        "tokens": b"1 " * (size // 2),
        "lines of tokens": b"1\n" * (size // 2),
        "one number": b"9" * size,
        "one fraction": b"0." + b"3" * size,
        "an exponent": b"1e" + b"9" * size,
        "underscores": b"1_" * (size // 2),
        "a word": b"a" * size,
        "outside of ASCII": "😀".encode() * (size // 4),
        "ASCII and one other": b"a" * size + "😀".encode(),
        "wide white space": "\u3000".encode() * (size // 3),
        "wide digits": "１".encode() * (size // 3),
        "lines of wide digits": "１\n".encode() * (size // 4),
        "separators": b"\x1c" * size,
        "no UTF-8": b"\xff" * size,
        "continuations": b"\x80" * size,
        "surrogates": b"\xed\xa0\x80" * (size // 3),
        "NUL": b"\0" * size,
        "signaling": b"sNaN " * (size // 5),
        "ends of lines": b"\r\n" * (size // 2),
    }


EXPECTED = {
    "nothing": "",
    "one": "1",
    "three": "1 2 3",
    "lines": "1\n2\n3",
    "word": "é",
    "many": "1 " * 20_000,
    "many lines": "1\n" * 20_000,
}
COMPARE = {
    "strict": strict.compare_text,
    "strict with a tolerance": lambda got, expected: strict.compare_text(got, expected, 1e-6),
    "livecodebench": compare_as_livecodebench,
    "taco-compat": taco.compare_output,
}


def test_every_scoring_is_flooded():
    assert set(Scoring) <= COMPARE.keys()


@pytest.mark.parametrize("name", floods(0))
def test_flood_of_output_takes_no_longer_than_its_length(name):
    check_growth(name, 1 << 20)


@pytest.mark.parametrize(
    "name", ["white space", "tokens", "NUL", "outside of ASCII", "ASCII and one other", "no UTF-8"]
)
def test_flood_of_output_takes_no_more_memory_than_its_length(name):
    check_memory(floods(2 << 20)[name])


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", floods(0))
def test_largest_flood_of_output_costs_no_more_than_its_length(name):
    check_growth(name, 64 << 20)
    check_memory(floods(64 << 20)[name])


def check_growth(name, size):
    short, long = floods(size // SHORTER)[name], floods(size)[name]
    for how, compare in COMPARE.items():
        for expected in EXPECTED.values():
            wrong = outgrows(lambda: compare(short, expected), lambda: compare(long, expected))  # noqa: B023
            assert not wrong, (how, expected[:10], wrong)


def check_memory(got):
    for how, compare in COMPARE.items():
        for expected in EXPECTED.values():
            tracemalloc.start()
            compare(got, expected)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < (8 << 20) + 4 * len(got), (how, expected[:10], peak)
