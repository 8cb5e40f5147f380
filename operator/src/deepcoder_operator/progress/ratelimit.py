"""A token bucket per key, which limits the requests of each caller."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

_MAX_KEYS = 16_384


class _Bucket(NamedTuple):
    tokens: float
    at: float


class RateLimiter:
    """Allows each key `burst` calls at once and `rate` calls per second after that. Forgets the least recently used
    keys."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def wait_seconds(self, key: Hashable) -> float:
        """Take one call from a key's allowance. Returns 0 if it is allowed, else the seconds until one will be."""
        now = self._clock()
        old = self._buckets.get(key, _Bucket(self._burst, now))
        tokens = min(self._burst, old.tokens + (now - old.at) * self._rate)
        allowed = tokens >= 1
        self._buckets[key] = _Bucket(tokens - 1 if allowed else tokens, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > _MAX_KEYS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self._rate
