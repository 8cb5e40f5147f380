"""The controller of SandboxPools: one worker per pool, woken by events and the clock.

A pool never has two passes at a time. A failing pass is retried after a growing, bounded pause, and other pools
continue. A worker ends when its pool is gone or the operator stops. If a worker ends because of a bug, the process
ends, because a pool without a worker would look healthy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from deepcoder_operator.domain.pool_names import LABEL_POOL
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.informer import Informer
from deepcoder_operator.kube.resources import PODS, POOLS
from deepcoder_operator.progress_board import ProgressBoard, RunKey
from deepcoder_operator.sandbox.reconciler import PoolReconciler

log = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 60.0
"""Longest pause after passes that failed."""

FIRST_CONFLICT_SECONDS = 0.1
LONGEST_CONFLICT_SECONDS = 5.0
"""Pauses after passes that met a conflict. They double while conflicts follow each other (`controllers/run.py`)."""

_CONCURRENT_PASSES = 16

_Key = tuple[str, str]


class _Missed(NamedTuple):
    """Passes since the last one that succeeded."""

    failures: int = 0
    conflicts: int = 0


def pool_group(obj: Object) -> str | None:
    """Index of pods by their pool: "namespace/pool"."""
    metadata = obj["metadata"]
    pool = (metadata.get("labels") or {}).get(LABEL_POOL)
    return f"{metadata['namespace']}/{pool}" if pool else None


class PoolController:
    """Watches pools and their pods, and runs a worker for each pool."""

    def __init__(
        self,
        kube: Kube,
        board: ProgressBoard,
        make_reconciler: Callable[[Informer], PoolReconciler],
        *,
        namespaces: Sequence[str] = (),
    ) -> None:
        """`namespaces` limits the controller to these namespaces; without any it works in all."""
        self.pools = Informer(kube, POOLS, "", self._pool_changed, namespaces=namespaces)
        self.pods = Informer(kube, PODS, LABEL_POOL, self._pod_changed, namespaces=namespaces, index=pool_group)
        self._kube, self._board = kube, board
        self._reconciler = make_reconciler(self.pods)
        self._wakeups: dict[_Key, asyncio.Event] = {}
        self._workers: dict[_Key, asyncio.Task[None]] = {}
        self._passes = asyncio.Semaphore(_CONCURRENT_PASSES)
        self._ready = asyncio.Event()
        self._group: asyncio.TaskGroup

    def start(self) -> None:
        """Start passes, because this replica leads."""
        self._ready.set()
        for pool in self.pools.objects():
            self._pool_changed(pool)

    async def run(self) -> None:
        """Watch until cancelled, and reconcile once started."""
        try:
            async with asyncio.TaskGroup() as self._group:
                self._group.create_task(self.pods.run(), name="watch pods of pools")
                self._group.create_task(self.pools.run(), name="watch pools")
        finally:
            await self._reconciler.close()

    def report_received(self, run: RunKey) -> None:
        """Run a pass over the pool at once if a run's report announces programs."""
        entry = self._board.entries.get(run)
        if entry and entry.pool and entry.heartbeat and entry.heartbeat.report.expected_submissions:
            self._wake((run.namespace, entry.pool))

    def _pool_changed(self, obj: Object) -> None:
        if not self._ready.is_set():
            return  # a standby would keep a worker for each pool that has come and gone meanwhile
        key = (obj["metadata"]["namespace"], obj["metadata"]["name"])
        self._wakeups.setdefault(key, asyncio.Event())
        if key not in self._workers:
            self._workers[key] = self._group.create_task(self._work(key), name=f"pool {key[0]}/{key[1]}")
        self._wake(key)

    def _pod_changed(self, obj: Object) -> None:
        group = pool_group(obj)
        if group is not None:
            namespace, _, name = group.partition("/")
            self._wake((namespace, name))

    def _wake(self, key: _Key) -> None:
        event = self._wakeups.get(key)
        if event is not None:
            event.set()

    async def _work(self, key: _Key) -> None:
        """Run passes over one pool until it is gone."""
        await self.pods.synced.wait()
        event, missed, uid = self._wakeups[key], _Missed(), ""
        while (obj := self.pools.get(*key)) is not None:
            event.clear()
            if uid and obj["metadata"]["uid"] != uid:
                self._reconciler.forget(*key, uid)
            uid = obj["metadata"]["uid"]
            wait, missed = await self._pass(key, obj, missed)
            try:
                async with asyncio.timeout(wait):
                    await event.wait()
            except TimeoutError:
                pass
        if uid:
            self._reconciler.forget(*key, uid)
        del self._workers[key], self._wakeups[key]

    async def _pass(self, key: _Key, obj: Object, missed: _Missed) -> tuple[float, _Missed]:
        """Run one pass. Returns the seconds until the next one, and the passes that did not succeed by then."""
        if obj["metadata"].get("deletionTimestamp"):
            return LONGEST_PAUSE_SECONDS, _Missed()
        try:
            async with self._passes:
                return await self._reconciler.reconcile(obj), _Missed()
        except errors.Conflict as e:
            pause = min(FIRST_CONFLICT_SECONDS * 2.0**missed.conflicts, LONGEST_CONFLICT_SECONDS)
            level = logging.WARNING if pause == LONGEST_CONFLICT_SECONDS else logging.DEBUG
            log.log(level, "pool %s/%s has changed meanwhile, looking again: %s", *key, e)
            await self._refresh(key)
            return pause, missed._replace(conflicts=min(missed.conflicts + 1, 16))
        except errors.NotFound:
            log.debug("pool %s/%s or its namespace is going", *key)
        except errors.KubeError as e:
            log.warning("pool %s/%s: %s", *key, e)
        except Exception:
            log.exception("pool %s/%s: a pass failed", *key)
        wait = min(LONGEST_PAUSE_SECONDS, 2.0**missed.failures)
        return wait, missed._replace(failures=min(missed.failures + 1, 16))

    async def _refresh(self, key: _Key) -> None:
        """Read a pool again after a conflict. Its watch may be minutes behind, and each pass would conflict again."""
        try:
            found = await self._kube.find(POOLS, *key)
        except errors.KubeError as e:
            log.warning("pool %s/%s cannot be read again: %s", *key, e)
            return
        if found is not None:
            self.pools.observe(found)
