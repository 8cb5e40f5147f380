"""One pass over one run: observe (`observe`), plan (`domain.plan`), write the status, then carry out the plan.

The status is written once, if a decisive part changed or its figures are old enough, and always before anything is
carried out, so that the intent is durable before anything is created. It is written under the resourceVersion that the
plan is based on, so a pass over an old view changes nothing. The next plan reports what this one could not do. That is
the only memory that a restart loses, and it is found out again. Errors raise.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import ValidationError

from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.run import FINALIZER, MANAGER, DeepCoderRun, Metadata
from deepcoder_contracts.api.run_status import Phase, RunStatus
from deepcoder_operator import metrics
from deepcoder_operator.controllers.carry_out import Executor
from deepcoder_operator.controllers.observe import Observer
from deepcoder_operator.domain.draft import Plan
from deepcoder_operator.domain.heartbeat import reply
from deepcoder_operator.domain.judge_outage import waits_for_judges
from deepcoder_operator.domain.names import pool_name
from deepcoder_operator.domain.plan import UNREADABLE, is_ours, plan, refuse_unreadable
from deepcoder_operator.domain.policy import Policy
from deepcoder_operator.domain.significance import held_seconds, worth_writing
from deepcoder_operator.domain.world import Problem
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.cache_transform import trim_for_cache
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.dropped_fields import DROPPED, DroppedFields
from deepcoder_operator.kube.events import Recorder
from deepcoder_operator.kube.oversize import why_unread
from deepcoder_operator.kube.resources import RUNS
from deepcoder_operator.progress_board import ProgressBoard, RunKey

log = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 60.0
SHORTEST_PAUSE_SECONDS = 1.0
"""Shortest time to the next pass after one that changed nothing, or whose status the API server did not keep
completely, whatever the plan requests. It prevents a hot loop."""

_FAILURES = frozenset(str(reason) for reason in FailureReason)
_ASKS_NOTHING = (Phase.COMPLETE, Phase.FAILED, Phase.SUSPENDED, Phase.HELD)
"""Phases in which storage is not asked: a query that failed before does not say that it still does not answer."""


@dataclass(frozen=True)
class Obstacle:
    """What a plan for a run could not do, and how often it was tried."""

    uid: str
    problem: Problem
    tries: int = 1

    @property
    def pause(self) -> float:
        """Seconds until the next try. The first one comes soon, so that the status reports the problem."""
        return min(float(2 ** min(self.tries - 1, 6)), LONGEST_PAUSE_SECONDS)


class Memory:
    """What is remembered of a run between its passes."""

    def __init__(self, obj: Object) -> None:
        self.obj = trim_for_cache(RUNS, obj)
        self.phase = ""
        self.storage_problem = ""
        """Why the last storage query failed."""
        self.obstacle: Obstacle | None = None
        self.hindered = ""
        """Why the run is stuck until somebody helps: a refused action, or an unreadable spec."""
        self.written_at: float | None = None

    def adopt(self, obj: Object) -> None:
        """Take a newer state of the run, or of a new run with the same name."""
        if version(obj) > version(self.obj):
            if obj["metadata"]["uid"] != self.obj["metadata"]["uid"]:
                self.written_at = None
            self.obj = trim_for_cache(RUNS, obj, self.obj)


@dataclass
class Reconciler:
    """Runs passes. It keeps no state of a run, which is in the run's `Memory`."""

    kube: Kube
    observer: Observer
    executor: Executor
    board: ProgressBoard
    policy: Policy
    record: Recorder
    now: Callable[[], datetime]
    """Wall-clock time, in whole seconds, for all decisions."""
    clock: Callable[[], float] = time.monotonic
    """Monotonic clock."""
    dropped: DroppedFields = field(default_factory=lambda: DroppedFields(RUNS))

    async def reconcile(self, key: RunKey, memory: Memory) -> float:
        """Run one pass. Returns the seconds until the next pass at the latest. Raises `KubeError`."""
        obj = memory.obj
        now = self.now()
        try:
            run = DeepCoderRun.model_validate(obj)
        except ValidationError as e:
            if not _may_be_ours(obj):
                return self._ignore(key, memory)
            if obj["metadata"].get("deletionTimestamp"):
                return await self._release(key, obj)
            return await self._unreadable(key, memory, e, now)
        if not is_ours(run):
            return self._ignore(key, memory)
        met = memory.obstacle if memory.obstacle and memory.obstacle.uid == run.metadata.uid else None
        problem = met.problem if met else None
        world = await self.observer.observe(run, self.now, problem, lambda: memory.obj is not obj)
        now = world.seen_at or now
        decided = plan(run, world, now, self.policy)
        if decided.status.phase in _ASKS_NOTHING:
            memory.storage_problem = ""
        elif world.storage is not None:
            memory.storage_problem = world.storage.problem.reason if world.storage.problem else ""
        asked = world.storage is not None
        if self._must_write(memory, run, decided, asked):
            run, whole = await self._write(memory, obj, run, decided.status)
            wait = decided.requeue_after if whole else max(decided.requeue_after, SHORTEST_PAUSE_SECONDS)
        else:
            wait = self._wait(memory, run, decided, asked)
        self._announce(memory, obj, decided)
        self._answer(key, run, now)
        problem = await self.executor.carry_out(run, decided.actions, memory.adopt)
        memory.hindered = problem.reason if problem else decided.hindered
        if problem is None:
            memory.obstacle = None
            return wait
        log.warning("run %s: %s: %s", key, problem.reason, problem.message, extra={"run": str(key)})
        same = met is not None and met.problem.reason == problem.reason
        memory.obstacle = Obstacle(run.metadata.uid, problem, met.tries + 1 if met and same else 1)
        return memory.obstacle.pause

    def _must_write(self, memory: Memory, run: DeepCoderRun, decided: Plan, asked: bool) -> bool:
        """Whether a change cannot wait. Actions and events rest on the stored status."""
        if decided.status == run.status:
            return False
        if decided.actions or decided.events:
            return True
        return worth_writing(run.status, decided.status, self._since(memory), asked=asked)

    def _wait(self, memory: Memory, run: DeepCoderRun, decided: Plan, asked: bool) -> float:
        """Return the seconds to the next pass after one that wrote nothing. The held-back changes are due by then."""
        wait = decided.requeue_after
        since = self._since(memory)
        if decided.status != run.status and since is not None:
            wait = min(wait, held_seconds(run.status, decided.status, asked=asked) - since)
        return wait if decided.actions else max(wait, SHORTEST_PAUSE_SECONDS)

    def _since(self, memory: Memory) -> float | None:
        return None if memory.written_at is None else self.clock() - memory.written_at

    async def _write(
        self, memory: Memory, obj: Object, run: DeepCoderRun, status: RunStatus
    ) -> tuple[DeepCoderRun, bool]:
        """Write the status. Returns the run with its new version, and whether the API server kept the whole status.

        The write is based on the object of the plan, never on a newer one, which the plan does not know. In that case
        the API server must refuse the write, and the run is planned again.
        """
        wire = status.to_wire()
        try:
            written = await self.kube.replace_status(obj | {"status": wire})
        except errors.Invalid as e:
            metrics.STATUS_REFUSED.inc()
            text = f"the API server refuses the status that the operator writes, so the run cannot proceed: {e}"
            self.record(obj, "StatusRefused", text, warning=True)
            raise
        metrics.STATUS_WRITES.inc()
        memory.written_at = self.clock()
        memory.adopt(written)
        lost, told = self.dropped.compare(wire, written.get("status") or {})
        if told:
            self.record(obj, DROPPED, told, warning=True)
        metadata = Metadata.model_validate(written["metadata"])
        return run.model_copy(update={"status": status, "metadata": metadata}), not lost

    def _answer(self, key: RunKey, run: DeepCoderRun, now: datetime) -> None:
        """Set the reply to the live attempt's next report."""
        attempt = run.status.attempt
        if attempt is None:
            pool = pool_name(run) if waits_for_judges(run) else None
            if pool is not None:
                self.board.wait(key, pool)
            else:
                self.board.withdraw(key)
            return
        self.board.post(
            key,
            run_uid=run.metadata.uid,
            ordinal=attempt.ordinal,
            reply=reply(run.status, now),
            pool=pool_name(run),
            head_uid=attempt.head_uid,
            at=now.timestamp(),
        )

    def _announce(self, memory: Memory, obj: Object, decided: Plan) -> None:
        """Post the events of the plan, before any action, because an action may fail and be planned again."""
        key = run_key(obj)
        for event in decided.events:
            level = logging.WARNING if event.warning else logging.INFO
            log.log(level, "run %s: %s: %s", key, event.reason, event.message, extra={"run": str(key)})
            self.record(obj, event.reason, event.message, warning=event.warning)
            if event.reason in _FAILURES:
                metrics.FAILURES.labels(key.namespace, event.reason).inc()
            if event.reason in metrics.WARNED_REASONS:
                metrics.WARNINGS.labels(key.namespace, event.reason).inc()
        memory.phase = decided.status.phase

    def _ignore(self, key: RunKey, memory: Memory) -> float:
        """Leave a run to the controller that manages it."""
        self.board.withdraw(key)
        memory.hindered = ""
        return LONGEST_PAUSE_SECONDS

    async def _unreadable(self, key: RunKey, memory: Memory, error: ValidationError, now: datetime) -> float:
        """Report that the spec is unreadable, in the conditions only, because the rest may be a newer release's."""
        memory.hindered = UNREADABLE
        if key in self.board.waiting:  # it needs no judge now; a live attempt continues and does need its judges
            self.board.withdraw(key)
        obj = memory.obj
        live = bool((obj.get("status") or {}).get("attempt"))
        message = why_unreadable(error, live=live, unread=why_unread(obj))
        metadata, status = Metadata.model_validate(obj["metadata"]), _conditions_of(obj)
        refused = refuse_unreadable(metadata, status, message, now)
        if refused.conditions != status.conditions:
            changes = {"conditions": refused.to_wire()["conditions"], "observedGeneration": metadata.generation}
            patch = {"metadata": {"resourceVersion": metadata.resource_version}, "status": changes}
            # The event comes first: the API server may refuse a status write for an object that is itself invalid.
            self.record(obj, UNREADABLE, message, warning=True)
            memory.adopt(await self.kube.patch(RUNS, metadata.namespace, metadata.name, patch, "status"))
        return LONGEST_PAUSE_SECONDS

    async def _release(self, key: RunKey, obj: Object) -> float:
        """Release a deleted run with an unreadable spec. It cannot be drained. Its children are garbage-collected."""
        metadata = Metadata.model_validate(obj["metadata"])
        self.board.withdraw(key)
        if FINALIZER in metadata.finalizers:
            text = (
                "the spec cannot be read: pods save and stop through their hooks; the run's folder stays in its bucket"
            )
            self.record(obj, "ReleasedUnread", text, warning=True)
            await self.executor.release(metadata)
        return LONGEST_PAUSE_SECONDS


