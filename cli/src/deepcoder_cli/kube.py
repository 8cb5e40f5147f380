"""What a run looks like right now: the run, its pool and its pods, read in one go with the user's own kubeconfig.

Every call has a deadline. What is not there (yet) is None or empty, since a view must not fall over while
things come and go; a refused permission is raised as `Forbidden`, which names the verb and resource that the user
lacks, and a kubeconfig that leads nowhere as `NoCluster`. What else the API server says, or that it says nothing, is
raised as the client does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config

GROUP, VERSION = "deepcoder.dev", "v1alpha1"
RUN_LABEL = "deepcoder.dev/run"
TIMEOUT_SECONDS = 10
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

Object = dict[str, Any]


class Forbidden(Exception):
    """The user may not do what the view needs."""


class NoCluster(Exception):
    """Neither a kubeconfig nor a pod's own account says which cluster is meant."""


@dataclass(frozen=True)
class Snapshot:
    """A run and what belongs to it at one moment."""

    run: Object
    pool: Object | None
    pods: tuple[Object, ...]


class Reader:
    """Reads runs through the API server named by the kubeconfig (or from within a pod)."""

    def __init__(self, context: str | None = None) -> None:
        self.namespace = _connect(context)
        """Namespace that is meant where none is named."""
        self._objects = client.CustomObjectsApi()
        self._core = client.CoreV1Api()

    def snapshot(self, namespace: str, name: str) -> Snapshot | None:
        """The run with its pool and pods; None if there is none of that name."""
        run = self._custom(namespace, "deepcoderruns", name)
        if run is None:
            return None
        name_of_pool = pool_name(run)
        pool = self._custom(namespace, "sandboxpools", name_of_pool) if name_of_pool else None
        return Snapshot(run, pool, self._pods(namespace, run))

    def _custom(self, namespace: str, plural: str, name: str) -> Object | None:
        try:
            result: Object = self._objects.get_namespaced_custom_object(
                GROUP, VERSION, namespace, plural, name, _request_timeout=TIMEOUT_SECONDS
            )
        except client.ApiException as error:
            _raise_unless_absent(error, f"get {plural}.{GROUP} in namespace {namespace}")
            return None
        return result

    def _pods(self, namespace: str, run: Object) -> tuple[Object, ...]:
        selector = f"{RUN_LABEL}={run['metadata']['name']}"
        try:
            listing = self._core.list_namespaced_pod(
                namespace, label_selector=selector, limit=500, _request_timeout=TIMEOUT_SECONDS
            )
        except client.ApiException as error:
            _raise_unless_absent(error, f"list pods in namespace {namespace}")
            return ()
        return tuple(client.ApiClient().sanitize_for_serialization(pod) for pod in listing.items)


def pool_name(run: Object) -> str | None:
    """Name of the SandboxPool that a run uses; None where a hosted API judges."""
    if "together" in run["spec"]["sandbox"]:
        return None
    reference = run["spec"]["sandbox"].get("poolRef")
    return str(reference["name"]) if reference else f"{run['metadata']['name']}-sandbox"


def _connect(context: str | None) -> str:
    """Load the kubeconfig, or from within a pod its account; returns the namespace that goes with it."""
    try:
        config.load_kube_config(context=context)
        contexts, active = config.list_kube_config_contexts()
    except (config.ConfigException, yaml.YAMLError) as error:
        try:
            config.load_incluster_config()
        except config.ConfigException:
            raise NoCluster(
                f"no usable kubeconfig: {error}. Set KUBECONFIG to one, or choose one of its contexts with --context"
            ) from error
        return POD_NAMESPACE.read_text().strip()
    chosen = active if context is None else next(entry for entry in contexts if entry["name"] == context)
    return str(chosen["context"].get("namespace") or "default")


def _raise_unless_absent(error: client.ApiException, what: str) -> None:
    if error.status == 404:
        return
    if error.status == 403:
        raise Forbidden(f"you lack the permission to {what}; ask for the role deepcoder-view") from error
    raise error
