"""Enforces the restricted Pod Security Standard on what a user adds to a pod in which untrusted programs run.

A namespace need not enforce the standard, so it is enforced here. A field that weakens it is refused by name, and the
settings that it requires are added to the template's containers. Fields of the pod itself (its securityContext, host
namespaces) belong to the operator and are refused as such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from deepcoder_operator.builders.podtemplate import TemplateError, merge

CONTAINER_CONTEXT: dict[str, Any] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
"""What the standard requires of every container, in addition to the pod."""

_USER = 1000
"""Numeric user and group of our images."""

_CONTAINERS = ("containers", "initContainers", "ephemeralContainers")
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


def pod_context(*, fixed_user: bool) -> dict[str, Any]:
    """Return what the standard requires of a pod's securityContext.

    Without a fixed user, the cluster adds user and groups, which it must: files of Secrets are readable by the group
    alone. OpenShift's restricted-v2 does so, and refuses a pod that names any outside its namespace's range.
    """
    user = {"runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER} if fixed_user else {}
    return {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}} | user


def refuse_unrestricted(template: Mapping[str, Any], where: str) -> None:
    """Raise `TemplateError` for the first field that the standard forbids. The template's structure must be valid."""
    for path in _forbidden(template):
        raise TemplateError(f"{where}.{path} would let programs out of the sandbox: remove it")


def restrict_added(template: Mapping[str, Any], own: str) -> dict[str, Any]:
    """Set what the standard requires on all containers of the template except the operator's own."""
    spec = dict(template["spec"])
    for kind in _CONTAINERS:
        if spec.get(kind):
            spec[kind] = [c if c["name"] == own else c | {"securityContext": _context(c)} for c in spec[kind]]
    return {**template, "spec": spec}


def _context(container: Mapping[str, Any]) -> dict[str, Any]:
    """Merge a container's securityContext into what the standard requires. A null value removes nothing."""
    context = _known(container.get("securityContext") or {})
    return merge(CONTAINER_CONTEXT, context | {"capabilities": _known(context.get("capabilities") or {})})


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if v is not None}


def _forbidden(template: Mapping[str, Any]) -> Iterator[str]:
    for annotation in (template.get("metadata") or {}).get("annotations") or {}:
        if annotation.startswith(_APPARMOR_ANNOTATION):
            yield f"metadata.annotations[{annotation}]"
    spec = template.get("spec") or {}
    if spec.get("shareProcessNamespace"):
        yield "spec.shareProcessNamespace"
    for volume in spec.get("volumes") or ():
        yield from (f"spec.volumes[{volume['name']}].{k}" for k in volume if k != "name" and k not in _VOLUMES)
    for kind in _CONTAINERS:
        for container in spec.get(kind) or ():
            path = f"spec.{kind}[{container['name']}]"
            context = container.get("securityContext") or {}
            for name, keeps in _CONTEXT.items():
                if context.get(name) is not None and not keeps(context[name]):
                    yield f"{path}.securityContext.{name}"
            if any(port.get("hostPort") for port in container.get("ports") or ()):
                yield f"{path}.ports[].hostPort"
