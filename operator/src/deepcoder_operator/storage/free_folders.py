"""Remembers folders that admission has just seen free, so that a run's first attempt need not check again to claim one.

The memory is valid for a short time, for one use, and only in the process that checked. The write uses If-None-Match
anyway: the memory saves a request if the server honours that header, and takes no one's folder if the server does not.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

LOOK_SECONDS = 30.0
_REMEMBERED = 10_000


class FreeFolders:
    """By the run's uid and the folder's place; told from threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, uid: str, where: str) -> None:
        """It was looked for now, and is not there; the oldest look is forgotten when there are too many."""
        with self._lock:
            self._seen[uid, where] = self._clock()
            self._seen.move_to_end((uid, where))
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)

    def take(self, uid: str, where: str) -> bool:
        """Whether it was free a moment ago; told once."""
        with self._lock:
            at = self._seen.pop((uid, where), float("-inf"))
        return self._clock() - at < LOOK_SECONDS
