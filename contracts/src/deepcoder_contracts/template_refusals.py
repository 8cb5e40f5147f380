"""Fields that a user's pod template may not set: the operator owns them, or programs could leave the sandbox.

The operator refuses such a template before it creates anything, and a plan before anything is applied. A template of
the judges, in whose pods untrusted programs run, is held to the restricted Pod Security Standard, whatever the
namespace enforces. Pure. The template's structure must be valid (`pod_template.malformed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from deepcoder_contracts.labels import (
    HEAD,
    HEAD_CONTAINER,
    LABEL_ORDINAL,
    LABEL_POOL,
    LABEL_ROLE,
    LABEL_RUN,
    LABEL_RUN_UID,
    LABEL_STAGE,
    LEARNER,
    SAMPLER,
    WORKER_CONTAINER,
)

JUDGE_CONTAINER = "judge"
"""Name of the judge's container. A template's container of that name is merged into it."""

GROUPS = {HEAD: "head", SAMPLER: "samplers", LEARNER: "learners"}
"""Fields of a stage's resources, by role."""

CONTAINERS = ("containers", "initContainers", "ephemeralContainers")


def _owned(labels: Sequence[str], fields: Sequence[str], container: str, own: Sequence[str]) -> list[tuple[str, ...]]:
    """Return paths below a template; a segment `containers[judge]` reaches into the element of that name."""
    return [
        ("metadata", "name"),
        ("metadata", "namespace"),
        *(("metadata", "labels", label) for label in labels),
        *(("spec", field) for field in fields),
        *(("spec", f"containers[{container}]", field) for field in own),
    ]


_RUN_LABELS = (LABEL_RUN, LABEL_RUN_UID, LABEL_STAGE, LABEL_ORDINAL, LABEL_ROLE)
_RUN_FIELDS = (
    *("restartPolicy", "automountServiceAccountToken", "serviceAccountName", "terminationGracePeriodSeconds"),
    *("priorityClassName", "schedulerName", "imagePullSecrets"),
)
_RUN_OWN = ("image", "command", "args", "lifecycle")
_JUDGE_FIELDS = (
    *("automountServiceAccountToken", "hostNetwork", "hostPID", "hostIPC", "hostUsers", "restartPolicy"),
    *("runtimeClassName", "securityContext"),
)
_JUDGE_OWN = (
    *("command", "args", "image", "ports", "securityContext"),
    *("livenessProbe", "readinessProbe", "startupProbe"),
)
_JUDGE = _owned((LABEL_POOL,), _JUDGE_FIELDS, JUDGE_CONTAINER, _JUDGE_OWN)

_VOLUMES = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
)
_APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"
_CONTEXT: dict[str, Callable[[Any], bool]] = {
    "privileged": lambda v: v is False,
    "allowPrivilegeEscalation": lambda v: v is False,
    "runAsNonRoot": lambda v: v is True,
    "runAsUser": lambda v: v != 0,
    "procMount": lambda v: v == "Default",
    "seccompProfile": lambda v: v.get("type") in ("RuntimeDefault", "Localhost"),
    "appArmorProfile": lambda v: v.get("type") in ("RuntimeDefault", "Localhost"),
    "capabilities": lambda v: (
        set(v.get("add") or ()) <= {"NET_BIND_SERVICE"} and (v.get("drop") is None or "ALL" in v["drop"])
    ),
    "seLinuxOptions": lambda v: not v,
    "windowsOptions": lambda v: not v,
}
"""Fields of a container's securityContext, with the values that the standard allows."""


def refused_of_run(template: Mapping[str, Any], stage: str, role: str) -> str | None:
    """Return what a template of a role of a stage's pods may not set, or None."""
    container = HEAD_CONTAINER if role == HEAD else WORKER_CONTAINER
    where = f"spec.stages[{stage}].resources.{GROUPS[role]}.template"
    return _set_by_operator(template, _owned(_RUN_LABELS, _RUN_FIELDS, container, _RUN_OWN), where)


def refused_of_judge(template: Mapping[str, Any], where: str) -> str | None:
    """Return what a template of judges may not set, or None. `where` is its own path."""
    if owned := _set_by_operator(template, _JUDGE, where):
        return owned
    path = next(_forbidden(template), None)
    return f"{where}.{path} would let programs out of the sandbox: remove it" if path else None


def _set_by_operator(template: Mapping[str, Any], owned: Iterable[Sequence[str]], where: str) -> str | None:
    path = next((path for path in owned if _has(template, path)), None)
    return f"{where}.{'.'.join(path)} is set by the operator: remove it from the template" if path else None


def _has(node: Any, path: Sequence[str]) -> bool:
    head, *rest = path
    field, bracket, name = head.partition("[")
    if not isinstance(node, Mapping) or field not in node:
        return False
    value = node[field]
    if bracket:
        elements = value if isinstance(value, list) else []
        value = next((e for e in elements if isinstance(e, Mapping) and e.get("name") == name.rstrip("]")), None)
        if value is None:
            return False
    return not rest or _has(value, rest)


def _forbidden(template: Mapping[str, Any]) -> Iterator[str]:
    for annotation in (template.get("metadata") or {}).get("annotations") or {}:
        if annotation.startswith(_APPARMOR_ANNOTATION):
            yield f"metadata.annotations[{annotation}]"
    spec = template.get("spec") or {}
    if spec.get("shareProcessNamespace"):
        yield "spec.shareProcessNamespace"
    for volume in spec.get("volumes") or ():
        yield from (f"spec.volumes[{volume['name']}].{k}" for k in volume if k != "name" and k not in _VOLUMES)
    for kind in CONTAINERS:
        for container in spec.get(kind) or ():
            path = f"spec.{kind}[{container['name']}]"
            context = container.get("securityContext") or {}
            for name, keeps in _CONTEXT.items():
                if context.get(name) is not None and not keeps(context[name]):
                    yield f"{path}.securityContext.{name}"
            if any(port.get("hostPort") for port in container.get("ports") or ()):
                yield f"{path}.ports[].hostPort"
