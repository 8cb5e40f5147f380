"""Objects of a SandboxPool: judges' pods, headless Service, bearer token, NetworkPolicy and PodDisruptionBudget.

Pods meet the restricted Pod Security Standard. Untrusted programs run inside them: the judge's own confinement is the
first line of defence, and the pod is the second. A template may add scheduling, resources, sidecars and volumes. Fields
that would weaken the second line are refused with `TemplateError`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepcoder_contracts.api.base import API_VERSION
from deepcoder_contracts.api.sandboxpool import RESOURCE, Egress, SandboxPoolSpec
from deepcoder_contracts.pod_template import malformed
from deepcoder_contracts.template_refusals import JUDGE_CONTAINER, refused_of_judge
from deepcoder_operator.builders import mesh
from deepcoder_operator.builders.podtemplate import TemplateError, merge
from deepcoder_operator.builders.restricted import (
    CONTAINER_CONTEXT,
    pod_context,
    restrict_added,
)
from deepcoder_operator.domain.pool_names import (
    JUDGE_PORT,
    LABEL_AVOIDS,
    LABEL_INDEX,
    LABEL_POOL,
    LABEL_TEMPLATE_HASH,
    TOKEN_KEY,
    pod_name,
    service_name,
    token_secret_name,
)
from deepcoder_operator.domain.pool_nodes import NOTHING_AVOIDED, Avoidance

CONTAINER = JUDGE_CONTAINER

TOKEN_DIRECTORY = "/etc/deepcoder/token"  # noqa: S105
"""Mount path of the token."""

DRAIN_SECONDS = 60
"""Time, in seconds, that a judge has to finish accepted submissions."""

_LEAVE_SERVICE_SECONDS = 3
"""Clients resolve the Service every 2 s. A judge keeps listening until they have seen it leave."""

_EVERY_ADDRESS = ""
"""Judges listen on all addresses, IPv4 and IPv6. A kubelet probes a pod's first address, which may be of either family.
`::` would mean IPv6 only."""


@dataclass(frozen=True)
class PoolIdentity:
    """Which pool the objects belong to."""

    namespace: str
    """Namespace of the pool and of all its objects."""

    name: str
    """Name of the pool."""

    uid: str
    """UID of the pool, for owner references: its objects are deleted with it."""


@dataclass(frozen=True)
class PoolSettings:
    """What the operator itself adds to every pool."""

    default_image: str
    """Image of judges whose pool does not set one."""

    operator_namespace: str
    """Namespace of the operator, which polls judges for their load."""

    operator_labels: Mapping[str, str]
    """Labels of the operator's pods."""

    run_label: str
    """Label that every pod of a run carries; such pods may reach the judges."""

    monitoring_namespace: str | None = None
    """Namespace that may scrape the judges' metrics."""

    fixed_user: bool = True
    """Whether judges run as the user of our images, or as the one that the cluster assigns."""


def build_pod_template(pool: PoolIdentity, spec: SandboxPoolSpec, settings: PoolSettings) -> dict[str, Any]:
    """Build a judge's PodTemplateSpec. Raises `TemplateError` if the user's template sets a field the operator owns."""
    refuse_judge_template(spec.template, "spec.template")
    return restrict_added(merge(_base_template(pool, spec, settings), spec.template), CONTAINER)


def template_hash(template: Mapping[str, Any]) -> str:
    """Return a hash of a template: eight hexadecimal digits."""
    canonical = json.dumps(template, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(canonical).hexdigest()[:8]


def build_pod(
    pool: PoolIdentity, template: Mapping[str, Any], index: int, avoidance: Avoidance = NOTHING_AVOIDED
) -> dict[str, Any]:
    """Build a judge's pod from the merged template. It avoids the nodes that the pool avoids."""
    digest = template_hash(template)
    avoids = {LABEL_AVOIDS: avoidance.label} if avoidance.nodes else {}
    extra = {
        "metadata": {
            "name": pod_name(pool.name, index, digest),
            "namespace": pool.namespace,
            "labels": {LABEL_TEMPLATE_HASH: digest, LABEL_INDEX: str(index)} | avoids,
            "ownerReferences": [_owner(pool)],
        }
    }
    pod = {"apiVersion": "v1", "kind": "Pod", **merge(template, extra)}
    if avoidance.nodes:
        _keep_off(pod["spec"], avoidance)
    return pod


def _keep_off(spec: dict[str, Any], avoidance: Avoidance) -> None:
    """Add the node affinity to that of the template. Nodes are matched by name, because a hostname label may differ."""
    affinity = _map_in(_map_in(spec, "affinity"), "nodeAffinity")
    off = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in avoidance.nodes]
    if not avoidance.required:
        field = "preferredDuringSchedulingIgnoredDuringExecution"
        affinity[field] = [*(affinity.get(field) or ()), {"weight": 100, "preference": {"matchFields": off}}]
        return
    required = _map_in(affinity, "requiredDuringSchedulingIgnoredDuringExecution")
    # A node must match at least one term, and every expression of that term.
    required["nodeSelectorTerms"] = [
        term | {"matchFields": [*(term.get("matchFields") or ()), *off]}
        for term in required.get("nodeSelectorTerms") or [{}]
    ]


def _map_in(parent: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the map under a key, and create it if it is missing or empty, as a template may leave it."""
    found: dict[str, Any] = parent.get(key) or {}
    parent[key] = found
    return found


def build_service(pool: PoolIdentity) -> dict[str, Any]:
    """Build the headless Service: one address per ready judge, so that clients balance the load and retry elsewhere."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(pool, service_name(pool.name)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": False,
            "selector": {LABEL_POOL: pool.name},
            "ports": [{"name": "http", "port": JUDGE_PORT, "targetPort": JUDGE_PORT, "protocol": "TCP"}],
        },
    }


