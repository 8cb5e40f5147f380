"""The controller of DeepCoderRuns: one worker per run, woken by events, reports and the clock.

A run never has two passes at a time. Passes (`controllers.reconcile`) share a bounded number of slots. A failing pass
is retried after a growing, bounded pause, and other runs continue. If a worker ends because of a bug, the process ends
(`run`), because a run without a worker would look healthy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from deepcoder_operator import metrics
from deepcoder_operator.controllers.passes import PassLimit
from deepcoder_operator.controllers.reconcile import LONGEST_PAUSE_SECONDS, Memory, Reconciler, run_key, version
from deepcoder_operator.domain.names import LABEL_RUN, pool_of
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import RUNS
from deepcoder_operator.progress_board import ProgressBoard, RunKey

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.1
"""Events of a run that arrive this soon after the first, including those of our own writes, share a pass."""

FIRST_CONFLICT_SECONDS = 0.2
LONGEST_CONFLICT_SECONDS = 5.0
"""Pauses after passes that met a conflict. One is normal, and the next pass plans with what has changed. It doubles
while conflicts follow each other, because somebody may write all the time, or answer like that for another reason."""

_CONCURRENT_PASSES = 32


class _Counted(NamedTuple):
    """The metric labels under which a run is counted."""

    phase: metrics.State = ()
    waiting: metrics.State = ()
    """Why its last storage query failed."""
    hindered: metrics.State = ()
    """Why it is stuck until somebody helps."""


_NOT_COUNTED = _Counted()


class _Worker(Memory):
    """The worker of one run, and the run's state."""

    def __init__(self, obj: Object) -> None:
        super().__init__(obj)
        self.wakeup = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.failures = 0
        self.conflicts = 0
        """Conflicts since the last pass that succeeded."""
        self.counted = _NOT_COUNTED
        self.pool: RunKey | None = None
        """Pool that wakes it."""


