"""What pods find in the cluster: the restricted standard, DNS, Services, S3, and a network policy that holds."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from devcluster import doctor, forwards, lifecycle
from devcluster.artifacts import Artifacts
from devcluster.command import CommandFailed
from devcluster.config import Cluster, ConfigError, cache_root
from devcluster.install import RESTRICTED
from devcluster.kubectl import Kube, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.root]

FETCH = "import urllib.request as r; print(r.urlopen('http://s3.s3.svc.cluster.local:7070/healthz', timeout=5).status)"


@pytest.fixture(scope="module")
def kube() -> Kube:
    cluster = Cluster.named()
    artifacts = Artifacts(cache_root(), doctor.go_version())
    if lifecycle.health(cluster, artifacts).faults or not (cluster.state / "images.json").exists():
        pytest.skip("needs the main cluster with its images: devcluster up, images, install")
    return Kube(cluster, artifacts)


@pytest.fixture
def namespace(kube: Kube) -> Iterator[str]:
    name = f"trial-{uuid.uuid4().hex[:8]}"
    content = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}
    kube.kubectl("create", "-f", "-", stdin=json.dumps(content).encode())
    yield name
    kube.kubectl("delete", "namespace", name, "--wait=false")


def _pod(name: str, namespace: str, command: list[str]) -> dict[str, Any]:
    images = json.loads((Cluster.named().state / "images.json").read_text())
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "main",
                    "image": images["sandbox"]["reference"],
                    "imagePullPolicy": "Never",
                    "command": command,
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


def _run(kube: Kube, pod: dict[str, Any]) -> str:
    """Run a pod to its end and return what it printed."""
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    kube.kubectl("create", "-f", "-", stdin=json.dumps(pod).encode())
    wait_for(
        f"pod {name} to end",
        lambda: kube.get("pod", name, namespace)["status"]["phase"] in ("Succeeded", "Failed"),
        120,
    )
    return kube.kubectl("logs", name, "-n", namespace)


def test_a_restricted_pod_runs_as_the_images_user_on_a_read_only_root(kube: Kube, namespace: str) -> None:
    said = _run(kube, _pod("who", namespace, ["sh", "-c", "id -u; touch /x 2>&1; true"]))
    assert said.splitlines()[0] == "1000"
    assert "Read-only file system" in said


def test_a_pod_that_is_not_restricted_is_refused_in_such_a_namespace(kube: Kube, namespace: str) -> None:
    pod = _pod("careless", namespace, ["true"])
    del pod["spec"]["containers"][0]["securityContext"]
    with pytest.raises(CommandFailed, match="violates PodSecurity"):
        kube.kubectl("create", "-f", "-", stdin=json.dumps(pod).encode())


def test_a_pod_reaches_s3_by_its_name(kube: Kube, namespace: str) -> None:
    assert _run(kube, _pod("fetch", namespace, ["python3", "-c", FETCH])).strip() == "200"


def test_a_pod_does_not_reach_the_world(kube: Kube, namespace: str) -> None:
    reach = "import socket; socket.create_connection(('1.1.1.1', 53), 3)"
    pod = _pod("wander", namespace, ["python3", "-c", reach])
    assert "Error" in _run(kube, pod)
    assert kube.get("pod", "wander", namespace)["status"]["phase"] == "Failed"


def test_a_network_policy_denies_egress_and_its_removal_allows_it_again(kube: Kube, namespace: str) -> None:
    kube.kubectl("create", "-f", "-", stdin=json.dumps(_pod("sits", namespace, ["sleep", "3600"])).encode())
    kube.kubectl("wait", "pod/sits", "-n", namespace, "--for=condition=Ready", "--timeout=60s", deadline=70)

    def reaches() -> bool:
        try:
            return "200" in kube.kubectl("exec", "sits", "-n", namespace, "--", "python3", "-c", FETCH)
        except CommandFailed:
            return False

    wait_for("egress at first", reaches, 30)
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "no-egress", "namespace": namespace},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"]},
    }
    kube.kubectl("create", "-f", "-", stdin=json.dumps(policy).encode())
    wait_for("egress to be denied", lambda: not reaches(), 60)
    kube.kubectl("delete", "networkpolicy", "no-egress", "-n", namespace)
    wait_for("egress to be allowed again", reaches, 60)


def test_a_service_gets_a_port_on_this_machine_once(kube: Kube) -> None:
    cluster = Cluster.named()
    first = forwards.to_service(cluster, kube, "kuberay-system/kuberay-operator:8080")
    assert forwards.to_service(cluster, kube, "kuberay-system/kuberay-operator:8080") == first
    assert kube.kubectl("get", "--raw", "/metrics", f"--server=http://127.0.0.1:{first.port}").startswith("#")
    first.process.kill()


@pytest.mark.parametrize("target", ["s3", "s3/s3", "s3/s3:http", "a/b/c:1"])
def test_a_target_that_is_not_a_service_and_port_is_refused(kube: Kube, target: str) -> None:
    with pytest.raises(ConfigError, match="is not NAMESPACE/SERVICE:PORT"):
        forwards.to_service(Cluster.named(), kube, target)
