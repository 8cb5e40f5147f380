"""What a pass has observed, as values: the planner sees these and nothing else.

Raw objects are read here in one place, leniently: a field another controller has not written yet is absent, never an
error. Absence of a child is only put in here after a live read (see `controllers/observe.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from deepcoder_contracts.api.run_status import CheckpointStatus
from deepcoder_contracts.base import Digest
from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.gate import GateRecord
from deepcoder_contracts.manifest import ParentRef
from deepcoder_contracts.progress import ProgressReport
from deepcoder_contracts.sizing import pod_gpus
from deepcoder_contracts.stage import StageType
from deepcoder_operator.domain.names import LABEL_ORDINAL, LABEL_ROLE, trainer_container
from deepcoder_operator.domain.owners import controller_uid
from deepcoder_operator.domain.pool_status import IDLE, UNMENDED

Object = Mapping[str, Any]

RAYJOB_INVALID = "RayJobInvalid"
"""Reason of an obstacle that no waiting mends: the API server refuses what the attempt is made of."""

REPLICA_FAILURE = "ReplicaFailure"
"""Condition of a RayCluster whose pods the API server refuses to make or to delete."""

WAITING_LENGTH = 500
"""Characters kept of what a pod waits for."""

_STARTS = (None, "ContainerCreating", "PodInitializing")
"""Reasons of a container to wait that say nothing."""

_MOST_WAITING = 3
"""Different reasons to wait that are told."""

MESSAGE_LENGTH = 800
"""Characters kept of a job's message."""


@dataclass(frozen=True)
class Problem:
    """Why a run cannot go on: a CamelCase word, and a message with the mend."""

    reason: str
    message: str
    action: str = ""
    """Of a plan's action that could not be carried out: which."""


@dataclass(frozen=True)
class RayJobView:
    """A RayJob of the run."""

    name: str
    uid: str
    owner_uid: str | None
    ordinal: int
    deleting: bool = False
    suspended: bool = False
    """spec.suspend, which Kueue owns where a queue is set."""
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
    """Why KubeRay cannot make its pods: a quota, a webhook that refuses them. Pods that are not there tell nothing."""


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
    """Whether its node's kubelet is not reached: nobody knows how it is."""
    deleting: bool = False
    grace: int | None = None
    """Seconds it was given to end, once it is being deleted."""
    restarts: int = 0
    reason: str = ""
    """status.reason: Evicted, NodeLost, …"""
    disruption: str = ""
    """Reason of a true DisruptionTarget condition."""
    terminated: str = ""
    """Reason of a container's end: OOMKilled, Error, …"""
    exit_code: int | None = None
    message: str = ""
    waiting: str = ""
    """Why a container or the scheduler waits, for people."""
    image_id: str = ""
    gpus: int = 0
    node_selector: Mapping[str, str] | None = None
    scheduled: datetime | None = None
    finished: datetime | None = None


@dataclass(frozen=True)
class PoolView:
    """The SandboxPool that judges for the run."""

    name: str
    ready: bool
    message: str = ""
    replicas: int = 0
    uid: str = ""
    owner_uid: str | None = None
    """The run whose own it is, if it is one's."""
    deleting: bool = False
    edited: bool = False
    """Whether somebody has changed its spec, which the operator never does."""
    unmended: str = ""
    """Why it cannot be ready, as its spec is now, until somebody mends what it says: the reason's word."""
    unready_since: datetime | None = None
    """Since when no judge has been ready; None: one is."""
    idle: bool = False
    """Whether it is ready only in that it was scaled to zero: whether a judge starts is seen when one is wanted."""

    def trouble(self) -> str:
        """Why it does not judge, for people."""
        return f"SandboxPool {self.name}: {self.message}"


@dataclass(frozen=True)
class StoredStage:
    """What storage holds of a stage; everything here has been verified."""

    newest: CheckpointStatus | None = None
    """Newest verified checkpoint."""
    gate: GateRecord | None = None
    """Its gate."""
    metrics: Mapping[str, float] | None = None
    """Its metrics; of an Evaluate stage the results."""
    evaluated: bool = False
    """Evaluate stage: a manifest of its results is there."""
    code_digest: Digest | None = None
    """Trainer source that wrote it."""
    dataset_digest: Digest | None = None
    """Problems that it was trained on."""
    versions: Mapping[str, str] | None = None
    """Of what the trainer that wrote it stands on."""
    exit: ExitRecord | None = None
    """How the asked-for attempt ended, in its own words."""
    rejected: tuple[str, ...] = ()
    """Manifests that do not count, and why."""

    def ends(self, stage: StageType) -> bool:
        """Whether what ends a stage of this type is there."""
        return self.evaluated if stage is StageType.EVALUATE else self.newest is not None and self.newest.final


@dataclass(frozen=True)
class StorageView:
    """Answer to a `StorageQuery`."""

    problem: Problem | None = None
    """Why nothing could be read."""
    stage: StoredStage | None = None
    """The asked-for stage."""
    origin: ParentRef | None = None
    """spec.from with its digest, verified."""


