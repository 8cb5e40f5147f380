"""DeepCoderRuns: one worker a run, woken by events, reports and the clock; never two passes over one run at a time.

A pass looks (`observe`), plans (`domain.plan`), writes the status once if it differs, and only then carries the plan
out (`carry_out`): the intent is durable before anything is made. The status is put under the resourceVersion that
was planned from, so a pass over an old view changes nothing. A pass that fails is tried again after a growing, bounded
pause, and the runs beside it go on. Nothing is kept in memory that a restart would miss: what a plan could not do is
remembered for the next one to say, and found out anew after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from deepcoder_operator import metrics
from deepcoder_operator.api.failure import FailureReason
from deepcoder_operator.api.run import FINALIZER, DeepCoderRun, Metadata
from deepcoder_operator.api.run_status import RunStatus
from deepcoder_operator.board import ProgressBoard, RunKey
from deepcoder_operator.controllers.carry_out import Executor
from deepcoder_operator.controllers.observe import Observer
from deepcoder_operator.domain.draft import Plan
from deepcoder_operator.domain.heartbeat import reply
from deepcoder_operator.domain.names import LABEL_RUN, own_pool_name, pool_name
from deepcoder_operator.domain.plan import is_ours, plan, refuse_unreadable
from deepcoder_operator.domain.policy import Policy
from deepcoder_operator.domain.world import Problem
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import RUNS

log = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 60.0
_CONCURRENT_PASSES = 32
_FAILURES = frozenset(str(reason) for reason in FailureReason)

Recorder = Callable[..., None]


@dataclass(frozen=True)
class _Obstacle:
    """What a plan for a run could not do, and how often it was tried in vain."""

    uid: str
    problem: Problem
    tries: int = 1

    @property
    def pause(self) -> float:
        """Seconds until it is tried again: soon after the first time, since the status is to say it."""
        return min(float(2 ** min(self.tries - 1, 6)), LONGEST_PAUSE_SECONDS)


@dataclass
class _Worker:
    """One run's worker and what it works on."""

    obj: Object
    wakeup: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    failures: int = 0
    phase: str = ""
    obstacle: _Obstacle | None = None

    def adopt(self, obj: Object) -> None:
        """Take a newer state of the run, or the run made again under its name, which is newer too."""
        if _version(obj) > _version(self.obj):
            self.obj = obj


