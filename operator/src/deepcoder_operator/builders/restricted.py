"""Enforces the restricted Pod Security Standard on what a user adds to a pod in which untrusted programs run.

A namespace need not enforce the standard. A field that weakens it is refused by name
(`deepcoder_contracts.template_refusals`), and here the settings that it requires are added to the template's
containers. Fields of the pod itself (its securityContext, host namespaces) belong to the operator and are refused as
such.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepcoder_contracts.template_refusals import CONTAINERS
from deepcoder_operator.builders.podtemplate import merge

CONTAINER_CONTEXT: dict[str, Any] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
"""What the standard requires of every container, in addition to the pod."""

_USER = 1000
"""Numeric user and group of our images."""


def pod_context(*, fixed_user: bool) -> dict[str, Any]:
    """Return what the standard requires of a pod's securityContext.

    Without a fixed user, the cluster adds user and groups, which it must: files of Secrets are readable by the group
    alone. OpenShift's restricted-v2 does so, and refuses a pod that names any outside its namespace's range.
    """
    user = {"runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER} if fixed_user else {}
    return {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}} | user


def restrict_added(template: Mapping[str, Any], own: str) -> dict[str, Any]:
    """Set what the standard requires on all containers of the template except the operator's own."""
    spec = dict(template["spec"])
    for kind in CONTAINERS:
        if spec.get(kind):
            spec[kind] = [c if c["name"] == own else c | {"securityContext": _context(c)} for c in spec[kind]]
    return {**template, "spec": spec}


def _context(container: Mapping[str, Any]) -> dict[str, Any]:
    """Merge a container's securityContext into what the standard requires. A null value removes nothing."""
    context = _known(container.get("securityContext") or {})
    return merge(CONTAINER_CONTEXT, context | {"capabilities": _known(context.get("capabilities") or {})})


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if v is not None}
