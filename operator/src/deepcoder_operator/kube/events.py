"""Events on our objects. They are for people, never for programs, so losing one is not a failure, and recording never
raises.

The same event on the same object is posted at most once in ten minutes, which bounds what a stuck object can write.
Events wait in a bounded queue for a few posters, so a thousand runs that change at once lose none and use few
connections. An event that finds the queue full, or is refused, is counted as lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.metrics import EVENTS_LOST

log = logging.getLogger(__name__)

CONTROLLER = "deepcoder.dev/operator"
REPEAT_SECONDS = 600.0
FLUSH_SECONDS = 10.0
QUEUE = 5000
NOTE_BYTES = 1024
"""Longest note of an event, in UTF-8 bytes, that the API server accepts."""
_END_BYTES = 300
_POSTERS = 8
_REMEMBERED = 20_000


class Recorder(Protocol):
    """Posts events on objects. Never raises."""

    def __call__(self, obj: Object, reason: str, message: str, *, warning: bool = False) -> None:
        """Post an event on an object."""
        ...


class EventRecorder:
    """Posts events in the background."""

    def __init__(self, kube: Kube, clock: Callable[[], float]) -> None:
        self._kube, self._clock = kube, clock
        self._recent: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self._waiting: deque[Object] = deque()
        self._posters: set[asyncio.Task[None]] = set()
        self._instance = os.environ.get("POD_NAME") or "deepcoder-operator"
        self._count = 0

    def __call__(self, obj: Object, reason: str, message: str, *, warning: bool = False) -> None:
        """Queue an event on an object, unless the same was posted recently or the queue is full."""
        meta = obj["metadata"]
        key = (meta["uid"], reason, message)
        if not self._is_new(key):
            return
        if len(self._waiting) >= QUEUE:
            EVENTS_LOST.labels(cause="QueueFull").inc()
            return
        self._recent[key] = self._clock()
        self._count += 1
        stamp = datetime.now(UTC)
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": f"{meta['name'][:200]}.{int(stamp.timestamp() * 1e6):x}{self._count % 256:02x}",
                "namespace": meta["namespace"],
            },
            "eventTime": stamp.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance[:128],
            "action": "Reconcile",
            "reason": reason[:128],
            "note": _cut(message),
            "type": "Warning" if warning else "Normal",
            "regarding": {
                "apiVersion": obj["apiVersion"],
                "kind": obj["kind"],
                "namespace": meta["namespace"],
                "name": meta["name"],
                "uid": meta["uid"],
                "resourceVersion": meta.get("resourceVersion", ""),
            },
        }
        self._waiting.append(event)
        if len(self._posters) < _POSTERS:
            task = asyncio.get_running_loop().create_task(self._post())
            self._posters.add(task)
            task.add_done_callback(self._posters.discard)

    def _is_new(self, key: tuple[str, str, str]) -> bool:
        """Whether this event was not recorded recently. Forgets old entries, the oldest first."""
        now = self._clock()
        while self._recent:
            oldest = next(iter(self._recent))
            if now - self._recent[oldest] < REPEAT_SECONDS and len(self._recent) < _REMEMBERED:
                break
            del self._recent[oldest]
        return key not in self._recent

    async def _post(self) -> None:
        """Post queued events until the queue is empty. Each request has its own deadline."""
        while self._waiting:
            event = self._waiting.popleft()
            try:
                await self._kube.create(event)
            except errors.KubeError as e:
                EVENTS_LOST.labels(cause=type(e).__name__).inc()
                log.debug("event %s is lost: %s", event["reason"], e)

    async def flush(self) -> None:
        """Wait up to `FLUSH_SECONDS` until all queued events are posted."""
        if not self._posters:
            return
        _, late = await asyncio.wait(self._posters, timeout=FLUSH_SECONDS)
        if late:
            for task in late:
                task.cancel()
            count = len(self._waiting) + len(late)
            log.warning("%d events are lost: the API server accepts them too slowly", count)
            EVENTS_LOST.labels(cause="Stopping").inc(count)


def _cut(text: str) -> str:
    """Shorten a text to what an event may hold. Keeps its beginning, and its end, which says what happens next."""
    data = text.encode(errors="replace")
    if len(data) <= NOTE_BYTES:
        return data.decode()
    begin, end = data[: NOTE_BYTES - _END_BYTES - len("…".encode())], data[-_END_BYTES:]
    return f"{begin.decode(errors='ignore')}…{end.decode(errors='ignore')}"
