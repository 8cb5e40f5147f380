"""A run with a marked secret in every place that may have one fails with all of them on its lips; none comes out.

What is gone through is whatever anybody but an administrator may be shown: status, events and every other object, the
operator's log and metrics, what lies in the bucket, and a debug bundle. What a user wrote into a spec stands there, and
what the trainer printed stands in KubeRay's and the kubelet's own objects: neither is ours to change.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import s3_server
from loop_world import Cluster, wait_for
from run_manifests import TRAIN

from deepcoder_operator.kube.client import Object
from deepcoder_operator.kube.resources import (
    CONFIGMAPS,
    EVENTS,
    NETWORK_POLICIES,
    PODS,
    POOLS,
    RAYJOBS,
    RUNS,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
)

pytestmark = [pytest.mark.apiserver, pytest.mark.s3]

LITERAL = "marked-literal-in-the-template"
MARKED = {
    "hub": {"HF_TOKEN": "marked-token-of-the-hub"},
    "tracker": {"key": 'marked-key "of" the\\tracker'},
    "whole": {"DB_PASSWORD": "marked-password-of-a-database"},
    "mounted": {"key.json": '{\n "private_key": "marked-key-in-a-file"\n}\n'},
}
HEAD = {
    "spec": {
        "containers": [
            {
                "name": "ray-head",
                "env": [
                    {"name": "LITERAL_API_KEY", "value": LITERAL},
                    {"name": "TRACKER", "valueFrom": {"secretKeyRef": {"name": "tracker", "key": "key"}}},
                ],
                "envFrom": [{"secretRef": {"name": "whole"}}],
            }
        ],
        "volumes": [{"name": "mounted", "secret": {"secretName": "mounted"}}],
    }
}


async def test_no_secret_of_a_run_comes_out_of_it(cluster: Cluster, kubeconfig: Path, tmp_path: Path) -> None:
    secrets = await _played_to_its_end(cluster)
    bundle = tmp_path / "bundle.tar.gz"
    command = f"debug-bundle demo -n {cluster.namespace} --file {bundle} --operator-namespace {cluster.namespace}"
    said = await _typed(kubeconfig, *command.split())
    found: dict[str, str] = {"what the command prints": said, "metrics": (await cluster.probe("metrics"))[1]}
    found["operator.log"] = (cluster.directory / "operator.log").read_text()
    with tarfile.open(bundle) as archive:
        for member in archive:
            found[f"bundle {member.name}"] = archive.extractfile(member).read().decode()  # type: ignore[union-attr]
    found |= {f"bucket {key}": text for key, text in _stored(cluster)}
    async for what, text in _objects(cluster):
        found[what] = text
    wanted = ("bundle", "bucket", "Event", "DeepCoderRun", "ConfigMap", "operator.log")
    assert all(any(w in what for what in found) for w in wanted), sorted(found)
    assert any("pods.json" in what for what in found), "the post-mortem is there"
    assert "[redacted]" in found["DeepCoderRun status"], "it quotes what the trainer said last"
    for what, text in found.items():
        held = [form for secret in secrets for form in _forms(secret) if form in text]
        assert not held, what
        assert LITERAL not in text or what.startswith("spec of"), what


async def _played_to_its_end(cluster: Cluster) -> list[str]:
    """A run that fails, its programs having told every secret; all that there are."""
    kube, namespace, standin = cluster.kube, cluster.namespace, cluster.standin
    for name, values in MARKED.items():
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        meta = {"name": name, "namespace": namespace}
        await kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
    stage = TRAIN | {"resources": {"head": {"template": HEAD}}}
    await cluster.create_run(
        model={"uri": "hf://team/base", "credentialsSecretRef": {"name": "hub"}},
        stages=[stage],
        failurePolicy={"maxAttempts": 1},
    )
    attempt = "demo-s0-a1"
    await cluster.until_running(attempt)
    token = await standin.token(attempt)
    await standin.report(attempt, cluster.port, 1, token=token, reward_mean=0.5)
    judges = await kube.get(SECRETS, namespace, "demo-sandbox-token")
    authority = await kube.get(SECRETS, namespace, str(cluster.account.config["progress"]["tlsSecret"]))
    secrets = [value for values in MARKED.values() for value in values.values()]
    secrets += [s3_server.SECRET, s3_server.ACCESS, token]
    secrets += [base64.b64decode(value).decode() for value in judges["data"].values()]
    keys = [base64.b64decode(v).decode() for k, v in authority["data"].items() if "key" in k]
    assert keys
    told = " and ".join([*secrets, LITERAL])
    secrets += [line for key in keys for line in key.splitlines() if len(line) > 40]  # which no program of a run has
    head = await kube.get(PODS, namespace, f"{attempt}-head")
    state = {"terminated": {"exitCode": 1, "reason": "Error", "message": told}}
    ended = {"name": "ray-head", "image": "trainer:1", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    await kube.patch(PODS, namespace, head["metadata"]["name"], {"status": {"containerStatuses": [ended]}}, "status")
    await kube.create(_event(head, told))
    await standin.set_job(attempt, jobStatus="FAILED", jobDeploymentStatus="Failed", message=f"{told}\n{told}")
    await cluster.until_phase("Failed")

    async def saved() -> bool:
        return any("PostMortem" in str(e.get("reason")) for e in (await kube.list(EVENTS, namespace))[0])

    await wait_for("a post-mortem", saved)
    return secrets


def _event(pod: Object, note: str) -> Object:
    """As a kubelet would tell what a probe was answered."""
    meta = pod["metadata"]
    return {
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"name": "told-by-a-probe", "namespace": meta["namespace"]},
        "eventTime": "2026-11-28T10:00:00.000000Z", "reason": "Unhealthy", "type": "Warning", "note": note[:1000],
        "action": "Probing", "reportingController": "kubelet", "reportingInstance": "node",
        "regarding": {"kind": "Pod", "namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]},
    }  # fmt: skip


async def _objects(cluster: Cluster) -> Any:
    """What the operator made or wrote. Of objects with a template of the user's the spec is told apart."""
    for resource in (RUNS, POOLS, RAYJOBS, PODS, CONFIGMAPS, SERVICES, SERVICE_ACCOUNTS, NETWORK_POLICIES, EVENTS):
        for each in (await cluster.kube.list(resource, cluster.namespace))[0]:
            if each.get("reportingController") == "kubelet":
                continue
            if resource in (RUNS, POOLS, RAYJOBS, PODS):
                yield (
                    f"spec of {resource.kind} {each['metadata']['name']}",
                    json.dumps(each["spec"], ensure_ascii=False),
                )
            if resource in (RUNS, POOLS):
                yield f"{resource.kind} status", json.dumps(each.get("status"), ensure_ascii=False)
            elif resource not in (RAYJOBS, PODS):
                yield f"{resource.kind} {each['metadata']['name']}", json.dumps(each, ensure_ascii=False)


def _stored(cluster: Cluster) -> Iterator[tuple[str, str]]:
    client: Any = cluster.s3.client()
    for each in client.list_objects_v2(Bucket=s3_server.BUCKET, Prefix=f"{cluster.namespace}/")["Contents"]:
        body = client.get_object(Bucket=s3_server.BUCKET, Key=each["Key"])["Body"].read()
        yield each["Key"], body.decode(errors="replace")


def _forms(secret: str) -> set[str]:
    encoded = secret.encode()
    lines = [line.strip() for line in secret.splitlines() if len(line.strip()) >= 10]
    whole = {secret.strip(), base64.b64encode(encoded).decode(), quote(secret, safe="")}
    return whole | {form for line in lines for form in (line, json.dumps(line)[1:-1])}


async def _typed(kubeconfig: Path, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deepcoder_cli", *arguments, env=os.environ | {"KUBECONFIG": str(kubeconfig)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said = (await asyncio.wait_for(process.communicate(), 60))[0].decode()
    assert process.returncode == 0, said
    return said
