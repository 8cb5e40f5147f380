"""A store of the objects that a label selector matches, kept current by list and watch.

kopf watches whole kinds. A cluster has too many pods for that, so child objects are watched here with a selector on the
server. The store is a cache: what it holds was true, but what it lacks may exist. Read an object live before you
conclude that it is gone. The store keeps only the fields that are read of each kind (`kube.cache_transform`).

A watch that ends is restarted. A watch that is too old or broken is replaced by a new list after a bounded, growing
pause. A kind that is not served has no objects; that is a valid answer, and the kind is requested again later.
`alive_at` tells liveness probes when the server last answered or a request last failed: an outage of the API server
must not cause a restart, but a stuck watch must. If only some namespaces are visible, each has its own list and watch.
A namespace that is closed to us, because its Role was deleted with it, does not delay the others and is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from deepcoder_operator.kube import errors
from deepcoder_operator.kube.cache_transform import trim_for_cache
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import Resource

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
SHORTEST_WATCH_SECONDS = 1.0
"""A watch that the server ends sooner is begun again after a pause, so that no server is asked in a hot loop."""

RELIST_SECONDS = 1800.0
"""A list now and then mends what a watch has told wrongly or not at all; none is known that does."""


@dataclass
class _Part:
    """What one list and one watch tell of: a namespace, or all of them."""

    namespace: str | None
    version: int = 0
    """What happened up to here has been heard of."""
    alive_at: float = 0.0
    asked: bool = False
    """Whether it was listed, or refused to us."""
    refused: bool = False
    """Whether the API server did not let us when it was last asked: what is held may be old."""


class Informer:
    """Objects of one kind, by (namespace, name)."""

    def __init__(
        self,
        kube: Kube,
        resource: Resource,
        selector: str,
        on_change: Callable[[Object], Any],
        *,
        namespaces: Sequence[str] = (),
        index: Callable[[Object], str | None] = lambda obj: None,
    ) -> None:
        """`index` groups objects (by run, by pool) for `group`; `on_change` is called with each new or last state.

        No `namespaces` are all of them.
        """
        self.resource = resource
        self.synced = asyncio.Event()
        self._kube, self._selector = kube, selector
        self._parts = {namespace: _Part(namespace) for namespace in namespaces or (None,)}
        self._listeners, self._index = [on_change], index
        self._store: dict[tuple[str, str], Object] = {}
        self._groups: dict[str, dict[tuple[str, str], Object]] = {}

    @property
    def alive_at(self) -> float:
        """When the watch that was silent for longest was last heard of; 0 before the first."""
        return min(part.alive_at for part in self._parts.values())

    @property
    def refused(self) -> bool:
        """Whether a part of it may not be listed or watched, or is not served."""
        return any(part.refused for part in self._parts.values())

    def listen(self, on_change: Callable[[Object], Any]) -> None:
        """Call another function, too, with each new or last state."""
        self._listeners.append(on_change)

    def get(self, namespace: str, name: str) -> Object | None:
        """An object by name, None if the store has none."""
        return self._store.get((namespace, name))

    def objects(self) -> list[Object]:
        """All objects of the store."""
        return list(self._store.values())

    def group(self, key: str) -> list[Object]:
        """Objects that `index` maps to this key."""
        return list(self._groups.get(key, {}).values())

    def observe(self, obj: Object) -> None:
        """Put in what a write or a live read of ours returned, so that the next look sees it before the watch does.

        An object that is not here although the watch has come past its version was deleted: it stays away, since no
        event would ever take it out again.
        """
        old, version = self._store.get(_key(obj)), _version(obj)
        part = self._parts[None if None in self._parts else _key(obj)[0]]
        if version > (part.version if old is None else _version(old)):
            self._put(trim_for_cache(self.resource, obj, old))

    async def run(self) -> None:
        """List and watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for part in self._parts.values():
                group.create_task(self._keep(part))

    async def _keep(self, part: _Part) -> None:
        """List and watch one part until cancelled."""
        self._touch(part)
        pause = FIRST_PAUSE_SECONDS
        while True:
            began = self._now()
            try:
                await self._follow(part, await self._list(part))
                continue
            except errors.Gone:
                log.info("watch of %s is too old, listing again", self.resource.plural)
            except errors.NotFound as e:
                log.warning("%s are not served, so there are none: %s", self.resource.plural, e)
                self._replace(part, [], part.version)
                part.refused = True
            except errors.Forbidden as e:
                part.refused = True
                log.warning("%s of %s cannot be watched: %s", self.resource.plural, part.namespace or "the cluster", e)
                if part.namespace is not None:
                    self._has_been_asked(part)
            except errors.KubeError as e:
                part.refused = errors.refuses(e)
                log.warning("%s cannot be watched: %s; listing again in %.0f s", self.resource.plural, e, pause)
            self._touch(part)
            if self._now() - began > pause:
                pause = FIRST_PAUSE_SECONDS
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE_SECONDS)

    async def _list(self, part: _Part) -> str:
        """Fill the store; the version to watch from."""
        keep = partial(trim_for_cache, self.resource)
        items, version = await self._kube.list(self.resource, part.namespace, self._selector, keep=keep)
        self._touch(part)
        part.refused = False
        self._replace(part, items, int(version))
        return version

    def _replace(self, part: _Part, items: list[Object], version: int) -> None:
        """The store is what was listed at a version, and what was put in after it."""
        current = {_key(obj): obj for obj in items}
        known = [(k, obj) for k, obj in self._store.items() if part.namespace in (None, k[0])]
        for key in [k for k, obj in known if k not in current and _version(obj) <= version]:
            self._drop(key)
        part.version = max(part.version, version)
        for key, obj in current.items():
            old = self._store.get(key)
            if old is None or _version(obj) > _version(old):
                self._put(obj)
                self._tell(obj)
        self._has_been_asked(part)

    def _has_been_asked(self, part: _Part) -> None:
        """What there is to know of a part is known; once that is so of all, the store may be used."""
        part.asked = True
        if all(p.asked for p in self._parts.values()):
            self.synced.set()

    async def _follow(self, part: _Part, version: str) -> None:
        """Watch from a version on, until it is time to list again."""
        relist = self._now() + RELIST_SECONDS
        while self._now() < relist:
            began = self._now()
            version = await self._watch(part, version)
            if self._now() < began + SHORTEST_WATCH_SECONDS:
                await asyncio.sleep(FIRST_PAUSE_SECONDS)

    async def _watch(self, part: _Part, version: str) -> str:
        async for kind, obj in self._kube.watch(self.resource, part.namespace, self._selector, version):
            self._touch(part)
            version = obj["metadata"]["resourceVersion"]
            if kind == "DELETED":
                self._drop(_key(obj))
            elif kind in ("ADDED", "MODIFIED"):
                self.observe(obj)
                self._tell(obj)
            part.version = max(part.version, int(version))
        self._touch(part)
        return version

    def _touch(self, part: _Part) -> None:
        part.alive_at = self._now()

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
