"""Waking whoever would poll: a wait ends when an object has changed in a namespace of the API server, or after a while.

Each look costs test and API server some milliseconds, and there were ten a second for each who looks. A watch that
breaks, or is of a kind that is not served for now, is begun anew; meanwhile waits end after their while.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import Resource

AGAIN_SECONDS = 0.2


class Changes:
    """Of objects of some kinds in a namespace, while `follow` runs."""

    def __init__(self, kube: Kube, namespace: str, *resources: Resource) -> None:
        self.kube, self.namespace, self.resources = kube, namespace, resources
        self.of = Counter[str]()
        """How often objects of a kind, by its plural, have changed so far: to be read before one looks."""
        self._next = asyncio.Event()

    @property
    def count(self) -> int:
        """How often any has changed."""
        return self.of.total()

    async def follow(self) -> None:
        """Count, until cancelled."""
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
                _, version = await self.kube.list(resource, self.namespace)
                self._tell(resource)
                async for kind, _ in self.kube.watch(resource, self.namespace, "", version):
                    if kind != "BOOKMARK":
                        self._tell(resource)
            await asyncio.sleep(AGAIN_SECONDS)

    def _tell(self, resource: Resource) -> None:
        self.of[resource.plural] += 1
        self._next.set()
        self._next = asyncio.Event()
