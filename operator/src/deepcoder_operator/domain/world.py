"""The observations of a pass, as values. The planner sees nothing else.

This module alone reads raw objects, and reads them leniently: a field that another controller has not written yet is
absent, never an error. A child object counts as absent only after a live read (see `controllers/observe.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from deepcoder_contracts.api.attempt_status import AttemptStatus
from deepcoder_contracts.api.run_status import CheckpointStatus
from deepcoder_contracts.base import Digest
from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.gate import GateRecord
from deepcoder_contracts.manifest import ParentRef
from deepcoder_contracts.progress import ProgressReport
from deepcoder_contracts.sizing import pod_gpus
from deepcoder_contracts.stage import StageType
from deepcoder_operator.domain.names import (
    LABEL_ASKED_QUEUE,
    LABEL_ORDINAL,
    LABEL_ROLE,
    QUEUE_LABEL,
    trainer_container,
)
from deepcoder_operator.domain.owners import controller, controller_uid
from deepcoder_operator.domain.pool_status import IDLE, STUCK_REASONS

Object = Mapping[str, Any]

RAYJOB_INVALID = "RayJobInvalid"
"""Reason of an obstacle that does not go away by waiting: the API server refuses the attempt's RayJob."""

REPLICA_FAILURE = "ReplicaFailure"
"""Condition of a RayCluster whose pods the API server refuses to create or delete."""

WAITING_LENGTH = 500
"""Characters kept of the reason for which a pod waits."""

_STARTS = (None, "ContainerCreating", "PodInitializing")
"""Waiting reasons of a container that carry no information."""

_MOST_WAITING = 3
"""Largest number of different waiting reasons in a message."""

MESSAGE_LENGTH = 800
"""Characters kept of a job's message."""


@dataclass(frozen=True)
class Problem:
    """Why a run cannot continue: a CamelCase reason, and a message that says how to fix it."""

    reason: str
    message: str
    action: str = ""
    """The plan's action that could not be carried out, if there was one."""


@dataclass(frozen=True)
class RayJobView:
    """A RayJob of the run."""

    name: str
    uid: str
    owner_uid: str | None
    ordinal: int
    deleting: bool = False
    run_name: str = ""
    """Name of the run that owns it, or that owned it before it was deleted."""
    suspended: bool = False
    """spec.suspend, which Kueue controls if a queue is set."""
    queue: str = ""
    """The queue in Kueue's label, whoever set it."""
    asked_queue: str | None = None
    """The queue that the run named when it was created, empty if it named none. None: an older release created it."""
    job_status: str = ""
    """PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED, or empty."""
    deployment_status: str = ""
    """Initializing, Running, Complete, Failed, ValidationFailed, Suspended, …"""
    reason: str = ""
    message: str = ""
    ended: datetime | None = None


@dataclass(frozen=True)
class ClusterView:
    """The RayCluster of the live attempt."""

    uid: str
    ready: bool
    trouble: str = ""
    """Why KubeRay cannot create its pods, such as a quota or a webhook. Missing pods cannot show this themselves."""


@dataclass(frozen=True)
class PodView:
    """A pod of the run."""

    name: str
    uid: str
    role: str
    ordinal: int
    phase: str = ""
    ready: bool = False
    unreachable: bool = False
    """Whether its node's kubelet is unreachable, so that its state is unknown."""
    deleting: bool = False
    grace: int | None = None
    """Grace period in seconds, once it is being deleted."""
    restarts: int = 0
    reason: str = ""
    """status.reason: Evicted, NodeLost, …"""
    disruption: str = ""
    """Reason of a true DisruptionTarget condition."""
    terminated: str = ""
    """Reason for a container's termination: OOMKilled, Error, …"""
    exit_code: int | None = None
    message: str = ""
    waiting: str = ""
    """Why a container or the scheduler waits, for people."""
    image_id: str = ""
    gpus: int = 0
    node_selector: Mapping[str, str] | None = None
    scheduled: datetime | None = None
    finished: datetime | None = None
    controller: str | None = None
    """UID of its controller: its RayCluster. None if that left it behind, or if it is somebody's copy of a pod."""


@dataclass(frozen=True)
class PoolView:
    """The SandboxPool that judges for the run."""

    name: str
    ready: bool
    message: str = ""
    replicas: int = 0
    uid: str = ""
    owner_uid: str | None = None
    """The run that owns the pool, if one does."""
    deleting: bool = False
    edited: bool = False
    """Whether somebody has changed its spec. The operator never does."""
    stuck_reason: str = ""
    """Reason for which the pool stays unready, with its current spec, until somebody fixes it. Empty if none."""
    unready_since: datetime | None = None
    """Time since which no judge has been ready. None if one is."""
    idle: bool = False
    """Whether it is ready only because it is scaled to zero, so that nobody knows whether a judge would start."""

    def trouble(self) -> str:
        """Return why the pool does not judge, for people."""
        return f"SandboxPool {self.name}: {self.message}"


