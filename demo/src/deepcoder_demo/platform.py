"""Installs our chart in the cluster and creates a namespace for the run, as an administrator does once.

The namespace enforces the *restricted* Pod Security Standard, so the demo proves what the chart claims.
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
from pathlib import Path
from typing import Any

from deepcoder_demo.commands import CommandFailed, GivenUp, run
from deepcoder_demo.settings import (
    CREDENTIALS_SECRET,
    MADE_BY,
    OPERATOR_NAMESPACE,
    REPOSITORY,
    Cluster,
    Images,
    S3Access,
    tool,
)
from deepcoder_demo.wait_limit import WaitLimit

RELEASE = "deepcoder"
CHART = REPOSITORY / "helm/deepcoder-operator"
RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "latest",
}
INSTALL_SECONDS = 180


def install_chart(cluster: Cluster) -> None:
    """`helm upgrade --install` of the chart, and a wait for its operator to be ready.

    Values that somebody has added to the demo's release stay.
    """
    apply(cluster, namespace(OPERATOR_NAMESPACE))
    helm(
        cluster,
        "upgrade", "--install", RELEASE, str(CHART), "--namespace", OPERATOR_NAMESPACE,
        "--wait", f"--timeout={INSTALL_SECONDS}s", "--reset-then-reuse-values", "--values", "-",
        seconds=INSTALL_SECONDS + 20, stdin=json.dumps(values(cluster.images)),
    )  # fmt: skip


def values(images: Images) -> dict[str, Any]:
    """The chart's values. `untouched.py` knows the release by them."""
    return {
        "images": {"operator": images.operator, "trainer": images.trainer, "sandbox": images.sandbox},
        "replicas": 1,  # there is one node
        "web": {"enabled": True},
        "podAnnotations": MADE_BY,
    }


def make_namespace(cluster: Cluster, name: str) -> None:
    """A namespace under the restricted standard, with the Secret of the bucket's credentials."""
    apply(cluster, namespace(name), credentials(name, cluster.s3))


def namespace(name: str) -> dict[str, Any]:
    """A Namespace that enforces the restricted standard."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED | MADE_BY}}


def credentials(namespace_: str, access: S3Access) -> dict[str, Any]:
    """The Secret with the bucket's credentials."""
    keys = {"AWS_ACCESS_KEY_ID": access.access_key, "AWS_SECRET_ACCESS_KEY": access.secret_key}
    keys |= {"AWS_SESSION_TOKEN": access.session_token} if access.session_token else {}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": CREDENTIALS_SECRET, "namespace": namespace_},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in keys.items()},
    }


def apply(cluster: Cluster, *objects: dict[str, Any]) -> None:
    """Server-side apply; secrets travel on standard input, never as arguments."""
    content = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    kubectl(cluster, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=content)


def kubectl(cluster: Cluster, *arguments: str, seconds: float = 60, stdin: str | None = None) -> str:
    """kubectl on this cluster."""
    return run([cluster.kubectl, *arguments], seconds=seconds, stdin=stdin, env={"KUBECONFIG": cluster.kubeconfig})


def helm(cluster: Cluster, *arguments: str, seconds: float, stdin: str | None = None) -> str:
    """Helm on this cluster."""
    return run([cluster.helm, *arguments], seconds=seconds, stdin=stdin, env={"KUBECONFIG": cluster.kubeconfig})


def follow(cluster: Cluster, name: str, namespace_: str, *, seconds: float) -> dict[str, Any]:
    """Show a run with `kubectl deepcoder` until it has ended; returns it, Complete or Failed.

    Raises GivenUp if the run waits for something that nobody will fix during a demo.
    """
    watch: list[str | Path] = [
        tool("kubectl-deepcoder"),
        "status",
        name,
        "-n",
        namespace_,
        "--watch",
        f"--timeout={seconds:.0f}",
    ]
    patience = WaitLimit(time.monotonic)

    def in_vain() -> str | None:
        with contextlib.suppress(CommandFailed):  # the command itself gives up on an API server that does not answer
            return patience.spent(get(cluster, "deepcoderrun", name, namespace_))
        return None

    try:
        run(watch, seconds=seconds + 60, show=True, env={"KUBECONFIG": cluster.kubeconfig}, in_vain=in_vain)
    except GivenUp:
        show(cluster, name, namespace_)
        raise
    except CommandFailed as error:
        if error.status != 1:
            raise
        found = get(cluster, "deepcoderrun", name, namespace_)
        if found.get("status", {}).get("phase") != "Failed":
            show(cluster, name, namespace_)
            raise  # the run has not ended, or cannot be read; the command has printed which
        show(cluster, name, namespace_)
        return found
    return get(cluster, "deepcoderrun", name, namespace_)


def show(cluster: Cluster, name: str, namespace_: str) -> None:
    """Print what is known about a run that went wrong, while its cluster still exists: its status and all pods."""
    environment = {"KUBECONFIG": cluster.kubeconfig}
    commands: tuple[list[str | Path], ...] = (
        [tool("kubectl-deepcoder"), "status", name, "-n", namespace_],
        [cluster.kubectl, "get", "pods", "-A", "-o", "wide"],
    )
    for command in commands:
        with contextlib.suppress(CommandFailed):  # the earlier error is the one to report
            run(command, seconds=60, show=True, env=environment)


def get(cluster: Cluster, kind: str, name: str, namespace_: str) -> dict[str, Any]:
    """One object."""
    found: dict[str, Any] = json.loads(kubectl(cluster, "get", kind, name, "-n", namespace_, "-o", "json"))
    return found


def delete_and_wait(cluster: Cluster, kind: str, name: str, namespace_: str, *, seconds: float) -> None:
    """Delete an object and wait until it is gone; a missing object is not an error."""
    try:
        kubectl(
            cluster, "delete", kind, name, "-n", namespace_, "--ignore-not-found", f"--timeout={seconds:.0f}s",
            seconds=seconds + 10,
        )  # fmt: skip
    except CommandFailed as error:
        raise CommandFailed(f"{kind} {namespace_}/{name} was not gone after {seconds:.0f} s: {error}") from error
