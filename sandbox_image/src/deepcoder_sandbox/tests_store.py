"""Test sets stored once and named by their digest, for problems whose tests are megabytes.

Bounded by bytes: the least recently used set goes first, and a client that meets 404 uploads it again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from pydantic import ValidationError

from deepcoder_contracts.judge import TestCase, TestSet
from deepcoder_sandbox.admission import Refused, explain


def read_set(sha256: str, body: bytes) -> tuple[TestCase, ...]:
    """Return the tests in a body that is named by its digest. Raises Refused. Takes long for a long body."""
    if hashlib.sha256(body).hexdigest() != sha256:
        raise Refused("sha256: the body has another digest: send the bytes that were hashed", "sha256")
    try:
        return tuple(TestSet.model_validate_json(body).tests)
    except ValidationError as error:
        raise Refused(*explain(error)) from None


class TestStore:
    """Test sets by sha256, at most `max_bytes` of them. Used by one thread."""

    __test__ = False  # not a test class of pytest's

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._sets: OrderedDict[str, tuple[int, tuple[TestCase, ...]]] = OrderedDict()

    def put(self, sha256: str, size: int, tests: tuple[TestCase, ...]) -> None:
        """Store a set whose body had `size` bytes."""
        if sha256 not in self._sets:
            while self._sets and self._bytes + size > self._max_bytes:
                self._bytes -= self._sets.popitem(last=False)[1][0]
            self._sets[sha256] = (size, tests)
            self._bytes += size

    def get(self, sha256: str) -> tuple[TestCase, ...] | None:
        """Return a set's tests, None if it is unknown (or was dropped)."""
        found = self._sets.get(sha256)
        if found is None:
            return None
        self._sets.move_to_end(sha256)
        return found[1]