@dataclass(frozen=True)
class StoredStage:
    """What storage has of a stage. Everything here is verified."""

    newest: CheckpointStatus | None = None
    """Newest verified checkpoint."""
    gate: GateRecord | None = None
    """Gate verdict of the checkpoint."""
    metrics: Mapping[str, float] | None = None
    """Metrics of the checkpoint; for an Evaluate stage, the results."""
    evaluated: bool = False
    """Evaluate stage: whether a manifest of its results exists."""
    code_digest: Digest | None = None
    """Digest of the trainer source that wrote the checkpoint."""
    dataset_digest: Digest | None = None
    """Digest of the training problems."""
    versions: Mapping[str, str] | None = None
    """Package versions of the trainer that wrote the checkpoint."""
    exit: ExitRecord | None = None
    """Exit record of the requested attempt."""
    rejected: tuple[str, ...] = ()
    """Manifests that do not count, and why."""

    def ends(self, stage: StageType) -> bool:
        """Whether the result that completes a stage of this type exists."""
        return self.evaluated if stage is StageType.EVALUATE else self.newest is not None and self.newest.final


@dataclass(frozen=True)
class StorageView:
    """Answer to a `StorageQuery`."""

    problem: Problem | None = None
    """Why nothing could be read."""
    stage: StoredStage | None = None
    """The requested stage."""
    origin: ParentRef | None = None
    """spec.from with its digest, verified."""


@dataclass(frozen=True)
class Beat:
    """The newest report of the live attempt, and when it arrived."""

    report: ProgressReport
    received: datetime
    pod_uid: str | None = None
    """UID of the pod that sent it."""
    alive: datetime | None = None
    """Time of the last report that showed a new step, or a phase other than training."""


@dataclass(frozen=True)
class World:
    """Everything that a pass knows besides the run itself."""

    rayjob: RayJobView | None = None
    """The RayJob with the live attempt's name, whoever created it."""
    strays: tuple[RayJobView, ...] = ()
    """Other RayJobs that this run owns."""
    cluster: ClusterView | None = None
    pods: tuple[PodView, ...] = ()
    pool: PoolView | None = None
    """None if the pool does not exist (yet)."""
    storage: StorageView | None = None
    """None if storage was not queried."""
    beat: Beat | None = None
    refusal: Problem | None = None
    """What the builders refuse in the spec."""
    withdrawal: str = ""
    """What the queue said when it withdrew the quota of an attempt that had not run."""
    obstacle: Problem | None = None
    """Why the previous plan could not be carried out. None if it could, or after a restart."""
    watching_since: datetime | None = None
    """Time at which this process began to watch. Ends of pods and heartbeats before it may have been missed."""
    listening_since: datetime | None = None
    """Time since which the live attempt's reports are accepted. None if they are not yet."""
    heard: datetime | None = None
    """Time of the last report from another run's attempt since this process watches. None if no other attempt runs."""
    seen_at: datetime | None = None
    """Time of the observations, if waiting for storage made it later than the start of the pass."""

    @property
    def stored(self) -> StoredStage | None:
        """What storage has of the stage. None if storage was not queried or did not answer."""
        return self.storage.stage if self.storage else None

    def rayjob_of(self, run_uid: str) -> RayJobView | None:
        """Return the RayJob with the live attempt's name, if the run owns it."""
        return self.rayjob if self.rayjob is not None and self.rayjob.owner_uid == run_uid else None

    def pods_of(self, ordinal: int) -> list[PodView]:
        """Return the pods of an attempt.

        Somebody may copy a pod to look into it (`kubectl debug --copy-to --keep-labels`). The copy has its labels, but
        no controller. A pod whose RayCluster was deleted without it has none either, but then its head has none.
        """
        pods = [p for p in self.pods if p.ordinal == ordinal]
        if any(p.role == "head" and p.controller for p in pods):
            return [p for p in pods if p.controller]
        return pods

    def head(self, attempt: AttemptStatus) -> PodView | None:
        """Return the head pod of an attempt: that of its cluster, or the one that it was seen to have, or another."""
        heads = [p for p in self.pods_of(attempt.ordinal) if p.role == "head"]
        cluster = self.cluster.uid if self.cluster else attempt.cluster_uid

        def strangeness(head: PodView) -> tuple[bool, bool, bool, str]:
            foreign = head.controller is None or head.controller != cluster
            return foreign, head.uid != attempt.head_uid, head.deleting, head.name

        return min(heads, key=strangeness, default=None)

    def with_waits(self, text: str, ordinal: int) -> str:
        """Append to a text why an attempt's pods are not ready: each reason once, with the name of a pod."""
        refused = (
            [f"KubeRay cannot make its pods: {self.cluster.trouble}"] if self.cluster and self.cluster.trouble else []
        )
        pods = {p.waiting: p.name for p in reversed(self.pods_of(ordinal)) if p.waiting}
        told = refused + [f"pod {name}: {why}" for why, name in reversed(pods.items())]
        more = [f"and {len(told) - _MOST_WAITING} other reasons"] if len(told) > _MOST_WAITING else []
        return "; ".join([text, *told[:_MOST_WAITING], *more])

    def beat_of(self, ordinal: int) -> Beat | None:
        """Return the newest report, if it comes from this attempt."""
        return self.beat if self.beat is not None and self.beat.report.ordinal == ordinal else None


