"""Events on our objects: for people, never for programs, so losing one is no failure and recording never raises.

The same event on the same object is posted once in ten minutes, which bounds what a stuck object can write.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime

from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object

log = logging.getLogger(__name__)

CONTROLLER = "deepcoder.dev/operator"
REPEAT_SECONDS = 600.0
_IN_FLIGHT = 200


class EventRecorder:
    """Posts events in the background."""

    def __init__(self, kube: Kube, clock: Callable[[], float]) -> None:
        self._kube, self._clock = kube, clock
        self._recent: dict[tuple[str, str, str], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._instance = os.environ.get("POD_NAME") or "deepcoder-operator"
        self._count = 0

    def __call__(self, obj: Object, reason: str, message: str, *, warning: bool = False) -> None:
        """Post an event on an object, if it is new and there is room."""
        meta = obj["metadata"]
        now = self._clock()
        self._recent = {k: at for k, at in self._recent.items() if now - at < REPEAT_SECONDS}
        key = (meta["uid"], reason, message)
        if key in self._recent or len(self._tasks) >= _IN_FLIGHT:
            return
        self._recent[key] = now
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
            "note": message[:1024],
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
        task = asyncio.get_running_loop().create_task(self._post(event))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _post(self, event: Object) -> None:
        try:
            await self._kube.create(event)
        except errors.KubeError as e:
            log.debug("event %s is lost: %s", event["reason"], e)

    async def flush(self) -> None:
        """Wait for what is being posted; each has its own deadline."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