class RunController:
    """Keeps a worker for each run."""

    def __init__(
        self, kube: Kube, observer: Observer, executor: Executor, board: ProgressBoard, policy: Policy, record: Recorder
    ) -> None:
        self._kube, self._observer, self._executor, self._board = kube, observer, executor, board
        self._policy, self._record = policy, record
        self._workers: dict[RunKey, _Worker] = {}
        self._passes = asyncio.Semaphore(_CONCURRENT_PASSES)
        self._ready = asyncio.Event()

    def start(self) -> None:
        """Children are listed: passes may begin."""
        self._ready.set()

    async def stop(self) -> None:
        """End all workers."""
        tasks = [w.task for w in self._workers.values() if w.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def seen(self, obj: Object) -> None:
        """A run as the API server has it, from an event or a write of ours; an older one than known is dropped."""
        key = _key(obj)
        worker = self._workers.get(key)
        if worker is None:
            worker = self._workers[key] = _Worker(obj)
            worker.task = asyncio.get_running_loop().create_task(self._work(key, worker), name=f"run {key}")
        else:
            worker.adopt(obj)
        worker.wakeup.set()

    def listed(self, runs: Sequence[Object], version: int) -> int:
        """All runs that there were at a version: what events have not told is caught up with; the number of runs."""
        known = {key: worker.obj for key, worker in self._workers.items()}
        news = [o for o in runs if _key(o) not in known or _version(o) > _version(known[_key(o)])]
        there = {_key(obj) for obj in runs}
        lost = [o for key, o in known.items() if key not in there and _version(o) <= version]
        for obj in news:
            self.seen(obj)
        for obj in lost:
            self.gone(obj)
        return len(news) + len(lost)

    def gone(self, obj: Object) -> None:
        """A run was deleted."""
        key = _key(obj)
        worker = self._workers.get(key)
        if worker is not None and worker.obj["metadata"]["uid"] == obj["metadata"]["uid"]:
            self._forget(key, worker)
            if worker.task:
                worker.task.cancel()

    def wake(self, key: RunKey) -> None:
        """Something a run depends on has changed."""
        worker = self._workers.get(key)
        if worker is not None:
            worker.wakeup.set()

    def wake_pool(self, namespace: str, pool: str) -> None:
        """A pool has changed: its runs look."""
        for key, worker in self._workers.items():
            sandbox = (worker.obj.get("spec") or {}).get("sandbox") or {}
            name = (sandbox.get("poolRef") or {}).get("name") or own_pool_name(key.name)
            if key.namespace == namespace and name == pool:
                worker.wakeup.set()

    async def _work(self, key: RunKey, worker: _Worker) -> None:
        await self._ready.wait()
        while True:
            worker.wakeup.clear()
            async with self._passes:
                seconds = await self._pass(key, worker)
            if seconds is None:
                self._forget(key, worker)
                return
            try:
                async with asyncio.timeout(seconds):
                    await worker.wakeup.wait()
            except TimeoutError:
                pass

    async def _pass(self, key: RunKey, worker: _Worker) -> float | None:
        """One pass; seconds until the next at the latest, None when the run is gone."""
        started = time.monotonic()
        try:
            seconds = await self._reconcile(key, worker)
            worker.failures = 0
            metrics.PASSES.labels(result="ok").inc()
            return seconds
        except errors.Conflict:
            metrics.PASSES.labels(result="conflict").inc()
            await self._refresh(worker)
            return 0.2
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

    async def _reconcile(self, key: RunKey, worker: _Worker) -> float:
        obj = worker.obj
        now = datetime.now(UTC).replace(microsecond=0)
        try:
            run = DeepCoderRun.model_validate(obj)
        except ValidationError as e:
            if obj["metadata"].get("deletionTimestamp"):
                return await self._release(key, obj)
            return await self._unreadable(worker, e, now)
        if not is_ours(run):
            self._board.withdraw(key)
            return LONGEST_PAUSE_SECONDS
        met = worker.obstacle if worker.obstacle and worker.obstacle.uid == run.metadata.uid else None
        world = await self._observer.observe(run, now, met.problem if met else None)
        decided = plan(run, world, now, self._policy)
        run = await self._write(worker, obj, run, decided.status)
        self._announce(worker, obj, decided)
        self._answer(key, run, now)
        problem = await self._executor.carry_out(run, decided.actions)
        if problem is None:
            worker.obstacle = None
            return decided.requeue_after
        log.warning("run %s: %s: %s", key, problem.reason, problem.message, extra={"run": str(key)})
        same = met is not None and met.problem.reason == problem.reason
        worker.obstacle = _Obstacle(run.metadata.uid, problem, met.tries + 1 if met and same else 1)
        return worker.obstacle.pause

    async def _write(self, worker: _Worker, obj: Object, run: DeepCoderRun, status: RunStatus) -> DeepCoderRun:
        """Put the status if it differs; the run with it, under its new version.

        It goes onto the object that was planned from, never onto a newer one that has come meanwhile: of that the
        plan knows nothing, so the put must be refused, and the run planned again.
        """
        if status == run.status:
            return run
        written = await self._kube.replace_status(obj | {"status": status.to_wire()})
        metrics.STATUS_WRITES.inc()
        worker.adopt(written)
        return run.model_copy(update={"status": status, "metadata": Metadata.model_validate(written["metadata"])})

    def _answer(self, key: RunKey, run: DeepCoderRun, now: datetime) -> None:
        """Set what the live attempt is told when it next reports."""
        attempt = run.status.attempt
        if attempt is None:
            self._board.withdraw(key)
            return
        self._board.post(
            key,
            run_uid=run.metadata.uid,
            ordinal=attempt.ordinal,
            reply=reply(run.status, now),
            pool=pool_name(run),
            head_uid=attempt.head_uid,
        )

    def _announce(self, worker: _Worker, obj: Object, decided: Plan) -> None:
        """Tell what the status now says; before anything is carried out, which may fail and be planned again."""
        name = obj["metadata"]["name"]
        for event in decided.events:
            level = logging.WARNING if event.warning else logging.INFO
            log.log(level, "run %s: %s: %s", name, event.reason, event.message, extra={"run": name})
            self._record(obj, event.reason, event.message, warning=event.warning)
            if event.reason in _FAILURES:
                metrics.FAILURES.labels(reason=event.reason).inc()
        if worker.phase != decided.status.phase:
            worker.phase = decided.status.phase
            self._count()

    def _count(self) -> None:
        metrics.RUNS.clear()
        for phase, number in Counter(w.phase for w in self._workers.values() if w.phase).items():
            metrics.RUNS.labels(phase=phase).set(number)

    async def _unreadable(self, worker: _Worker, error: ValidationError, now: datetime) -> float:
        """The spec cannot be read: say where, if even the status can be."""
        first = error.errors(include_url=False, include_input=False)[0]
        message = f"{'.'.join(map(str, first['loc']))}: {first['msg']}: upgrade the operator, or mend the field"
        obj = worker.obj
        status = RunStatus.model_validate(obj.get("status") or {})
        refused = refuse_unreadable(Metadata.model_validate(obj["metadata"]), status, message, now)
        if refused != status:
            worker.adopt(await self._kube.replace_status(obj | {"status": refused.to_wire()}))
            self._record(obj, "SpecUnreadable", message, warning=True)
        return LONGEST_PAUSE_SECONDS

    async def _release(self, key: RunKey, obj: Object) -> float:
        """A deleted run that cannot be read cannot be drained as it asks: let it go, its children follow it."""
        metadata = Metadata.model_validate(obj["metadata"])
        self._board.withdraw(key)
        if FINALIZER in metadata.finalizers:
            text = (
                "the spec cannot be read: pods save and stop as their hooks say, the run's folder stays in its bucket"
            )
            self._record(obj, "ReleasedUnread", text, warning=True)
            await self._executor.release(metadata)
        return LONGEST_PAUSE_SECONDS

    async def _refresh(self, worker: _Worker) -> None:
        """Our view was old: read the run anew rather than wait for the event."""
        meta = worker.obj["metadata"]
        try:
            found = await self._kube.find(RUNS, meta["namespace"], meta["name"])
        except errors.KubeError as e:
            log.warning("run %s/%s cannot be read again: %s", meta["namespace"], meta["name"], e)
            return
        if found is not None:
            worker.adopt(found)

    async def _is_gone(self, worker: _Worker) -> bool:
        meta = worker.obj["metadata"]
        try:
            found = await self._kube.find(RUNS, meta["namespace"], meta["name"])
        except errors.KubeError:
            return False
        return found is None or found["metadata"]["uid"] != meta["uid"]

    def _forget(self, key: RunKey, worker: _Worker) -> None:
        if self._workers.get(key) is worker:
            del self._workers[key]
            self._board.withdraw(key)
            self._count()


def run_of(obj: dict[str, Any]) -> RunKey | None:
    """The run that a child belongs to, by its label."""
    labels = obj["metadata"].get("labels") or {}
    name = labels.get(LABEL_RUN)
    return RunKey(obj["metadata"]["namespace"], name) if name else None


def _key(obj: Object) -> RunKey:
    return RunKey(obj["metadata"]["namespace"], obj["metadata"]["name"])


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])