@dataclass(frozen=True)
class Beat:
    """The newest report of the live attempt, and when it came."""

    report: ProgressReport
    received: datetime
    pod_uid: str | None = None
    """UID of the pod that sent it."""
    alive: datetime | None = None
    """When the last report came that showed a new step, or another phase than training."""


@dataclass(frozen=True)
class World:
    """Everything a pass knows beside the run itself."""

    rayjob: RayJobView | None = None
    """The RayJob under the live attempt's name, whoever made it."""
    strays: tuple[RayJobView, ...] = ()
    """Other RayJobs that this run owns."""
    cluster: ClusterView | None = None
    pods: tuple[PodView, ...] = ()
    pool: PoolView | None = None
    """None: there is no such pool (yet)."""
    storage: StorageView | None = None
    """None: not asked."""
    beat: Beat | None = None
    refusal: Problem | None = None
    """What builders refuse of the spec."""
    obstacle: Problem | None = None
    """What kept the plan before this one from being carried out; None if nothing did, or after a restart."""
    watching_since: datetime | None = None
    """When this process began to watch; before it, ends of pods and heartbeats may have been missed."""
    listening_since: datetime | None = None
    """Since when the live attempt's reports are taken; None: they are not yet."""
    heard: datetime | None = None
    """When a report of another run's attempt last came, since this process watches; None where no other runs."""
    seen_at: datetime | None = None
    """When the rest was seen, if that is later than the pass began since storage was waited for."""

    @property
    def stored(self) -> StoredStage | None:
        """What storage has told of the stage; None: it was not asked, or could not tell."""
        return self.storage.stage if self.storage else None

    def rayjob_of(self, run_uid: str) -> RayJobView | None:
        """The RayJob under the live attempt's name, if it is the run's own."""
        return self.rayjob if self.rayjob is not None and self.rayjob.owner_uid == run_uid else None

    def pods_of(self, ordinal: int) -> list[PodView]:
        """Pods of an attempt."""
        return [p for p in self.pods if p.ordinal == ordinal]

    def head(self, ordinal: int) -> PodView | None:
        """The head pod of an attempt, the one that is not being deleted first."""
        heads = [p for p in self.pods_of(ordinal) if p.role == "head"]
        return min(heads, key=lambda p: (p.deleting, p.name), default=None)

    def with_waits(self, text: str, ordinal: int) -> str:
        """A text, and after it what keeps an attempt's pods from being there: each reason once, with a pod's name."""
        refused = (
            [f"KubeRay cannot make its pods: {self.cluster.trouble}"] if self.cluster and self.cluster.trouble else []
        )
        pods = {p.waiting: p.name for p in reversed(self.pods_of(ordinal)) if p.waiting}
        told = refused + [f"pod {name}: {why}" for why, name in reversed(pods.items())]
        more = [f"and {len(told) - _MOST_WAITING} other reasons"] if len(told) > _MOST_WAITING else []
        return "; ".join([text, *told[:_MOST_WAITING], *more])

    def beat_of(self, ordinal: int) -> Beat | None:
        """The newest report, if it is an attempt's own."""
        return self.beat if self.beat is not None and self.beat.report.ordinal == ordinal else None


def rayjob_view(obj: Object) -> RayJobView:
    """A RayJob."""
    meta, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    return RayJobView(
        name=meta["name"],
        uid=meta["uid"],
        owner_uid=controller_uid(obj),
        ordinal=_ordinal(meta),
        deleting=bool(meta.get("deletionTimestamp")),
        suspended=bool(spec.get("suspend")),
        job_status=status.get("jobStatus") or "",
        deployment_status=status.get("jobDeploymentStatus") or "",
        reason=status.get("reason") or "",
        message=excerpt(status.get("message") or ""),
        ended=parse_time(status.get("endTime")),
    )


def cluster_view(obj: Object) -> ClusterView:
    """A RayCluster."""
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
    """A pod of a run."""
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
        message=(end.get("message") or status.get("message") or "")[:500],
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
    """A SandboxPool."""
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
        unmended=found["reason"] if not ready and current and found.get("reason") in UNMENDED else "",
        unready_since=None if ready else parse_time(found.get("lastTransitionTime")),
        idle=ready and found.get("reason") == IDLE,
    )


def parse_time(text: str | None) -> datetime | None:
    """An RFC 3339 time of the API."""
    return datetime.fromisoformat(text) if text else None


def excerpt(message: str) -> str:
    """A job's message ends with the driver's last lines, and the last of them says most."""
    return message if len(message) <= MESSAGE_LENGTH else f"{message[:100]} … {message[-(MESSAGE_LENGTH - 103) :]}"


def _ordinal(meta: Object) -> int:
    text = (meta.get("labels") or {}).get(LABEL_ORDINAL, "0")
    return int(text) if text.isdigit() else 0
