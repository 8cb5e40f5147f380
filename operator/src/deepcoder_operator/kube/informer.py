"""A store of the objects that a label selector matches, kept current by list and watch.

kopf watches whole kinds. A cluster has too many pods for that, so child objects are watched here with a selector on the
server. The store is a cache: what it holds was true, but what it lacks may exist. Read an object live before you
conclude that it is gone. The store keeps only the fields that are read of each kind (`kube.cache_transform`).

A watch that ends is restarted. A watch that is too old or broken is replaced by a new list after a bounded, growing
pause. A kind that is not served counts as having no objects, and is listed again later.
`alive_at` tells liveness probes when the server last answered or a request last failed: an outage of the API server
must not cause a restart, but a stuck watch must. If only some namespaces are watched, each has its own list and watch.
A namespace that we may not access, because its Role was deleted with it, does not delay the others and is tried again.
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
"""If the server ends a watch sooner, the next one starts after a pause, to avoid a hot loop."""

RELIST_SECONDS = 1800.0
"""Time, in seconds, between lists. A list corrects what a watch missed or got wrong, though no such case is known."""


@dataclass
class _Part:
    """The state of one list and watch, of one namespace or of all."""

    namespace: str | None
    version: int = 0
    """Resource version up to which all changes have been received."""
    alive_at: float = 0.0
    asked: bool = False
    """Whether the first list has been answered, with objects or with a refusal."""
    refused: bool = False
    """Whether the API server refused the last request, so that the store may be stale."""


class Informer:
    """A cache of the objects of one kind, by (namespace, name)."""

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
        """`index` groups objects (by run, by pool) for `group`. `on_change` receives each new or last state.

        Without `namespaces`, all are watched.
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
        """Time of the last sign of life of the watch that has been silent longest. 0 before the first one."""
        return min(part.alive_at for part in self._parts.values())

    @property
    def refused(self) -> bool:
        """Whether the kind is not served, or may not be listed or watched in some namespace."""
        return any(part.refused for part in self._parts.values())

    def listen(self, on_change: Callable[[Object], Any]) -> None:
        """Also call this function with each new or last state of an object."""
        self._listeners.append(on_change)

    def get(self, namespace: str, name: str) -> Object | None:
        """Return an object by name, or None if the store does not have it."""
        return self._store.get((namespace, name))

    def objects(self) -> list[Object]:
        """Return all objects of the store."""
        return list(self._store.values())

    def group(self, key: str) -> list[Object]:
        """Return the objects that `index` maps to this key."""
        return list(self._groups.get(key, {}).values())

    def observe(self, obj: Object) -> None:
        """Store an object that one of our writes or live reads returned, before the watch reports it.

        If the store lacks an object although the watch has passed its version, the object was deleted. It is not added
        again, because no event would ever remove it.
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
            watching_since: float | None = None
            try:
                version = await self._list(part)
                watching_since = self._now()  # a list that took long is no reason to list again soon
                await self._follow(part, version)
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
            if watching_since is not None and self._now() - watching_since > pause:
                pause = FIRST_PAUSE_SECONDS
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE_SECONDS)

    async def _list(self, part: _Part) -> str:
        """List the objects into the store. Returns the version to watch from."""
        keep = partial(trim_for_cache, self.resource)
        items, version = await self._kube.list(self.resource, part.namespace, self._selector, keep=keep)
        self._touch(part)
        part.refused = False
        self._replace(part, items, int(version))
        return version

    def _replace(self, part: _Part, items: list[Object], version: int) -> None:
        """Replace a part's objects by those listed at a version, but keep newer ones that were stored meanwhile."""
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
        """Mark a part as answered. Once all parts are, the store is synced."""
        part.asked = True
        if all(p.asked for p in self._parts.values()):
            self.synced.set()

    async def _follow(self, part: _Part, version: str) -> None:
        """Watch from a version until it is time to list again."""
        relist = self._now() + RELIST_SECONDS
        while self._now() < relist:
            began = self._now()
            version = await self._watch(part, version)
            if self._now() < began + SHORTEST_WATCH_SECONDS:
                await asyncio.sleep(FIRST_PAUSE_SECONDS)

    async def _watch(self, part: _Part, version: str) -> str:
        keep = partial(trim_for_cache, self.resource)
        async for kind, obj in self._kube.watch(self.resource, part.namespace, self._selector, version, keep):
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
        """Remove an object from the group of its stored state. A new state may belong to another group."""
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
