"""A statement as a set of numbers (shingles): one for each sequence of five words.

Words are runs of letters and digits, and operators, because `x < y` and `x > y` are different tasks. Case, punctuation
and white space do not count, because copies of a problem differ in just these. A word's number comes from BLAKE2, so
the same text gives the same set on every machine.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Shingles = npt.NDArray[np.uint64]
"""[n] sorted, without duplicates."""

WIDTH = 5
_WORD = re.compile(r"\w+|[-+*/%^<>=!&|~]")
_ODD = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64
)
_MIX = np.uint64(0xE7037ED1A0B428DB)
_SHIFT = np.uint64(32)


def words(statement: str) -> list[str]:
    """Return words and operators, in lower case."""
    return _WORD.findall(statement.lower())


def shingles(found: list[str]) -> Shingles:
    """Return the five-word sequences of a list of words. Fewer than five words are one sequence."""
    if not found:
        return np.empty(0, np.uint64)
    numbers = np.fromiter(map(_number, found), np.uint64, len(found))
    width = min(WIDTH, len(found))
    count = len(found) - width + 1
    mixed = np.zeros(count, np.uint64)
    for offset in range(width):
        mixed += numbers[offset : offset + count] * _ODD[offset]
    mixed ^= mixed >> _SHIFT
    mixed *= _MIX
    mixed.sort()
    return mixed[np.concatenate(([True], mixed[1:] != mixed[:-1]))]


def jaccard(a: Shingles, b: Shingles) -> float:
    """Return the Jaccard similarity: size of the intersection divided by size of the union; 0 for empty sets."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    total = len(a) + len(b) - common
    return common / total if total else 0.0


@lru_cache(maxsize=1 << 18)
def _number(word: str) -> int:
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