def build_token_secret(pool: PoolIdentity, token: str) -> dict[str, Any]:
    """Build the Secret of the bearer token, created once. Judges and the trainer's controller mount it."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(pool, token_secret_name(pool.name)),
        "type": "Opaque",
        "data": {TOKEN_KEY: base64.b64encode(token.encode()).decode()},
    }


def build_network_policy(pool: PoolIdentity, spec: SandboxPoolSpec, settings: PoolSettings) -> dict[str, Any]:
    """Build the NetworkPolicy: runs of the namespace and the operator reach the judges; judges reach nobody."""
    callers: list[dict[str, Any]] = [
        {"podSelector": {"matchExpressions": [{"key": settings.run_label, "operator": "Exists"}]}},
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.operator_namespace}},
            "podSelector": {"matchLabels": dict(settings.operator_labels)},
        },
    ]
    if settings.monitoring_namespace is not None:
        callers.append(
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.monitoring_namespace}}}
        )
    policy: dict[str, Any] = {
        "podSelector": {"matchLabels": {LABEL_POOL: pool.name}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": callers, "ports": [{"port": JUDGE_PORT, "protocol": "TCP"}]}],
    }
    if spec.isolation.egress is Egress.DENY_ALL:
        policy["policyTypes"] = ["Ingress", "Egress"]
        policy["egress"] = []
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(pool, f"{pool.name}-judge"),
        "spec": policy,
    }


def build_disruption_budget(pool: PoolIdentity, judges: int) -> dict[str, Any]:
    """Build the PodDisruptionBudget: draining nodes may evict a quarter of the judges at a time, but at least one.

    It uses a number, because a percentage would refer to the pool's spec.replicas, which is not used when the operator
    scales by load. Judges that are not ready do not block a drain.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(pool, f"{pool.name}-judge"),
        "spec": {
            "minAvailable": judges - math.ceil(judges / 4),
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": {LABEL_POOL: pool.name}},
        },
    }


def _owner(pool: PoolIdentity) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": RESOURCE.kind,
        "name": pool.name,
        "uid": pool.uid,
        "controller": True,
    }


def _labels(pool: PoolIdentity) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "deepcoder-sandbox",
        "app.kubernetes.io/instance": pool.name,
        "app.kubernetes.io/managed-by": "deepcoder-operator",
        LABEL_POOL: pool.name,
    }


def _metadata(pool: PoolIdentity, name: str) -> dict[str, Any]:
    return {"name": name, "namespace": pool.namespace, "labels": _labels(pool), "ownerReferences": [_owner(pool)]}


def _base_template(pool: PoolIdentity, spec: SandboxPoolSpec, settings: PoolSettings) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": DRAIN_SECONDS + _LEAVE_SERVICE_SECONDS + 2,
        "securityContext": pod_context(fixed_user=settings.fixed_user),
        "topologySpreadConstraints": [
            {
                "topologyKey": "kubernetes.io/hostname",
                "maxSkew": 1,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {LABEL_POOL: pool.name}},
            }
        ],
        "containers": [_judge_container(spec, spec.image or settings.default_image)],
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": "4Gi"}},
            {"name": "token", "secret": {"secretName": token_secret_name(pool.name), "defaultMode": 0o440}},
        ],
    }
    if spec.isolation.runtime_class_name is not None:
        pod["runtimeClassName"] = spec.isolation.runtime_class_name
    metadata = {"labels": _labels(pool) | mesh.LABELS, "annotations": dict(mesh.ANNOTATIONS)}
    return {"metadata": metadata, "spec": pod}


def _judge_container(spec: SandboxPoolSpec, image: str) -> dict[str, Any]:
    slots = spec.slots_per_pod
    # For the server, stored tests and requests; and for each slot, a test at the default limit, its files in memory,
    # and zygotes.
    memory_mib = 1900 + 1296 * slots
    command = ["deepcoder-sandbox", "serve", "--host", _EVERY_ADDRESS, "--port", str(JUDGE_PORT)]
    command += ["--token-file", f"{TOKEN_DIRECTORY}/{TOKEN_KEY}", "--slots", str(slots)]
    command += ["--minimum-tier", spec.isolation.minimum_tier.value, "--drain-seconds", str(DRAIN_SECONDS)]
    return {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "ports": [{"name": "http", "containerPort": JUDGE_PORT, "protocol": "TCP"}],
        "securityContext": CONTAINER_CONTEXT | {"readOnlyRootFilesystem": True},
        "resources": {
            "requests": {"cpu": str(slots), "memory": f"{memory_mib}Mi", "ephemeral-storage": "1Gi"},
            "limits": {"memory": f"{memory_mib}Mi", "ephemeral-storage": "5Gi"},
        },
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108  the container's own
            {"name": "token", "mountPath": TOKEN_DIRECTORY, "readOnly": True},
        ],
        "startupProbe": _probe("/healthz", period=1, failures=60),
        "readinessProbe": _probe("/readyz", period=2, failures=2),
        "livenessProbe": _probe("/healthz", period=10, failures=6),
        "lifecycle": {"preStop": {"sleep": {"seconds": _LEAVE_SERVICE_SECONDS}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",  # so that the pool's condition can say why it fails
    }


def _probe(path: str, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": JUDGE_PORT},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def refuse_judge_template(template: Mapping[str, Any], where: str) -> None:
    """Refuse fields that the operator owns, and those that the restricted standard forbids."""
    if problem := malformed(template, where) or refused_of_judge(template, where):
        raise TemplateError(problem)