def rayjob_view(obj: Object) -> RayJobView:
    """Read a RayJob."""
    meta, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    labels, owner = meta.get("labels") or {}, controller(obj) or {}
    return RayJobView(
        name=meta["name"],
        uid=meta["uid"],
        owner_uid=controller_uid(obj),
        ordinal=_ordinal(meta),
        deleting=bool(meta.get("deletionTimestamp")),
        run_name=owner.get("name", "") if owner.get("kind") == "DeepCoderRun" else "",
        suspended=bool(spec.get("suspend")),
        queue=labels.get(QUEUE_LABEL, ""),
        asked_queue=labels.get(LABEL_ASKED_QUEUE),
        job_status=status.get("jobStatus") or "",
        deployment_status=status.get("jobDeploymentStatus") or "",
        reason=status.get("reason") or "",
        message=excerpt(status.get("message") or ""),
        ended=parse_time(status.get("endTime")),
    )


def cluster_view(obj: Object) -> ClusterView:
    """Read a RayCluster."""
    status = obj.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    refused = conditions.get(REPLICA_FAILURE, {})
    told = " ".join(str(refused.get("message") or refused.get("reason") or "").split())
    return ClusterView(
        uid=obj["metadata"]["uid"],
        ready=status.get("state") == "ready",
        trouble=told[:WAITING_LENGTH] if refused.get("status") == "True" else "",
    )


def pod_view(obj: Object) -> PodView:
    """Read a pod of a run."""
    meta, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    containers = status.get("containerStatuses") or []
    all_containers = [*(status.get("initContainerStatuses") or ()), *containers]
    ended = [s["state"]["terminated"] for s in containers if "terminated" in (s.get("state") or {})]
    own = trainer_container(containers)
    end: Object = (own.get("state") or {}).get("terminated") or {}
    waits = (s["state"]["waiting"] for s in all_containers if "waiting" in (s.get("state") or {}))
    waiting: Object = next((w for w in waits if w.get("reason") not in _STARTS), {})
    scheduled, disruption = conditions.get("PodScheduled", {}), conditions.get("DisruptionTarget", {})
    unscheduled = scheduled if scheduled.get("status") == "False" else {}
    why = waiting or unscheduled
    return PodView(
        name=meta["name"],
        uid=meta["uid"],
        role=(meta.get("labels") or {}).get(LABEL_ROLE, ""),
        controller=controller_uid(obj),
        ordinal=_ordinal(meta),
        phase=status.get("phase") or "",
        ready=conditions.get("Ready", {}).get("status") == "True",
        unreachable=conditions.get("Ready", {}).get("status") == "Unknown",
        deleting=bool(meta.get("deletionTimestamp")),
        grace=meta.get("deletionGracePeriodSeconds"),
        restarts=own.get("restartCount", 0),
        reason=status.get("reason") or "",
        disruption=disruption.get("reason", "") if disruption.get("status") == "True" else "",
        terminated=end.get("reason") or "",
        exit_code=end.get("exitCode"),
        message=(status.get("message") or end.get("message") or "")[:500],
        waiting=f"{why.get('reason', '')}: {why.get('message', '')}"[:WAITING_LENGTH] if why else "",
        image_id=own.get("imageID", ""),
        gpus=pod_gpus(spec),
        node_selector=spec.get("nodeSelector"),
        scheduled=parse_time(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None,
        finished=max(filter(None, (parse_time(t.get("finishedAt")) for t in ended)), default=None)
        if ended and len(ended) == len(containers)
        else None,
    )


def pool_view(obj: Object) -> PoolView:
    """Read a SandboxPool."""
    meta, status = obj["metadata"], obj.get("status") or {}
    found: Object = next((c for c in status.get("conditions") or () if c["type"] == "Ready"), {})
    ready = found.get("status") == "True"
    current = found.get("observedGeneration") == meta.get("generation")
    return PoolView(
        name=meta["name"],
        ready=ready,
        message=found.get("message") or "",
        replicas=status.get("replicas") or 0,
        uid=meta["uid"],
        owner_uid=controller_uid(obj),
        deleting=bool(meta.get("deletionTimestamp")),
        edited=(meta.get("generation") or 1) > 1,
        stuck_reason=found["reason"] if not ready and current and found.get("reason") in STUCK_REASONS else "",
        unready_since=None if ready else parse_time(found.get("lastTransitionTime")),
        idle=ready and found.get("reason") == IDLE,
    )


def parse_time(text: str | None) -> datetime | None:
    """Parse an RFC 3339 time of the API. None stays None."""
    return datetime.fromisoformat(text) if text else None


def excerpt(message: str) -> str:
    """Shorten a job's message, but keep its end: the driver's last lines say most."""
    return message if len(message) <= MESSAGE_LENGTH else f"{message[:100]} … {message[-(MESSAGE_LENGTH - 103) :]}"


def _ordinal(meta: Object) -> int:
    text = (meta.get("labels") or {}).get(LABEL_ORDINAL, "0")
    return int(text) if text.isdigit() else 0
