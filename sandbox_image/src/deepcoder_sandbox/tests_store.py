"""Stores test sets once, named by their digest, for problems whose tests are megabytes.

Their memory is bounded: the least recently used set is dropped first, and a client that gets 404 uploads it again. A
set that a submission still uses is not dropped, which would free no memory. If all are in use, the store is full.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from pydantic import ValidationError

from deepcoder_contracts.judge import TestCase, TestSet
from deepcoder_sandbox.admission import Refused, check_structure, explain


class StoreFull(Exception):
    """Every stored set is in use."""


def read_set(sha256: str, body: bytes | bytearray) -> tuple[TestCase, ...]:
    """Return the tests in a body whose digest must be `sha256`. Raises Refused. A long body takes long."""
    if hashlib.sha256(body).hexdigest() != sha256:
        raise Refused("sha256: the body has another digest: send the bytes that were hashed", "sha256")
    check_structure(body)
    try:
        return tuple(TestSet.model_validate_json(body).tests)
    except ValidationError as error:
        raise Refused(*explain(error)) from None


@dataclass
class _Stored:
    size: int
    tests: tuple[TestCase, ...]
    users: int = 0


class TestStore:
    """Test sets by SHA-256, at most `max_bytes` in memory. Used by one thread."""

    __test__ = False  # not a test class for pytest

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._sets: OrderedDict[str, _Stored] = OrderedDict()
        self.bytes = 0
        """Memory of the stored sets."""

    def put(self, sha256: str, size: int, tests: tuple[TestCase, ...]) -> None:
        """Store a set that takes `size` bytes of memory. Raises Refused if it can never fit, StoreFull if not now."""
        if sha256 in self._sets:
            self._sets.move_to_end(sha256)  # or the next set might take its place before it is asked for
            return
        if size > self._max_bytes:
            raise Refused(
                f"tests: {size} bytes in memory are more than the store's {self._max_bytes}: store fewer, or raise"
                " --tests-store-mb",
                "tests",
            )
        idle = [name for name, stored in self._sets.items() if not stored.users]
        if self.bytes + size - sum(self._sets[name].size for name in idle) > self._max_bytes:
            raise StoreFull  # before any is dropped for nothing
        for name in idle:
            if self.bytes + size <= self._max_bytes:
                break
            self.bytes -= self._sets.pop(name).size
        self._sets[sha256] = _Stored(size, tests)
        self.bytes += size

    def borrow(self, sha256: str) -> tuple[TestCase, ...] | None:
        """Return a set's tests; None if it is unknown or was dropped. A borrowed set stays until it is given back."""
        found = self._sets.get(sha256)
        if found is None:
            return None
        self._sets.move_to_end(sha256)
        found.users += 1
        return found.tests

    def give_back(self, sha256: str) -> None:
        """Give back a borrowed set."""
        self._sets[sha256].users -= 1
