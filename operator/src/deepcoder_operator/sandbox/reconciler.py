"""One pass over one pool: observe, decide (`domain.pool_*`), carry out, write the status once.

The cached view is enough to see that nothing needs to be done, which is nearly always the case. Before anything is
created or deleted, the pods are listed live and the decision is repeated, so a stale cache never leads to too many
pods. Passes over one pool never overlap. Errors raise; the next pass starts from what it finds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pydantic import ValidationError

from deepcoder_contracts.api.sandboxpool import SandboxPoolSpec, SandboxPoolStatus, ScalingMode
from deepcoder_operator.builders.podtemplate import TemplateError
from deepcoder_operator.builders.pool import PoolIdentity, template_hash
from deepcoder_operator.domain.owners import controller_uid
from deepcoder_operator.domain.pool_nodes import NodesPlan, plan_nodes
from deepcoder_operator.domain.pool_plan import Cause, Deletion, JudgePod, PodPlan, backoff_until, plan_pods
from deepcoder_operator.domain.pool_scaling import Load, Recommendation, ScalingLimits, decide, recommend
from deepcoder_operator.domain.pool_status import POD_INVALID, PoolFacts, Refusal, pool_status, worth_writing
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.at_once import at_once, raise_first
from deepcoder_operator.kube.cache_transform import trim_for_cache
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.dropped_fields import DROPPED, DroppedFields
from deepcoder_operator.kube.events import Recorder
from deepcoder_operator.kube.oversize import why_unread
from deepcoder_operator.kube.resources import POOLS
from deepcoder_operator.progress_board import ProgressBoard
from deepcoder_operator.sandbox import metrics
from deepcoder_operator.sandbox.judges import REFUSALS, Judges
from deepcoder_operator.sandbox.pool_objects import NameConflict, PoolObjects, StillEnding

log = logging.getLogger(__name__)

ACTIVE_SECONDS = 1.0
"""Time to the next pass while programs are present or announced, or judges come or go."""

IDLE_SECONDS = 5.0
"""Time to the next pass over an idle pool."""

KEPT_AGAIN_SECONDS = 300.0
"""Time after which a status with dropped fields is written again: the CRDs may have been upgraded."""

_CREATIONS_A_PASS = 50
_CONCURRENT_WRITES = 8
_UNBOUNDED = 1_000_000
_DEFAULT_REPLICAS = SandboxPoolSpec.model_fields["replicas"].default


@dataclass(frozen=True)
class _Built:
    """The judge template of one generation of a pool's spec, cached because passes are frequent."""

    generation: int
    spec: SandboxPoolSpec
    template: dict[str, Any]
    hash: str


@dataclass(frozen=True)
class _Steps:
    """What a pass does with the judges."""

    pods: PodPlan
    nodes: NodesPlan
    held: bool
    """Whether missing judges are not created yet because earlier ones failed."""


@dataclass
class _Memory:
    """What is remembered of a pool between passes. After a restart it is empty, and the reconciler is cautious."""

    history: tuple[Recommendation, ...] = ()
    failures: list[float] = field(default_factory=list)
    """Times at which judges ended by themselves, did not start or could not be created. A pause follows each."""
    refusal: Refusal | None = None
    """Why the last judges could not be created."""
    judges_before_move: int = 0
    """Number of judges when one was last moved. Until its replacement exists, no other judge is moved."""
    written_at: float = float("-inf")
    dropped: dict[str, Any] = field(default_factory=dict)
    """Last written values of fields that the API server dropped, so that they are not forgotten."""
    built: _Built | None = None
    token: str | None = field(default=None, repr=False)
    """The pool's token, when it was last known."""


