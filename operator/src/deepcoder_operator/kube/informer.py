"""A store of the objects one label selector picks, kept current by list and watch.

kopf watches whole kinds; the pods of a cluster are too many for that, so children are watched here with the selector
at the server. The store is a cache: what it holds was true, but what it lacks may exist. Whoever is about to
conclude that something is gone reads it live first. Of each object it keeps what is read of its kind (`kube.keep`).

A watch that ends is begun again, one that is too old or broken is replaced by a fresh list after a bounded, growing
pause. A kind that is not served has no objects: that is an answer, and the kind is asked for again. `alive_at` tells
liveness probes when the server last spoke or was last tried in vain: an outage of the API server is no reason to
restart, a watch that stands still is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.keep import kept
from deepcoder_operator.kube.resources import Resource

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
SHORTEST_WATCH_SECONDS = 1.0
"""A watch that the server ends sooner is begun again after a pause, so that no server is asked in a hot loop."""

RELIST_SECONDS = 1800.0
"""A list now and then mends what a watch has told wrongly or not at all; none is known that does."""


class Informer:
    """Objects of one kind, by (namespace, name)."""

    def __init__(
        self,
        kube: Kube,
        resource: Resource,
        selector: str,
        on_change: Callable[[Object], Any],
        *,
        namespace: str | None = None,
        index: Callable[[Object], str | None] = lambda obj: None,
    ) -> None:
        """`index` groups objects (by run, by pool) for `group`; `on_change` is called with each new or last state."""
        self.resource = resource
        self.synced = asyncio.Event()
        self.alive_at = 0.0
        self._kube, self._selector, self._namespace = kube, selector, namespace
        self._listeners, self._index = [on_change], index
        self._store: dict[tuple[str, str], Object] = {}
        self._version = 0
        """What happened up to here has been heard of."""
        self._groups: dict[str, dict[tuple[str, str], Object]] = {}

    def listen(self, on_change: Callable[[Object], Any]) -> None:
        """Call another function, too, with each new or last state."""
        self._listeners.append(on_change)

    def get(self, namespace: str, name: str) -> Object | None:
        """An object by name, None if the store has none."""
        return self._store.get((namespace, name))

    def group(self, key: str) -> list[Object]:
        """Objects that `index` maps to this key."""
        return list(self._groups.get(key, {}).values())

    def observe(self, obj: Object) -> None:
        """Put in what a write or a live read of ours returned, so that the next look sees it before the watch does.

        An object that is not here although the watch has come past its version was deleted: it stays away, since no
        event would ever take it out again.
        """
        old, version = self._store.get(_key(obj)), _version(obj)
        if version > (self._version if old is None else _version(old)):
            self._put(kept(self.resource, obj))

    async def run(self) -> None:
        """List and watch until cancelled."""
        self._touch()
        pause = FIRST_PAUSE_SECONDS
        while True:
            began = self._now()
            try:
                await self._follow(await self._list())
                continue
            except errors.Gone:
                log.info("watch of %s is too old, listing again", self.resource.plural)
            except errors.NotFound as e:
                log.warning("%s are not served, so there are none: %s", self.resource.plural, e)
                self._replace([], self._version)
            except errors.KubeError as e:
                log.warning("%s cannot be watched: %s; listing again in %.0f s", self.resource.plural, e, pause)
            self._touch()
            if self._now() - began > pause:
                pause = FIRST_PAUSE_SECONDS
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE_SECONDS)

    async def _list(self) -> str:
        """Fill the store; the version to watch from."""
        keep = partial(kept, self.resource)
        items, version = await self._kube.list(self.resource, self._namespace, self._selector, keep=keep)
        self._touch()
        self._replace(items, int(version))
        return version

    def _replace(self, items: list[Object], version: int) -> None:
        """The store is what was listed at a version, and what was put in after it."""
        current = {_key(obj): obj for obj in items}
        for key in [k for k, obj in self._store.items() if k not in current and _version(obj) <= version]:
            self._drop(key)
        self._version = max(self._version, version)
        for key, obj in current.items():
            old = self._store.get(key)
            if old is None or _version(obj) > _version(old):
                self._put(obj)
                self._tell(obj)
        self.synced.set()

    async def _follow(self, version: str) -> None:
        """Watch from a version on, until it is time to list again."""
        relist = self._now() + RELIST_SECONDS
        while self._now() < relist:
            began = self._now()
            version = await self._watch(version)
            if self._now() < began + SHORTEST_WATCH_SECONDS:
                await asyncio.sleep(FIRST_PAUSE_SECONDS)

    async def _watch(self, version: str) -> str:
        async for kind, obj in self._kube.watch(self.resource, self._namespace, self._selector, version):
            self._touch()
            version = obj["metadata"]["resourceVersion"]
            if kind == "DELETED":
                self._drop(_key(obj))
            elif kind in ("ADDED", "MODIFIED"):
                self.observe(obj)
                self._tell(obj)
            self._version = max(self._version, int(version))
        self._touch()
        return version

    def _touch(self) -> None:
        self.alive_at = self._now()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _put(self, obj: Object) -> None:
        key = _key(obj)
        self._ungroup(key)
        self._store[key] = obj
        group = self._index(obj)
        if group is not None:
            self._groups.setdefault(group, {})[key] = obj

    def _drop(self, key: tuple[str, str]) -> None:
        self._ungroup(key)
        obj = self._store.pop(key, None)
        if obj is not None:
            self._tell(obj)

    def _ungroup(self, key: tuple[str, str]) -> None:
        """Out of the group it was in, which its labels may no longer say."""
        old = self._store.get(key)
        group = None if old is None else self._index(old)
        if group is None or group not in self._groups:
            return
        self._groups[group].pop(key, None)
        if not self._groups[group]:
            del self._groups[group]

    def _tell(self, obj: Object) -> None:
        for listener in self._listeners:
            listener(obj)


def _key(obj: Object) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])
