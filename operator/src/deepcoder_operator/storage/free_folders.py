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
    """Free folders, by the run's UID and the folder's URI. Thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, uid: str, where: str) -> None:
        """Record that a folder is free now. If there are too many entries, the oldest is forgotten."""
        with self._lock:
            self._seen[uid, where] = self._clock()
            self._seen.move_to_end((uid, where))
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)

    def take(self, uid: str, where: str) -> bool:
        """Whether a folder was free a moment ago. Forgets the folder."""
        with self._lock:
            at = self._seen.pop((uid, where), float("-inf"))
        return self._clock() - at < LOOK_SECONDS