class RunController:
    """Keeps a worker for each run."""

    def __init__(
        self, kube: Kube, reconciler: Reconciler, board: ProgressBoard, settle: float = SETTLE_SECONDS
    ) -> None:
        """`reconciler` runs the passes. `kube` is used only to read a run again."""
        self._kube, self._reconciler, self._board, self._settle = kube, reconciler, board, settle
        self._workers: dict[RunKey, _Worker] = {}
        self._by_pool: dict[RunKey, set[RunKey]] = {}
        self._namespaces = metrics.Namespaces()
        self._phases = metrics.Tally(metrics.RUNS)
        self._oldest = metrics.Oldest(metrics.OLDEST_RUN)
        self._waiting = metrics.Tally(metrics.WAITING_FOR_STORAGE)
        self._hindered = metrics.Tally(metrics.HINDERED)
        self.limit = PassLimit(_CONCURRENT_PASSES)
        self._ready = asyncio.Event()
        self._broken: asyncio.Queue[BaseException] = asyncio.Queue()

    def start(self) -> None:
        """Start passes, because all child objects are listed."""
        self._ready.set()

    async def run(self) -> None:
        """Wait until a worker breaks, and raise what broke it."""
        raise await self._broken.get()

    async def stop(self) -> None:
        """End all workers."""
        tasks = [w.task for w in self._workers.values() if w.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def seen(self, obj: Object) -> None:
        """Take a state of a run from an event or from one of our writes. Ignore a state older than the known one."""
        key = run_key(obj)
        worker = self._workers.get(key)
        if worker is None:
            worker = self._workers[key] = _Worker(obj)
            self._namespaces.enter(key.namespace)
            worker.task = asyncio.get_running_loop().create_task(self._work(key, worker), name=f"run {key}")
            worker.task.add_done_callback(self._ended)
        else:
            worker.adopt(obj)
        self._follow_pool(key, worker)
        worker.wakeup.set()

    def listed(self, runs: Sequence[Object], at: int, closed: Collection[str] = ()) -> int:
        """Take a list of all runs at a version, and handle changes and deletions that events have not reported.

        Returns the number of runs handled. Nothing is known about runs in `closed` namespaces, so they are kept.
        """
        known = {key: worker.obj for key, worker in self._workers.items()}
        news = [o for o in runs if run_key(o) not in known or version(o) > version(known[run_key(o)])]
        there = {run_key(obj) for obj in runs}
        missing = [o for key, o in known.items() if key not in there and key.namespace not in closed]
        lost = [o for o in missing if version(o) <= at]
        for obj in news:
            self.seen(obj)
        for obj in lost:
            self.gone(obj)
        return len(news) + len(lost)

    def gone(self, obj: Object) -> None:
        """Forget a deleted run and end its worker."""
        key = run_key(obj)
        worker = self._workers.get(key)
        if worker is not None and worker.obj["metadata"]["uid"] == obj["metadata"]["uid"]:
            self._forget(key, worker)
            if worker.task:
                worker.task.cancel()

    def wake(self, key: RunKey) -> None:
        """Run a pass over a run soon, because something that it depends on has changed."""
        worker = self._workers.get(key)
        if worker is not None:
            worker.wakeup.set()

    def wake_pool(self, namespace: str, pool: str) -> None:
        """Run a pass over each run of a pool soon, because the pool has changed."""
        for key in self._by_pool.get(RunKey(namespace, pool), ()):
            self._workers[key].wakeup.set()

    def _follow_pool(self, key: RunKey, worker: _Worker) -> None:
        """Record which pool wakes the run."""
        name = pool_of(worker.obj)
        pool = RunKey(key.namespace, name) if name is not None else None
        if pool != worker.pool:
            self._leave_pool(key, worker)
            worker.pool = pool
            if pool is not None:
                self._by_pool.setdefault(pool, set()).add(key)

    def _leave_pool(self, key: RunKey, worker: _Worker) -> None:
        if worker.pool is not None:
            self._by_pool[worker.pool].discard(key)
            if not self._by_pool[worker.pool]:
                del self._by_pool[worker.pool]

    async def _work(self, key: RunKey, worker: _Worker) -> None:
        await self._ready.wait()
        while True:
            worker.wakeup.clear()
            async with self.limit.place():
                seconds = await self._pass(key, worker)
            if seconds is None:
                self._forget(key, worker)
                return
            self._count(worker, _counted(key.namespace, worker))
            try:
                async with asyncio.timeout(seconds):
                    await worker.wakeup.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(self._settle)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.critical("the worker of %s has ended", task.get_name(), exc_info=error)
            self._broken.put_nowait(error)

    async def _pass(self, key: RunKey, worker: _Worker) -> float | None:
        """Run one pass. Returns the seconds until the next pass at the latest, or None if the run is gone."""
        started = time.monotonic()
        try:
            seconds = await self._reconciler.reconcile(key, worker)
            worker.failures = worker.conflicts = 0
            metrics.PASSES.labels(result="ok").inc()
            return seconds
        except errors.Conflict as e:
            metrics.PASSES.labels(result="conflict").inc()
            pause = min(FIRST_CONFLICT_SECONDS * 2.0 ** min(worker.conflicts, 16), LONGEST_CONFLICT_SECONDS)
            worker.conflicts += 1
            if pause == LONGEST_CONFLICT_SECONDS:
                text = "run %s: %d conflicts, and no pass has succeeded since: %s"
                log.warning(text, key, worker.conflicts, e, extra={"run": str(key)})
            await self._refresh(worker)
            return pause
        except errors.KubeError as e:
            if isinstance(e, errors.NotFound) and await self._is_gone(worker):
                return None
            log.warning("run %s: %s: %s", key, type(e).__name__, e, extra={"run": str(key)})
        except Exception:
            log.exception("run %s: a pass failed", key, extra={"run": str(key)})
        finally:
            metrics.PASS_SECONDS.observe(time.monotonic() - started)
        metrics.PASSES.labels(result="error").inc()
        worker.failures += 1
        return min(float(2 ** min(worker.failures, 6)), LONGEST_PAUSE_SECONDS)

    async def _refresh(self, worker: _Worker) -> None:
        """Read the run again after a conflict, instead of waiting for its event."""
        meta = worker.obj["metadata"]
        try:
            found = await self._kube.find(RUNS, meta["namespace"], meta["name"])
        except errors.KubeError as e:
            log.warning("run %s/%s cannot be read again: %s", meta["namespace"], meta["name"], e)
            return
        if found is not None:
            worker.adopt(found)

    async def _is_gone(self, worker: _Worker) -> bool:
        """Whether the run is gone. If a new run has the same name, the worker continues with that one."""
        meta = worker.obj["metadata"]
        try:
            found = await self._kube.find(RUNS, meta["namespace"], meta["name"])
        except errors.KubeError:
            return False
        there = found is not None and found["metadata"]["uid"] == meta["uid"]
        return not there and worker.obj["metadata"]["uid"] == meta["uid"]

    def _forget(self, key: RunKey, worker: _Worker) -> None:
        if self._workers.get(key) is worker:
            del self._workers[key]
            self._leave_pool(key, worker)
            self._board.withdraw(key)
            self._count(worker, _NOT_COUNTED)
            self._namespaces.leave(key.namespace)

    def _count(self, worker: _Worker, now: _Counted) -> None:
        before, worker.counted = worker.counted, now
        self._phases.move(before.phase, now.phase)
        self._oldest.move(id(worker), before.phase, now.phase)
        self._waiting.move(before.waiting, now.waiting)
        self._hindered.move(before.hindered, now.hindered)


def _counted(namespace: str, memory: Memory) -> _Counted:
    values = (memory.phase, memory.storage_problem, memory.hindered)
    return _Counted(*((namespace, value) if value else () for value in values))


def run_of(obj: dict[str, Any]) -> RunKey | None:
    """Return the run that a child object belongs to, by its label, or None."""
    labels = obj["metadata"].get("labels") or {}
    name = labels.get(LABEL_RUN)
    return RunKey(obj["metadata"]["namespace"], name) if name else None
