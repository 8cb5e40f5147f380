"""The kinds of objects that the operator uses, with their API groups and versions."""

from __future__ import annotations

from typing import NamedTuple


class Resource(NamedTuple):
    """Where a kind lives in the API."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """Value of an object's apiVersion."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the URL path of the collection, of an object, or of a subresource."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [p for p in (name, subresource) if p]
        return "/".join(parts)


RUNS = Resource("deepcoder.dev", "v1alpha1", "deepcoderruns", "DeepCoderRun")
POOLS = Resource("deepcoder.dev", "v1alpha1", "sandboxpools", "SandboxPool")
RAYJOBS = Resource("ray.io", "v1", "rayjobs", "RayJob")
RAYCLUSTERS = Resource("ray.io", "v1", "rayclusters", "RayCluster")
PODS = Resource("", "v1", "pods", "Pod")
SECRETS = Resource("", "v1", "secrets", "Secret")
SERVICES = Resource("", "v1", "services", "Service")
CONFIGMAPS = Resource("", "v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
EVENTS = Resource("events.k8s.io", "v1", "events", "Event")
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
DISRUPTION_BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition")

BY_KIND = {
    r.kind: r
    for r in (
        RUNS, POOLS, RAYJOBS, RAYCLUSTERS, PODS, SECRETS, SERVICES, CONFIGMAPS, SERVICE_ACCOUNTS, EVENTS,
        NETWORK_POLICIES, DISRUPTION_BUDGETS, TOKEN_REVIEWS, LEASES, CRDS,
    )
}  # fmt: skip
"""Kind to resource."""
