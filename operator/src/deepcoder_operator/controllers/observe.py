"""Gathers the observations of a pass. A child object counts as absent only after a live read, never from a cache alone.

Storage is slow, and the plan must not rest on observations as old as the query. So child objects are observed again
while storage is waited for, and after its answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from deepcoder_contracts.api.attempt_status import AttemptState
from deepcoder_contracts.api.run import FINALIZER, DeepCoderRun
from deepcoder_operator.builders.check import check_templates
from deepcoder_operator.controllers.quotes import Quotes
from deepcoder_operator.domain.eviction import QUEUE_STOPPED, was_withdrawn_before_it_ran
from deepcoder_operator.domain.names import (
    LABEL_RUN_UID,
    TOGETHER_KEY,
    account_name,
    config_name,
    own_pool_name,
    policy_name,
    pool_name,
)
from deepcoder_operator.domain.owners import controller_uid, is_left_over, owned_by
from deepcoder_operator.domain.query import StorageQuery, rayjob_in_doubt, storage_query
from deepcoder_operator.domain.world import (
    Beat,
    ClusterView,
    PoolView,
    Problem,
    StorageView,
    World,
    cluster_view,
    pod_view,
    pool_view,
    rayjob_view,
)
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.at_once import at_once
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.informer import Informer
from deepcoder_operator.kube.resources import (
    CONFIGMAPS,
    EVENTS,
    NETWORK_POLICIES,
    PODS,
    POOLS,
    RAYJOBS,
    RUNS,
    SECRETS,
    SERVICE_ACCOUNTS,
)
from deepcoder_operator.progress_board import ProgressBoard, RunKey
from deepcoder_operator.storage.service import StorageService

log = logging.getLogger(__name__)

_REMEMBERED = 4096
"""Number of runs with checked templates kept in memory."""

LOOK_SECONDS = 2.0
"""Interval at which child objects are observed while storage is waited for."""

_NOTE_LENGTH = 200
"""Characters kept of a queue's event."""

LAST_LOOK_SECONDS = 5.0
"""How long a pass waits for storage after the end of a drain, to see whether the trainer left an exit record."""


@dataclass
class Children:
    """Caches of the objects that runs own. Pods, jobs and clusters are indexed by their run (`run_group`)."""

    rayjobs: Informer
    clusters: Informer
    pods: Informer
    pools: Informer

    async def synced(self) -> None:
        """Wait for the first list of each."""
        for informer in (self.rayjobs, self.clusters, self.pods, self.pools):
            await informer.synced.wait()


