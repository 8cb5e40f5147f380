"""Checks whether a training problem is in an evaluation set, by its statement or by its tests.

Evaluation sets are small, so the overlap is counted exactly, without probabilistic hashing. By statement: the share of
the shorter statement's five-word sequences that also occur in the other, so that a problem with a longer introduction
is found. The overlap of two very short statements says little, so nearly all of them must match. By tests: two tests
with the same input and output, or one if the evaluation problem has only one. Tests of a few characters (`1` → `1`)
coincide by chance and do not count. White space counts as one space, and as none next to brackets, commas and colons,
because sets write a function's arguments as `[1, 2]` and as `[1,2]`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set

import numpy as np
import numpy.typing as npt

from deepcoder_trainer.curation.shingles import Shingles, shingles, words
from deepcoder_trainer.problems.record import Test

_SHORT = 20
"""Number of sequences below which a statement is short, so that nearly all of them must match."""
_NEARLY_ALL = 0.9
_LEAST_TEST = 32
"""Smallest number of characters of a test's input and output together, with collapsed white space, for it to count."""
_SHARED = 2
_MARKS = "[]{},:"
_MASK = np.uint64((1 << 22) - 1)


class EvaluationIndex:
    """Statements and tests of all evaluation sets. Call `add` for each problem, then `freeze`, then `reason`."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._tests_of: list[int] = []
        self._by_test: dict[tuple[int, int], list[int]] = {}
        """Hashes of output and input to the problems that have such a test."""
        self._outputs: set[int] = set()
        self._parts: list[Shingles] = []
        self._numbers: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._owners: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._seen = np.zeros(int(_MASK) + 1, np.bool_)
        """A filter by the low bits of all known shingles: most shingles of training problems are unknown."""

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, statement: str, tests: Iterable[Test]) -> None:
        """Add one evaluation problem. `name` is for messages."""
        index = len(self._names)
        known = set(_numbered(tests))
        for test in known:
            self._by_test.setdefault(test, []).append(index)
            self._outputs.add(test[0])
        found = shingles(words(statement))
        self._names.append(name)
        self._sizes.append(len(found))
        self._tests_of.append(len(known))
        self._parts.append(found)

    def freeze(self) -> None:
        """Build the index from the added problems. Call it once, before `reason`."""
        if not self._parts:
            return
        numbers = np.concatenate(self._parts)
        owners = np.repeat(np.arange(len(self._parts)), [len(p) for p in self._parts])
        order = np.argsort(numbers, kind="stable")
        self._numbers, self._owners, self._parts = numbers[order], owners[order], []
        self._seen[self._numbers & _MASK] = True

    def reason(self, statement: Shingles, tests: Sequence[Test]) -> str | None:
        """Return why a training problem is contaminated, or None."""
        return self._by_statement(statement) or self._by_tests(tests)

    def _by_statement(self, statement: Shingles) -> str | None:
        known = statement[self._seen[statement & _MASK]]
        if not len(known):
            return None
        first = np.searchsorted(self._numbers, known, "left")
        last = np.searchsorted(self._numbers, known, "right")
        hits = [self._owners[a:b] for a, b in zip(first, last, strict=True) if a < b]
        if not hits:
            return None
        owners, counts = np.unique(np.concatenate(hits), return_counts=True)
        sizes = np.minimum(np.asarray(self._sizes)[owners], len(statement))
        larger = np.maximum(np.asarray(self._sizes)[owners], len(statement))
        # For short statements, the share refers to the longer one.
        shares = np.where(sizes < _SHORT, counts / larger, counts / sizes)
        passed = shares >= np.where(sizes < _SHORT, max(self._threshold, _NEARLY_ALL), self._threshold)
        if not passed.any():
            return None
        worst = int(np.argmax(np.where(passed, shares, -1.0)))
        return f"{shares[worst]:.0%} of its statement is in {self._names[owners[worst]]}"

    def _by_tests(self, tests: Sequence[Test]) -> str | None:
        if not self._by_test:
            return None
        numbered = set(_numbered(tests, self._outputs))
        shared = Counter(owner for test in numbered for owner in self._by_test.get(test, ()))
        for owner, count in shared.most_common():
            if count >= min(_SHARED, self._tests_of[owner]):
                return f"{count} of its tests are in {self._names[owner]}"
        return None


def _numbered(tests: Iterable[Test], outputs: Set[int] | None = None) -> Iterator[tuple[int, int]]:
    """Yield the tests that count as hashes of output and input, because a set may have gigabytes of tests. The hashes
    are those of this process. With `outputs`, skip tests with other outputs before hashing their longer inputs."""
    for given, expected in tests:
        output = _spaced(expected)
        number = hash(output)
        if outputs is not None and number not in outputs:
            continue
        read = _spaced(given)
        if len(output) + len(read) >= _LEAST_TEST:
            yield number, hash(read)


def _spaced(text: str) -> str:
    """Return the text with normalized white space."""
    spaced = " ".join(text.split())
    for mark in _MARKS:  # ten times as fast as a regular expression
        spaced = spaced.replace(f" {mark}", mark).replace(f"{mark} ", mark)
    return spaced
