"""Waking whoever would poll: a wait ends when an object has changed in a namespace of the API server, or after a while.

What changed is kept as it was told, as informers keep it, for whoever looks: to ask costs test and API server some
milliseconds each time. It is what was a moment ago; whoever writes and looks notes the answer here, so that nothing
older comes after it. A watch that breaks, or is of a kind that is not served for now, is begun anew; meanwhile nothing
is told, and waits end after their while.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import Resource

AGAIN_SECONDS = 0.2


def version(obj: Object) -> int:
    """Of two states of an object the later one has the larger."""
    return int(obj["metadata"]["resourceVersion"])


class Changes:
    """Of objects of some kinds in a namespace, while `follow` runs."""

    def __init__(self, kube: Kube, namespace: str, *resources: Resource) -> None:
        self.kube, self.namespace, self.resources = kube, namespace, resources
        self.of = Counter[str]()
        """How often objects of a kind, by its plural, have changed so far: to be read before one looks."""
        self._next = asyncio.Event()
        self._known: dict[str, dict[str, tuple[int, Object | None]]] = {r.plural: {} for r in resources}
        """By kind and name: the last version that was told, and the object, None once it is gone."""

    @property
    def count(self) -> int:
        """How often any has changed."""
        return self.of.total()

    def all(self, resource: Resource) -> list[Object]:
        """The objects of a kind."""
        return [obj for _, obj in self._known[resource.plural].values() if obj is not None]

    def find(self, resource: Resource, name: str) -> Object | None:
        """An object, None if there is none."""
        return self._known[resource.plural].get(name, (0, None))[1]

    def note(self, resource: Resource, obj: Object, *, gone: bool = False) -> None:
        """Keep what was told of an object, by the watch or by the answer to a write, unless later has been told."""
        known, name = self._known[resource.plural], obj["metadata"]["name"]
        if version(obj) >= known.get(name, (0, None))[0]:
            known[name] = (version(obj), None if gone else obj)

    async def newer(self, resource: Resource, obj: Object, seconds: float) -> Object | None:
        """The object as it has become after this state; None if nothing is told for so long, or if it is gone."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    last, found = self._known[resource.plural].get(obj["metadata"]["name"], (0, None))
                    if last > version(obj):
                        return found
                    await self.after(self.of[resource.plural], seconds, resource)
        return None

    async def follow(self) -> None:
        """Keep and count, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for resource in self.resources:
                group.create_task(self._follow(resource))

    async def after(self, count: int, seconds: float, resource: Resource | None = None) -> None:
        """Wait until there are more changes than so many, of one kind or of all, but no longer than this."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while (self.of[resource.plural] if resource else self.count) <= count:
                    await self._next.wait()

    async def _follow(self, resource: Resource) -> None:
        while True:
            with suppress(errors.KubeError):
                objects, since = await self.kube.list(resource, self.namespace)
                self._note_all(resource, objects, int(since))
                self._tell(resource)
                async for kind, obj in self.kube.watch(resource, self.namespace, "", since):
                    if kind != "BOOKMARK":
                        self.note(resource, obj, gone=kind == "DELETED")
                        self._tell(resource)
            await asyncio.sleep(AGAIN_SECONDS)

    def _note_all(self, resource: Resource, objects: list[Object], since: int) -> None:
        """These are all there were at that version."""
        for obj in objects:
            self.note(resource, obj)
        names, known = {obj["metadata"]["name"] for obj in objects}, self._known[resource.plural]
        known |= {name: (since, None) for name, (last, _) in known.items() if name not in names and last <= since}

    def _tell(self, resource: Resource) -> None:
        self.of[resource.plural] += 1
        self._next.set()
        self._next = asyncio.Event()
