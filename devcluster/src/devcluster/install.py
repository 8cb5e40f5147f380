"""Installs cluster DNS, KubeRay and the S3 server from the small charts in `devcluster/charts`. Idempotent.

Waits for each Deployment by name, with a deadline, and for the S3 server to answer. The credentials of the S3 server
are generated once per cluster, and kept in a Secret in the cluster and in a file that only root can read on the
machine.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from devcluster import content_hash, forwards
from devcluster.artifacts import Artifacts
from devcluster.command import CommandFailed
from devcluster.config import (
    CLUSTER_DOMAIN,
    DEFAULT_NAME,
    DEFAULT_S3_PORT,
    DNS_SERVICE_IP,
    REPOSITORY,
    S3_SERVICE_IP,
    Cluster,
)
from devcluster.crds import without_descriptions
from devcluster.kubectl import Kube, wait_for
from devcluster.lifecycle import running_or_fail
from devcluster.progress import step

CHARTS = REPOSITORY / "devcluster" / "charts"
BUCKET = "deepcoder"
REGION = "us-east-1"
S3_PORT_INSIDE = 7070
S3_FORWARD = "s3"
_READY_SECONDS = 120
_CRD_NAME = re.compile(r"^  name: (\S+\.ray\.io)$", re.MULTILINE)
RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "latest",
}


@dataclass(frozen=True)
class S3Access:
    """Access to the S3 server: its URLs for pods and for this machine, and the credentials."""

    endpoint_in_cluster: str
    endpoint_on_host: str
    bucket: str
    region: str
    access_key_id: str
    secret_access_key: str


def default_s3_port(cluster: Cluster) -> int:
    """The port in use, if there is one. Otherwise a fixed one for the main cluster, and any free one (0) for others."""
    if (running := forwards.find(cluster, S3_FORWARD)) is not None:
        return running.port
    return DEFAULT_S3_PORT if cluster.name == DEFAULT_NAME else 0


def install(cluster: Cluster, artifacts: Artifacts, images: dict[str, str], s3_port: int) -> S3Access:
    """Install everything; `images` are references by name, `s3_port` the loopback port of the S3 server."""
    process = running_or_fail(cluster)
    kube = Kube(cluster, artifacts)
    with step("install cluster DNS"):
        _chart(
            kube,
            "coredns",
            "kube-system",
            image=images["coredns"],
            clusterIP=DNS_SERVICE_IP,
            clusterDomain=CLUSTER_DOMAIN,
        )
    with step("install KubeRay"):
        _namespace(kube, "kuberay-system")
        _kuberay_definitions(kube, artifacts)
        _chart(kube, "kuberay-operator", "kuberay-system", image=images["kuberay-operator"])
    with step("install the S3 server"):
        (cluster.var / "lib" / "s3" / "buckets").mkdir(parents=True, exist_ok=True)
        for directory in ("versions", "iam"):
            (cluster.var / "lib" / "s3" / directory).mkdir(exist_ok=True)
        _namespace(kube, "s3")
        access_key, secret_key = _credentials(kube)
        _chart(kube, "s3", "s3", image=images["s3"], node=cluster.node_name, clusterIP=S3_SERVICE_IP, region=REGION)
    for namespace, name in (("kube-system", "coredns"), ("kuberay-system", "kuberay-operator"), ("s3", "s3")):
        with step(f"wait for {namespace}/{name}"):
            kube.kubectl(
                "rollout", "status", f"deployment/{name}", "-n", namespace, f"--timeout={_READY_SECONDS}s",
                deadline=_READY_SECONDS + 10,
            )  # fmt: skip
    forward = forwards.start(cluster, process.pid, S3_FORWARD, S3_SERVICE_IP, S3_PORT_INSIDE, s3_port)
    access = S3Access(
        endpoint_in_cluster=f"http://s3.s3.svc.{CLUSTER_DOMAIN}:{S3_PORT_INSIDE}",
        endpoint_on_host=f"http://127.0.0.1:{forward.port}",
        bucket=BUCKET,
        region=REGION,
        access_key_id=access_key,
        secret_access_key=secret_key,
    )
    with step(f"make bucket {BUCKET}"):
        _make_bucket(access)
    _write_access(record(cluster), access)
    return access


def record(cluster: Cluster) -> Path:
    """File with an S3Access as JSON, which only root can read."""
    return cluster.state / "s3.json"


def _kuberay_definitions(kube: Kube, artifacts: Artifacts) -> None:
    """Apply KubeRay's CRDs and ClusterRole, which takes seconds, unless the cluster has exactly these."""
    files = sorted((artifacts.directory("kuberay") / "manifests").glob("*.yaml"))
    text = "---\n".join(without_descriptions(path.read_text()) for path in files)
    label = f"devcluster/manifests={content_hash.digest(text)}"
    definitions = _CRD_NAME.findall(text)
    if len(kube.kubectl("get", "crd", "--selector", label, "--output", "name").split()) == len(definitions):
        return
    # Server-side, because the definitions are larger than the annotation of a client-side apply may be.
    kube.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text.encode(), deadline=180)
    kube.kubectl("label", "crd", "--overwrite", *definitions, label)


def _chart(kube: Kube, chart: str, namespace: str, **values: str) -> None:
    settings = [word for name, value in values.items() for word in ("--set-string", f"{name}={value}")]
    kube.helm("upgrade", "--install", chart, CHARTS / chart, "--namespace", namespace, *settings)


def _namespace(kube: Kube, name: str) -> None:
    content = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}
    kube.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(content).encode())


def _credentials(kube: Kube) -> tuple[str, str]:
    """The administrator's key pair, from the Secret if it exists, otherwise new."""
    try:
        data = kube.get("secret", "s3-admin", "s3")["data"]
    except CommandFailed as reason:
        if "NotFound" not in str(reason):
            raise
        data = {
            "AWS_ACCESS_KEY_ID": _encode(f"admin-{secrets.token_hex(6)}"),
            "AWS_SECRET_ACCESS_KEY": _encode(secrets.token_urlsafe(30)),
        }
        content = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "s3-admin", "namespace": "s3"},
            "data": data,
        }
        kube.kubectl("create", "-f", "-", stdin=json.dumps(content).encode())
    return _decode(data["AWS_ACCESS_KEY_ID"]), _decode(data["AWS_SECRET_ACCESS_KEY"])


def _make_bucket(access: S3Access) -> None:
    import boto3  # only here, because the other commands must work without packages
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    s3 = boto3.client(
        "s3",
        endpoint_url=access.endpoint_on_host,
        region_name=access.region,
        aws_access_key_id=access.access_key_id,
        aws_secret_access_key=access.secret_access_key,
        config=Config(connect_timeout=5, read_timeout=15, retries={"total_max_attempts": 1}),
    )

    def made() -> bool:
        try:
            if access.bucket not in (bucket["Name"] for bucket in s3.list_buckets()["Buckets"]):
                s3.create_bucket(Bucket=access.bucket)
        except (BotoCoreError, ClientError) as reason:
            raise CommandFailed(f"{access.endpoint_on_host}: {reason}") from None
        return True

    wait_for(f"the S3 server to have the bucket {access.bucket}", made, 30)


def _write_access(path: Path, access: S3Access) -> None:
    path.touch(mode=0o600)
    path.write_text(json.dumps(vars(access), indent=1))


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decode(text: str) -> str:
    return base64.b64decode(text).decode()
