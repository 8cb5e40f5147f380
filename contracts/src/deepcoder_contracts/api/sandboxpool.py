"""SandboxPool: judges that run the programs of one or more runs. Its spec is the request, its status the report.

A pool lives independently of a run: it may be warm before the run starts, be shared, and outlive it. The operator
never writes the spec, so a HorizontalPodAutoscaler or KEDA may own `spec.replicas` through the scale subresource.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from deepcoder_contracts.api.base import (
    NAMED_MAP,
    SERVICE_NAME,
    VALIDATIONS,
    LocalRef,
    PodTemplate,
    Rule,
    Spec,
    Status,
    validations,
)
from deepcoder_contracts.api.condition import Conditions
from deepcoder_contracts.api.schema import Column, CustomResource
from deepcoder_contracts.judge import Tier

MAX_NAME_LENGTH = 46
"""Longest name of a pool. Its pods append `-<index>-<hash>`, its other objects `-judge` and `-token`."""

MAX_AVOIDED_NODES = 20
"""Largest number of nodes that a pool avoids. If more are faulty, use spec.template.spec.nodeSelector."""


class PoolRef(LocalRef):
    """Reference to a SandboxPool in the same namespace."""

    model_config = ConfigDict(
        json_schema_extra={
            VALIDATIONS: validations(
                Rule(
                    f"size(self.name) <= {MAX_NAME_LENGTH} && self.name.matches('{SERVICE_NAME}')",
                    "no SandboxPool can have the name in sandbox.poolRef: use the name of a pool, which has at most "
                    f"{MAX_NAME_LENGTH} characters (a-z, 0-9, '-') and starts with a letter",
                    field_path=".name",
                ),
            )
        }
    )


class ScalingMode(StrEnum):
    """QueueDepth: the operator scales between minReplicas and maxReplicas. External: it follows spec.replicas."""

    QUEUE_DEPTH = "QueueDepth"
    EXTERNAL = "External"


class Egress(StrEnum):
    """DenyAll: judges may open no connections. Unmanaged: your own NetworkPolicies control what judges may reach."""

    DENY_ALL = "DenyAll"
    UNMANAGED = "Unmanaged"


class Scaling(Spec):
    """How the number of judges is determined."""

    mode: ScalingMode = ScalingMode.QUEUE_DEPTH
    """How the pool scales. QueueDepth: by load, between minReplicas and maxReplicas. External: to spec.replicas, which
    the /scale subresource sets."""

    target_queue_per_slot: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """QueueDepth: number of programs that may wait per slot before the pool grows."""

    target_wait_seconds: Annotated[int, Field(ge=1, le=3600)] = 30
    """QueueDepth: time, in seconds, that a program may wait before the pool grows, even if the queue is short."""

    stabilization_seconds: Annotated[int, Field(ge=0, le=3600)] = 120
    """QueueDepth: time, in seconds, for which the pool keeps the largest size that the load required."""


class Isolation(Spec):
    """How programs are isolated from each other, from the judge and from the network."""

    minimum_tier: Tier = Tier.LANDLOCK
    """Weakest confinement with which a judge may start. Namespaces: each program runs in its own namespaces. Landlock:
    Landlock and seccomp, which work in a restricted pod. Unconfined: resource limits only, for trusted programs."""

    runtime_class_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """RuntimeClass of the judges' pods, such as Kata's. Judges do not start on gVisor, which has no Landlock."""

    egress: Egress = Egress.DENY_ALL
    """Outgoing connections of judges. DenyAll: none are allowed. Unmanaged: your own NetworkPolicies decide."""


class Recycle(Spec):
    """When working judges are replaced."""

    max_age_seconds: Annotated[int, Field(ge=60)] | None = None
    """Age, in seconds, at which a judge is replaced. Judges are replaced one at a time. Default: never."""


class SandboxPoolSpec(Spec):
    """Desired state of the pool."""

    model_config = ConfigDict(
        json_schema_extra={
            VALIDATIONS: validations(
                Rule(
                    "self.maxReplicas >= self.minReplicas",
                    "maxReplicas is below minReplicas: raise maxReplicas or lower minReplicas",
                    field_path=".maxReplicas",
                ),
            )
        }
    )

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the judge. Default: the operator's image (chart value images.sandbox)."""

    replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """External: number of judges. You, an autoscaler or `kubectl scale` set it."""

    min_replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """QueueDepth: smallest number of judges. With 0, an idle pool has no pods, and the first program waits for one."""

    max_replicas: Annotated[int, Field(ge=1, le=10_000)] = 10
    """QueueDepth: largest number of judges."""

    slots_per_pod: Annotated[int, Field(ge=1, le=1024)] = 2
    """Number of programs that one judge runs at once. Give the pod one CPU per slot."""

    template: PodTemplate = {}
    """PodTemplateSpec, applied to the judges' pod template as a strategic merge patch. Set resources, node selectors,
    tolerations and pull secrets here."""

    scaling: Scaling = Scaling()
    """How the number of judges is determined."""

    isolation: Isolation = Isolation()
    """How programs are isolated."""

    recycle: Recycle = Recycle()
    """When working judges are replaced."""