@dataclass
class PoolReconciler:
    """Runs passes over pools."""

    kube: Kube
    judges: Judges
    support: PoolObjects
    board: ProgressBoard
    record: Recorder
    clock: Callable[[], float]
    """Monotonic clock."""
    wall: Callable[[], float]
    """Seconds since the epoch."""
    dropped: DroppedFields = field(default_factory=lambda: DroppedFields(POOLS))
    _memory: dict[str, _Memory] = field(default_factory=dict)

    async def close(self) -> None:
        """Close all connections."""
        await self.judges.close()

    def forget(self, namespace: str, name: str, uid: str) -> None:
        """Forget a deleted pool. Its objects are deleted through their owner references."""
        self._memory.pop(uid, None)
        self.support.forget(PoolIdentity(namespace, name, uid))
        self.judges.forget(uid)
        metrics.forget(namespace, name)

    async def reconcile(self, obj: Object) -> float:
        """Run one pass. Returns the seconds until the next one. Raises `KubeError`."""
        metadata = obj["metadata"]
        pool = PoolIdentity(metadata["namespace"], metadata["name"], metadata["uid"])
        memory = self._memory.setdefault(pool.uid, _Memory())
        previous = SandboxPoolStatus.model_validate((obj.get("status") or {}) | memory.dropped)
        avoided = tuple(previous.avoided_nodes)
        facts = PoolFacts(pool.name, metadata["generation"], previous.desired_replicas, 0, "", avoided=avoided)
        refused: errors.KubeError | None = None
        pause = IDLE_SECONDS
        try:
            built = self._build(pool, obj, memory)
            judges, run_uid = previous.desired_replicas, controller_uid(obj)
            memory.token = await self.support.ensure(pool, metadata["generation"], built.spec, judges, run_uid)
        except ValidationError as e:
            first = e.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(p) for p in first["loc"])
            facts = replace(facts, refusal=Refusal("InvalidSpec", f"spec.{where}: {first['msg']}"))
        except TemplateError as e:
            facts = replace(facts, refusal=Refusal("InvalidTemplate", str(e)))
        except NameConflict as e:
            facts = replace(facts, refusal=Refusal("NameConflict", str(e)))
        except StillEnding as e:
            facts, pause = replace(facts, refusal=Refusal("StillEnding", str(e))), ACTIVE_SECONDS
        except REFUSALS as e:
            text = f"the API server refuses the pool's objects; the operator retries at least every minute: {e}"
            facts, refused = replace(facts, refusal=Refusal(type(e).__name__, text)), e
        if facts.refusal is not None:
            # The existing judges work as before. Without figures an autoscaler would take them for idle.
            pods = await self.judges.look(pool, memory.token)
            facts = replace(facts, polled=memory.token is not None)
            await self._write_status(obj, previous, facts, pods, memory)
            if refused is not None:
                raise refused
            return pause

        pods = await self.judges.look(pool, memory.token)
        expected = self.board.expected_submissions(pool.namespace, pool.name, self.wall())
        load = _load(pods, expected, self.board.runs_at(pool.namespace, pool.name))
        metrics.DEMAND.labels(pool.namespace, pool.name).set(load.demand)
        facts = self._scale(built.spec, previous, facts, load, memory)
        facts = replace(facts, template_hash=built.hash)
        steps = self._plan(built.spec, previous, facts, pods, memory)
        if not steps.pods.empty:
            pods = await self.judges.look(pool, memory.token, live=True)
            steps = self._plan(built.spec, previous, facts, pods, memory)
            if any(d.cause is Cause.MOVED for d in steps.pods.delete):
                memory.judges_before_move = _existing(pods)
            await self._carry_out(obj, pool, built, facts, steps, memory)
            pods = await self.judges.look(pool, memory.token)
        facts = replace(facts, avoided=steps.nodes.avoided)
        if steps.pods.create or steps.held:
            facts = replace(facts, refusal=memory.refusal)
        await self._write_status(obj, previous, facts, pods, memory)
        programs = sum(p.load.busy + p.load.queued for p in pods if p.load)
        unsettled = not steps.pods.empty or sum(p.ready and not p.deleting for p in pods) != facts.desired
        return ACTIVE_SECONDS if programs or expected or unsettled else IDLE_SECONDS

    def _build(self, pool: PoolIdentity, obj: Object, memory: _Memory) -> _Built:
        """Return the judge template for the spec, built once per generation."""
        generation = obj["metadata"]["generation"]
        if memory.built is None or memory.built.generation != generation:
            if (unread := why_unread(obj)) is not None:
                raise TemplateError(unread)
            spec = SandboxPoolSpec.model_validate(obj.get("spec") or {})
            template = self.judges.template(pool, spec)
            memory.built = _Built(generation, spec, template, template_hash(template))
            if memory.refusal is not None and memory.refusal.reason == POD_INVALID:
                memory.refusal, memory.failures = None, []  # the new template may be the fix: it is tried at once
        return memory.built

    def _scale(
        self,
        spec: SandboxPoolSpec,
        previous: SandboxPoolStatus,
        facts: PoolFacts,
        load: Load,
        memory: _Memory,
    ) -> PoolFacts:
        if spec.scaling.mode is ScalingMode.EXTERNAL:
            memory.history = ()
            return replace(facts, desired=spec.replicas, wanted_without_bound=spec.replicas)
        limits = ScalingLimits(
            min_replicas=spec.min_replicas,
            max_replicas=spec.max_replicas,
            slots_per_pod=spec.slots_per_pod,
            target_queue_per_slot=spec.scaling.target_queue_per_slot,
            target_wait_seconds=spec.scaling.target_wait_seconds,
            stabilization_seconds=spec.scaling.stabilization_seconds,
        )
        decision = decide(load, limits, current=previous.desired_replicas, history=memory.history, now=self.clock())
        memory.history = decision.history
        unbounded = recommend(load, replace(limits, max_replicas=_UNBOUNDED))
        ignored = spec.replicas if spec.replicas != _DEFAULT_REPLICAS else 0
        return replace(facts, desired=decision.replicas, wanted_without_bound=unbounded, ignored_replicas=ignored)

    def _plan(
        self,
        spec: SandboxPoolSpec,
        previous: SandboxPoolStatus,
        facts: PoolFacts,
        pods: Sequence[JudgePod],
        memory: _Memory,
    ) -> _Steps:
        """Decide what to do now."""
        now, wall = self.clock(), self.wall()
        free = now >= backoff_until(memory.failures, now)
        replaced = _existing(pods) >= min(memory.judges_before_move, facts.desired)
        nodes = plan_nodes(previous, pods, template_hash=facts.template_hash, now=wall, may_move=free and replaced)
        steps = partial(
            plan_pods,
            pods,
            desired=facts.desired,
            template_hash=facts.template_hash,
            now=wall,
            max_age=spec.recycle.max_age_seconds,
            moved=nodes.moved,
        )
        if free:
            return _Steps(steps(may_create=True), nodes, held=False)
        return _Steps(steps(may_create=False), nodes, held=bool(steps(may_create=True).create))

    async def _carry_out(
        self,
        obj: Object,
        pool: PoolIdentity,
        built: _Built,
        facts: PoolFacts,
        steps: _Steps,
        memory: _Memory,
    ) -> None:
        """Delete and create judges. After the first pod that the API server refuses, no other is tried for a while.

        An error is raised only when all operations have ended, so that none of them overlaps with the next pass.
        """
        limit = asyncio.Semaphore(_CONCURRENT_WRITES)
        refusals: list[Refusal] = []
        plan, avoidance = steps.pods, steps.nodes.avoidance

        async def create(index: int) -> bool:
            async with limit:
                outcome = refusals[0] if refusals else await self.judges.create(pool, built.template, index, avoidance)
            if isinstance(outcome, Refusal):
                refusals.append(outcome)
            return outcome is True

        async def delete(deletion: Deletion) -> None:
            async with limit:
                await self._delete(obj, pool, deletion, memory)

        await at_once(delete(d) for d in plan.delete)
        tried = [create(i) for i in plan.create[:_CREATIONS_A_PASS]]
        outcomes = await asyncio.gather(*tried, return_exceptions=True)
        created = sum(outcome is True for outcome in outcomes)
        if created:
            metrics.PODS_CREATED.labels(pool.namespace, pool.name).inc(created)
            self.record(obj, "JudgesCreated", f"judges created: {created}, wanted: {facts.desired}")
        if refusals:
            memory.refusal = refusals[0]
            self._note_failure(memory)
        elif created:
            memory.refusal = None
        raise_first(outcomes)

    def _note_failure(self, memory: _Memory) -> None:
        memory.failures = [*memory.failures[-31:], self.clock()]

    async def _delete(self, obj: Object, pool: PoolIdentity, deletion: Deletion, memory: _Memory) -> None:
        gone = await self.judges.delete(pool, deletion)
        if deletion.failed:
            self._note_failure(memory)
        if gone:
            metrics.PODS_DELETED.labels(pool.namespace, pool.name, deletion.cause).inc()
            told = f"deleted judge {deletion.name}" + (f", {deletion.why}" if deletion.why else "")
            self.record(obj, deletion.cause, told, warning=deletion.failed)

    async def _write_status(
        self, obj: Object, previous: SandboxPoolStatus, facts: PoolFacts, pods: Sequence[JudgePod], memory: _Memory
    ) -> None:
        metadata = obj["metadata"]
        status = pool_status(previous, facts, pods, self.wall())
        metrics.show(metadata["namespace"], metadata["name"], status)
        since = self.clock() - memory.written_at
        if not worth_writing(previous, status, since) and not (memory.dropped and since >= KEPT_AGAIN_SECONDS):
            return
        wire = status.to_wire()
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": wire}
        written = await self.kube.patch(POOLS, metadata["namespace"], metadata["name"], patch, "status")
        memory.written_at = self.clock()
        memory.dropped, told = self.dropped.compare(wire, written.get("status") or {})
        obj.update(trim_for_cache(POOLS, written))
        if told:
            self.record(obj, DROPPED, told, warning=True)


def _existing(pods: Sequence[JudgePod]) -> int:
    return sum(not p.deleting and not p.ended for p in pods)


def _load(pods: Sequence[JudgePod], expected: int, runs: int) -> Load:
    """Combine the load that judges report with what runs have announced."""
    serving = [p for p in pods if p.ready and not p.deleting]
    loads = [p.load for p in serving if p.load is not None]
    return Load(
        busy=sum(x.busy for x in loads),
        queued=sum(x.queued for x in loads),
        expected=expected,
        longest_wait=max((x.longest_wait for x in loads), default=0.0),
        serving=len(serving),
        free_slots=sum(max(0, x.slots - x.busy) for x in loads),
        runs=runs,
        complete=all(p.load is not None for p in serving),
    )