@dataclass
class Observer:
    """Observes everything that a run depends on."""

    kube: Kube
    children: Children
    board: ProgressBoard
    storage: StorageService
    _watching_since: datetime | None = None
    _checked: dict[str, tuple[int, Problem | None]] = field(default_factory=dict)
    _quotes: Quotes = field(init=False)

    def __post_init__(self) -> None:
        self._quotes = Quotes(self.kube, self.storage)

    def begin(self, clock: Callable[[], datetime]) -> None:
        """Note that this process watches from now on."""
        self._watching_since = clock()

    async def observe(
        self,
        run: DeepCoderRun,
        now: Callable[[], datetime],
        obstacle: Problem | None,
        outdated: Callable[[], bool] = lambda: False,
    ) -> World:
        """Return the observations of one pass. Raises `KubeError`.

        `obstacle` is what the previous pass could not do. `outdated` says whether the run has changed since.
        """
        world = await self._look(run, obstacle)
        query = storage_query(run, world, now())
        if query is None:
            return world
        if query.admission and FINALIZER not in run.metadata.finalizers:
            storage = await self._first_answer(run, query)
        elif query.admission:
            storage = await self.storage.answer(run, query)
        else:
            storage = await self._quotes.exit(run, await self._ask(run, query, now, outdated))
        world = replace(await self._look(run, obstacle), storage=storage, seen_at=now())
        if query.admission:
            return await self._admission(run, world)
        return replace(world, withdrawal=await self._withdrawal(run))

    async def _first_answer(self, run: DeepCoderRun, query: StorageQuery) -> StorageView | None:
        """Return storage's answer, or None if it is slow: a new run's first status does not wait for its bucket."""
        async with self.storage.aside():
            answer = asyncio.create_task(self.storage.answer(run, query), name=f"storage of {run.metadata.name}")
            try:
                await asyncio.wait({answer}, timeout=LOOK_SECONDS)
                return answer.result() if answer.done() else None
            finally:
                answer.cancel()

    async def _ask(
        self, run: DeepCoderRun, query: StorageQuery, now: Callable[[], datetime], outdated: Callable[[], bool]
    ) -> StorageView | None:
        """Return storage's answer, or None if it did not come while it still mattered.

        A bucket may take minutes. Meanwhile a queue may withdraw an attempt's quota and grant it again, its head may go
        away, or its time to drain may pass. All of these are handled without the answer.
        """
        attempt = run.status.attempt
        deadline = attempt.drain_deadline if attempt and attempt.state is AttemptState.DRAINING else None
        until = None if deadline is None else max(deadline, now()) + timedelta(seconds=LAST_LOOK_SECONDS)
        async with self.storage.aside():
            answer = asyncio.create_task(self.storage.answer(run, query), name=f"storage of {run.metadata.name}")
            try:
                while not (await asyncio.wait({answer}, timeout=LOOK_SECONDS))[0]:
                    if outdated() or (until is not None and now() >= until):
                        return None
                    if storage_query(run, await self._look(run, None, live=False), now()) is not None:
                        continue
                    if storage_query(run, await self._look(run, None), now()) is None:
                        return None
                return answer.result()
            finally:
                answer.cancel()

    async def _look(self, run: DeepCoderRun, obstacle: Problem | None, *, live: bool = True) -> World:
        """Observe everything but storage. With `live`, objects that a cache lacks, or that are in doubt, are read."""
        meta, attempt = run.metadata, run.status.attempt
        group = f"{meta.namespace}/{meta.uid}"
        jobs = {j["metadata"]["name"]: j for j in self.children.rayjobs.group(group)}
        pods = {p["metadata"]["name"]: p for p in self.children.pods.group(group)}
        if attempt is not None and live:
            if attempt.name not in jobs:
                found = await self.kube.find(RAYJOBS, meta.namespace, attempt.name)
                if found is not None:
                    jobs[attempt.name] = found
            head = pods.get(attempt.head_pod or "")
            if attempt.head_pod and (head is None or head["metadata"]["uid"] != attempt.head_uid):
                found = await self.kube.find(PODS, meta.namespace, attempt.head_pod)
                if found is not None and (found["metadata"].get("labels") or {}).get(LABEL_RUN_UID) == meta.uid:
                    pods[attempt.head_pod] = found
        named = await self._quotes.job(run, jobs[attempt.name]) if attempt and attempt.name in jobs else None
        others = [j for n, j in sorted(jobs.items()) if n != (attempt.name if attempt else None)]
        # A RayJob that somebody copied keeps the run's labels, and so do its cluster and pods.
        copies = {j["metadata"]["uid"] for j in others if not owned_by(j, meta.uid)}
        clusters = self.children.clusters.group(group) if copies else ()
        foreign = {c["metadata"]["uid"] for c in clusters if controller_uid(c) in copies}
        world = World(
            rayjob=rayjob_view(named) if named else None,
            strays=tuple(rayjob_view(j) for j in others if owned_by(j, meta.uid)),
            cluster=self._cluster(run, named),
            pods=tuple(pod_view(p) for _, p in sorted(pods.items()) if controller_uid(p) not in foreign),
            pool=await self._pool(run, live=live and attempt is not None),
            beat=self._beat(run),
            heard=self._heard(run),
            obstacle=obstacle,
            watching_since=self._watching_since,
            listening_since=self._listening_since(run),
        )
        if attempt is None or not live or not rayjob_in_doubt(attempt, world):
            return world
        certain = await self.kube.find(RAYJOBS, meta.namespace, attempt.name)
        if certain is not None:
            self.children.rayjobs.observe(certain)
            certain = await self._quotes.job(run, certain)
        return replace(
            world, rayjob=rayjob_view(certain) if certain is not None else None, cluster=self._cluster(run, certain)
        )

    async def _admission(self, run: DeepCoderRun, world: World) -> World:
        """Observe what matters only before an attempt. Read live only if nothing else holds the attempt back."""
        refusal = self._templates(run)
        if refusal is None and world.storage is not None and world.storage.problem is None:
            refusal = await self._hosted_judge(run) or await self._foreign(run)
        shared = run.spec.sandbox.pool_ref is not None
        return replace(world, refusal=refusal, pool=world.pool or await self._pool(run, live=shared))

    async def _withdrawal(self, run: DeepCoderRun) -> str:
        """Return the newest event of the queue about an attempt whose quota it withdrew before its program ran."""
        attempt = run.status.attempt
        if attempt is None or not was_withdrawn_before_it_ran(attempt):
            return ""
        try:
            selector = f"regarding.name={attempt.name}"
            found, _ = await self.kube.list(EVENTS, run.metadata.namespace, field_selector=selector)
        except errors.KubeError as e:
            log.info("events of RayJob %s cannot be listed: %s", attempt.name, e)
            return ""
        notes = [
            (e["metadata"].get("creationTimestamp") or "", e.get("note") or "")
            for e in found
            if e.get("reason") == QUEUE_STOPPED and (e.get("regarding") or {}).get("uid") == attempt.uid
        ]
        return max(notes, default=("", ""))[1][:_NOTE_LENGTH]

    def _templates(self, run: DeepCoderRun) -> Problem | None:
        """Return what the builders refuse in the spec, checked once per generation."""
        uid, generation = run.metadata.uid, run.metadata.generation
        known = self._checked.get(uid)
        if known is None or known[0] != generation:
            self._checked[uid] = known = (generation, check_templates(run))
            if len(self._checked) > _REMEMBERED:
                del self._checked[next(iter(self._checked))]
        return known[1]

    def _cluster(self, run: DeepCoderRun, job: Object | None) -> ClusterView | None:
        name = ((job or {}).get("status") or {}).get("rayClusterName")
        found = self.children.clusters.get(run.metadata.namespace, name) if name else None
        return cluster_view(found) if found else None

    async def _pool(self, run: DeepCoderRun, *, live: bool) -> PoolView | None:
        """Return the run's pool. If the cache lacks it and `live` is set, read it live."""
        namespace, name = run.metadata.namespace, pool_name(run)
        if name is None:
            return None
        found = self.children.pools.get(namespace, name)
        if found is None and live:
            found = await self.kube.find(POOLS, namespace, name)
        return pool_view(found) if found else None

    def _beat(self, run: DeepCoderRun) -> Beat | None:
        attempt = run.status.attempt
        if attempt is None:
            return None
        heartbeat = self.board.heartbeat(RunKey(run.metadata.namespace, run.metadata.name), attempt.ordinal)
        if heartbeat is None:
            return None
        alive = None if heartbeat.alive_at is None else _whole(heartbeat.alive_at)
        return Beat(heartbeat.report, _whole(heartbeat.received_at), heartbeat.pod_uid, alive)

    def _listening_since(self, run: DeepCoderRun) -> datetime | None:
        attempt = run.status.attempt
        if attempt is None:
            return None
        since = self.board.listening_since(RunKey(run.metadata.namespace, run.metadata.name), attempt.ordinal)
        return None if since is None else _whole(since)

    def _heard(self, run: DeepCoderRun) -> datetime | None:
        if self._watching_since is None:
            return None
        key = RunKey(run.metadata.namespace, run.metadata.name)
        heard = self.board.heard(key, self._watching_since.timestamp())
        return None if heard is None else _whole(heard)

    async def _hosted_judge(self, run: DeepCoderRun) -> Problem | None:
        """Check that the key of a hosted judge exists. A pod that waits for it would hold its GPUs meanwhile."""
        hosted = run.spec.sandbox.together
        if hosted is None:
            return None
        name, namespace = hosted.credentials_secret_ref.name, run.metadata.namespace
        where = f"sandbox.together.credentialsSecretRef: Secret {name}"
        try:
            secret = await self.kube.find(SECRETS, namespace, name)
        except errors.Forbidden as e:
            return Problem("SecretForbidden", f"{where} may not be read by the operator: {e}")
        if secret is None:
            return Problem("SecretNotFound", f"{where} does not exist in namespace {namespace}: create it with "
                           f"{TOGETHER_KEY}")  # fmt: skip
        if not (secret.get("data") or {}).get(TOGETHER_KEY):
            return Problem("CredentialsInvalid", f"{where} has no {TOGETHER_KEY}: add it")
        return None

    async def _foreign(self, run: DeepCoderRun) -> Problem | None:
        """Return a problem if an object under a name that the run needs is not its own. It is never adopted."""
        name, namespace = run.metadata.name, run.metadata.namespace
        wanted = [
            (CONFIGMAPS, config_name(name)),
            (SERVICE_ACCOUNTS, account_name(name)),
            (NETWORK_POLICIES, policy_name(name)),
        ]
        if run.spec.sandbox.template is not None:
            wanted.append((POOLS, own_pool_name(name)))
        there = await at_once(self.kube.find(resource, namespace, child) for resource, child in wanted)
        for (resource, child), found in zip(wanted, there, strict=True):
            if found is not None and not owned_by(found, run.metadata.uid):
                if is_left_over(found, RUNS.kind, name):
                    text = f"{resource.kind} {child} of the run that had this name before is still being removed"
                    return Problem("StillEnding", text)
                return Problem(
                    "NameConflict",
                    f"{resource.kind} {child} exists and is not this run's: delete it, or give the run another name",
                )
        return None


def run_group(obj: Object) -> str | None:
    """Index of child objects by their run: "namespace/UID". The label proves nothing: anyone who may create pods in one
    namespace can give them the UID of a run in another."""
    uid = (obj["metadata"].get("labels") or {}).get(LABEL_RUN_UID)
    return f"{obj['metadata']['namespace']}/{uid}" if uid else None


def _whole(seconds: float) -> datetime:
    """Return a time in whole seconds, as statuses hold it."""
    return datetime.fromtimestamp(int(seconds), UTC)