class AvoidedNode(Status):
    """A node on which a judge did not start."""

    name: Annotated[str, Field(max_length=253)]
    """Name of the node."""

    template_hash: str
    """Hash of the pod template of the judge that did not start. Judges of another template may use the node."""

    since: datetime
    """Time at which the operator gave up on the judge."""

    message: Annotated[str, Field(max_length=512)] = ""
    """The judge's last output, or what Kubernetes reports about its pod."""


class SandboxPoolStatus(Status):
    """Observed state of the pool."""

    observed_generation: int = 0
    """Generation of the spec that this status reflects."""

    replicas: int = 0
    """Number of pods that exist and are not being deleted."""

    desired_replicas: int = 0
    """Number of pods that the pool should have."""

    ready_replicas: int = 0
    """Number of pods that are ready to judge."""

    slots: int = 0
    """Number of programs that the ready judges can run at once."""

    busy_slots: int = 0
    """Number of programs being judged."""

    queue_depth: int = 0
    """Number of programs waiting."""

    longest_wait_seconds: int = 0
    """Time, in seconds, that the longest-waiting program has waited."""

    selector: str = ""
    """Label selector of the pods, for the scale subresource."""

    refused_template_hash: str = ""
    """Hash of a pod template (label deepcoder.dev/template-hash) with which every judge refused to start. It stays
    until a judge serves or the template changes. Meanwhile runs request no GPUs, even if the pool has no pods."""

    avoided_nodes: Annotated[list[AvoidedNode], Field(max_length=MAX_AVOIDED_NODES, json_schema_extra=NAMED_MAP)] = []
    """Nodes on which judges did not start. The pool avoids each of them for an hour."""

    conditions: Conditions = []
    """Accepted, Ready, Scaling and UpToDate."""


RESOURCE = CustomResource(
    kind="SandboxPool",
    plural="sandboxpools",
    short_name="sbp",
    description="Judges that run generated programs in isolation, shared by the runs of a namespace.",
    spec=SandboxPoolSpec,
    status=SandboxPoolStatus,
    columns=(
        Column("Ready", ".status.readyReplicas", "integer"),
        Column("Desired", ".status.desiredReplicas", "integer"),
        Column("Slots", ".status.slots", "integer"),
        Column("Busy", ".status.busySlots", "integer"),
        Column("Queued", ".status.queueDepth", "integer"),
        Column("Age", ".metadata.creationTimestamp", "date"),
        Column("Waited", ".status.longestWaitSeconds", "integer", wide=True),
        Column("Mode", ".spec.scaling.mode", wide=True),
        Column("Image", ".spec.image", wide=True),
    ),
    rules=validations(
        Rule(
            f"size(self.metadata.name) <= {MAX_NAME_LENGTH}",
            f"metadata.name is longer than {MAX_NAME_LENGTH} characters, which makes the names of its pods too long: "
            "shorten it",
        ),
        Rule(
            # Not of stored pools: earlier releases took such names, and the status of those pools stays writable.
            f"oldSelf.hasValue() || self.metadata.name.matches('{SERVICE_NAME}')",
            "metadata.name becomes part of the name of the pool's Service: use a DNS label (a-z, 0-9, '-') that starts "
            "with a letter",
            optional_old_self=True,
        ),
    ),
    scale={
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    },
)
"""The kind, for the CRD generator."""
