"""Describes permissions: what is missing, and which role grants it.

The chart's roles are recognised by their suffix, because their names begin with the release's name. ClusterRoles are
aggregated into Kubernetes' own `view` and `edit`, which is what administrators usually bind, unless the chart's values
say otherwise. With `watchNamespaces` the chart has Roles in these namespaces, which cannot be aggregated.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepcoder_contracts.api.base import GROUP

READS = frozenset({"get", "list", "watch"})
_SOCKETS = ("pods/exec", "pods/portforward")
"""Kubernetes' own `view` does not include these, because `get` opens a connection."""


@dataclass(frozen=True)
class Right:
    """One verb on one resource."""

    verb: str
    resource: str
    """Resource as in RBAC rules: `deepcoderruns`, `pods/log`."""

    group: str = ""
    """API group; empty for the core group."""

    namespace: str | None = None
    """None for all namespaces."""

    granted_by: str = ""
    """The role that grants it, if this does not follow from the resource."""

    @property
    def qualified(self) -> str:
        """The form that kubectl auth can-i takes: `deepcoderruns.deepcoder.dev`."""
        name, slash, below = self.resource.partition("/")
        return (f"{name}.{self.group}" if self.group else name) + slash + below

    @property
    def role(self) -> str:
        """The role that grants it."""
        if self.granted_by:
            return self.granted_by
        if self.group == GROUP:
            role = "view" if self.verb in READS else "edit"
            return (
                f"the chart's role [<release>-]deepcoder-operator-{role}, or to Kubernetes' own {role} where the chart "
                "adds it there (rbac.aggregate, without watchNamespaces)"
            )
        if self.group == "ray.io":
            return f"KubeRay's ClusterRole {self.resource.removesuffix('s')}-viewer-role"
        if self.resource == "nodes":
            return "a ClusterRole that reads nodes, which Kubernetes' own view does not"
        if self.resource in _SOCKETS:
            return "Kubernetes' own role edit"
        if self.resource == "secrets":
            return "Kubernetes' own role edit, or a Role for this Secret alone"
        return "Kubernetes' own role view" if self.verb in READS else "Kubernetes' own role edit"

    def sentence(self) -> str:
        """Return the message for the user."""
        where = f"in namespace {self.namespace}" if self.namespace else "in all namespaces"
        binding = "a RoleBinding there" if self.namespace else "a ClusterRoleBinding"
        return f"you lack the permission to {self.verb} {self.qualified} {where}: ask for {binding} to {self.role}"


DASHBOARD = "the chart's Role [<release>-]deepcoder-operator-dashboard"
"""A Role in the operator's namespace. Kubernetes' own edit there would also give access to the operator's account."""

OPERATOR_LOG = "a Role for that alone, because all teams' runs are in that log; or ask the chart's administrator"


def socket_rights(resource: str, namespace: str, granted_by: str = "") -> tuple[Right, Right]:
    """Return the permissions needed to open a WebSocket to `pods/exec` or `pods/portforward`.

    A GET opens it, so the API server has always required `get`. From Kubernetes 1.35 on, it also requires `create`.
    """
    get, create = (Right(verb, resource, "", namespace, granted_by) for verb in ("get", "create"))
    return get, create