def _may_be_ours(obj: Object) -> bool:
    """Whether this operator manages a run whose spec it cannot read. One that names no manager is ours."""
    spec = obj.get("spec")
    return not isinstance(spec, dict) or spec.get("managedBy") in (None, MANAGER)


def why_unreadable(error: ValidationError, *, live: bool, unread: str | None = None) -> str:
    """Return what is wrong with a spec, how to mend it, and what is not done meanwhile. `unread` is why it is not kept.

    Only an unknown field or word, or the status, hints at a newer release. The rest was written past the CRD's rules.
    """
    waits = ". Until then its attempt continues by itself: nobody suspends or replaces it" if live else ""
    if unread is not None:
        return unread + waits
    first = error.errors(include_url=False, include_input=False)[0]
    mend = "fix the field; if the API server says that it is immutable, make a new run"
    if first["type"] in ("extra_forbidden", "enum") or first["loc"][:1] == ("status",):
        mend = "a newer release may have written it: upgrade the operator, or remove the field"
    where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}: {mend}{waits}"


def _conditions_of(obj: Object) -> RunStatus:
    """Return the conditions of a status that may be another release's, or none if they cannot be read."""
    try:
        return RunStatus.model_validate({"conditions": (obj.get("status") or {}).get("conditions") or []})
    except ValidationError:
        return RunStatus()


def run_key(obj: Object) -> RunKey:
    """Return the key of a run: its namespace and name."""
    return RunKey(obj["metadata"]["namespace"], obj["metadata"]["name"])


def version(obj: Object) -> int:
    """Return the version of an object, which increases."""
    return int(obj["metadata"]["resourceVersion"])
