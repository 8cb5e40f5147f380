"""All runs in memory, kept by one watch for each namespace that is served, and whoever waits for a change of them.

Watches run in threads of their own and go on from what they saw last; while one is broken the page shows what was
known, and `problem` says so. Those who wait are woken, not fed: who is slow misses nothing but what lay in between.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from deepcoder_client.client import Client
from deepcoder_client.errors import ClientError
from deepcoder_contracts.api.run import DeepCoderRun

log = logging.getLogger(__name__)

WATCH_SECONDS = 3600.0
PAUSE_SECONDS = 5.0
"""Between a watch that failed and the next."""


class RunKey(NamedTuple):
    """A run by name."""

    namespace: str
    name: str


class Waiter:
    """Someone who waits for changes: of one run, or of any."""

    def __init__(self, key: RunKey | None) -> None:
        self.key = key
        self._event = asyncio.Event()
        self._changed: set[RunKey] = set()

    def tell(self, key: RunKey) -> None:
        """A run has changed."""
        if self.key is None or self.key == key:
            self._changed.add(key)
            self._event.set()

    async def changes(self, seconds: float) -> set[RunKey]:
        """What has changed since the last call, empty after so many seconds without a change."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return set()
        self._event.clear()
        changed, self._changed = self._changed, set()
        return changed


class Runs:
    """The runs that there are."""

    def __init__(self, client: Client, namespaces: Sequence[str]) -> None:
        """`namespaces`: empty for all of the cluster."""
        self._client, self._namespaces = client, tuple(namespaces) or (None,)
        self._runs: dict[RunKey, DeepCoderRun] = {}
        self._waiters: set[Waiter] = set()
        self._problems: dict[str | None, str] = dict.fromkeys(self._namespaces, "the runs have not been listed yet")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = threading.Event()

    def start(self) -> None:
        """Begin to watch; call it in the event loop that is told of changes."""
        self._loop = asyncio.get_running_loop()
        for namespace in self._namespaces:
            threading.Thread(
                target=self._follow, args=(namespace,), daemon=True, name=f"watch {namespace or 'all'}"
            ).start()

    def stop(self) -> None:
        """Take no more changes; a watch that is waiting for one ends with the process."""
        self._over.set()

    @property
    def problem(self) -> str | None:
        """Why what is known may be old, None where it is not."""
        return next(iter(self._problems.values()), None)

    def get(self, key: RunKey) -> DeepCoderRun | None:
        """A run."""
        return self._runs.get(key)

    def all(self) -> list[DeepCoderRun]:
        """All of them, by namespace and name."""
        return [self._runs[key] for key in sorted(self._runs)]

    @contextmanager
    def waiting(self, key: RunKey | None) -> Iterator[Waiter]:
        """Be told of changes for as long as the context lasts."""
        waiter = Waiter(key)
        self._waiters.add(waiter)
        try:
            yield waiter
        finally:
            self._waiters.discard(waiter)

    def _follow(self, namespace: str | None) -> None:
        while not self._over.is_set():
            try:
                listed = self._client.list(namespace, all_namespaces=namespace is None)
                self._call(partial(self._take_all, namespace, listed))
                for change in self._client.watch(
                    None, namespace, seconds=WATCH_SECONDS, all_namespaces=namespace is None
                ):
                    self._call(partial(self._take, change.type, change.run))
            except ClientError as error:
                text = f"runs cannot be watched: {error}"
                log.warning("%s", text)
                self._call(partial(self._problems.__setitem__, namespace, text))
                self._over.wait(PAUSE_SECONDS)

    def _call(self, action: Callable[[], object]) -> None:
        if self._loop is None:
            raise AssertionError("watches begin with start()")
        if not self._over.is_set():
            self._loop.call_soon_threadsafe(action)

    def _take_all(self, namespace: str | None, listed: Sequence[DeepCoderRun]) -> None:
        """What is not listed any more went while nobody watched."""
        self._problems.pop(namespace, None)
        there = {(run.metadata.namespace, run.metadata.name) for run in listed}
        known = [run for key, run in self._runs.items() if namespace is None or key.namespace == namespace]
        for run in known:
            if (run.metadata.namespace, run.metadata.name) not in there:
                self._take("DELETED", run)
        for run in listed:
            self._take("ADDED", run)

    def _take(self, kind: str, run: DeepCoderRun) -> None:
        key = RunKey(run.metadata.namespace, run.metadata.name)
        before = self._runs.get(key)
        if kind == "DELETED":
            if before is None or before.metadata.uid != run.metadata.uid:
                return
            del self._runs[key]
        else:
            if before is not None and before.metadata.resource_version == run.metadata.resource_version:
                return
            self._runs[key] = run
        for waiter in self._waiters:
            waiter.tell(key)
