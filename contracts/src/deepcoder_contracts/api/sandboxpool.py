"""SandboxPool: judges that run the programs of one or several runs, as users ask for them and as they are reported.

A pool has another life than a run: it may be warm before it, be shared, and outlive it. The operator never writes
the spec, so that a HorizontalPodAutoscaler or KEDA may own `spec.replicas` through the scale subresource.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from deepcoder_contracts.api.base import NAMED_MAP, VALIDATIONS, PodTemplate, Rule, Spec, Status, validations
from deepcoder_contracts.api.condition import Conditions
from deepcoder_contracts.api.schema import Column, CustomResource
from deepcoder_contracts.judge import Tier

MAX_NAME_LENGTH = 46
"""Longest name of a pool: `-<index>-<hash>` is appended for its pods, `-judge` and `-token` for the rest."""

MAX_AVOIDED_NODES = 20
"""Nodes that a pool avoids at most: where more are at fault, spec.template.spec.nodeSelector is how to say so."""


class ScalingMode(StrEnum):
    """QueueDepth: the operator decides between minReplicas and maxReplicas. External: spec.replicas is obeyed."""

    QUEUE_DEPTH = "QueueDepth"
    EXTERNAL = "External"


class Egress(StrEnum):
    """DenyAll: judges may open no connection. Unmanaged: NetworkPolicies of your own govern what they may reach."""

    DENY_ALL = "DenyAll"
    UNMANAGED = "Unmanaged"


class Scaling(Spec):
    """How the number of judges is decided."""

    mode: ScalingMode = ScalingMode.QUEUE_DEPTH
    """QueueDepth (between minReplicas and maxReplicas, by load) or External (spec.replicas, through /scale)."""

    target_queue_per_slot: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """QueueDepth: programs that may wait for each slot before the pool grows."""

    target_wait_seconds: Annotated[int, Field(ge=1, le=3600)] = 30
    """QueueDepth: seconds that a program may wait before the pool grows, however short the queue is."""

    stabilization_seconds: Annotated[int, Field(ge=0, le=3600)] = 120
    """QueueDepth: time for which the pool keeps the largest size that the load called for."""


class Isolation(Spec):
    """How programs are kept from each other, from the judge and from the network."""

    minimum_tier: Tier = Tier.LANDLOCK
    """Weakest confinement a judge may start with. Namespaces: each program in namespaces of its own. Landlock: by
    Landlock and seccomp, which a restricted pod may. Unconfined: by limits alone, for programs that you trust."""

    runtime_class_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """RuntimeClass of the judges' pods, Kata's for example. gVisor has no Landlock: judges do not start there."""

    egress: Egress = Egress.DENY_ALL
    """DenyAll, or Unmanaged where NetworkPolicies of your own govern."""


class Recycle(Spec):
    """When a judge that works is replaced all the same."""

    max_age_seconds: Annotated[int, Field(ge=60)] | None = None
    """Judges older than this are replaced, one after the other."""


class SandboxPoolSpec(Spec):
    """The judges that are wanted."""

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
    """Image of the judge. Default: the operator's (chart value images.sandbox)."""

    replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """scaling.mode External: number of judges; written by you, an autoscaler or `kubectl scale`."""

    min_replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """QueueDepth: fewest judges. 0 lets the pool vanish when idle, and the first program then waits for a pod."""

    max_replicas: Annotated[int, Field(ge=1, le=10_000)] = 10
    """QueueDepth: most judges."""

    slots_per_pod: Annotated[int, Field(ge=1, le=1024)] = 2
    """Programs that one judge runs at once. Give the pod a CPU for each."""

    template: PodTemplate = {}
    """Merged strategically over the judges' pod template: resources, node selector, tolerations, pull secrets."""

    scaling: Scaling = Scaling()
    """How the number of judges is decided."""

    isolation: Isolation = Isolation()
    """How programs are confined."""

    recycle: Recycle = Recycle()
    """When judges are replaced."""


class AvoidedNode(Status):
    """A node on which a judge did not start."""

    name: Annotated[str, Field(max_length=253)]
    """Its name."""

    template_hash: str
    """Hash of the template that the judge was made from; those of another are tried there."""

    since: datetime
    """When the judge was given up there."""

    message: Annotated[str, Field(max_length=512)] = ""
    """What the judge said last, or Kubernetes of it."""


class SandboxPoolStatus(Status):
    """The judges that there are."""

    observed_generation: int = 0
    """Generation of the spec that this status answers."""

    replicas: int = 0
    """Pods that exist and are not being deleted."""

    desired_replicas: int = 0
    """Pods that are wanted."""

    ready_replicas: int = 0
    """Pods that are ready to judge."""

    slots: int = 0
    """Programs that the ready judges can run at once."""

    busy_slots: int = 0
    """Programs being judged."""

    queue_depth: int = 0
    """Programs waiting."""

    longest_wait_seconds: int = 0
    """Seconds for which the program that has waited longest has waited."""

    selector: str = ""
    """Label selector of the pods, for the scale subresource."""

    refused_template_hash: str = ""
    """Hash of the template (label deepcoder.dev/template-hash of its pods) of which every judge refused to start, until
    one serves or the template is another. Runs ask for no GPU meanwhile, also while there are no pods."""

    avoided_nodes: Annotated[list[AvoidedNode], Field(max_length=MAX_AVOIDED_NODES, json_schema_extra=NAMED_MAP)] = []
    """Nodes on which judges did not start: for an hour each, others are made elsewhere."""

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
            f"metadata.name is longer than {MAX_NAME_LENGTH} characters, which would overflow the names of its pods: "
            "shorten it",
        ),
        Rule(
            "!self.metadata.name.contains('.')",
            "metadata.name contains a dot, which the pool's Service cannot have: use '-' instead",
        ),
    ),
    scale={
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    },
)
"""The kind, for the CRD generator."""
