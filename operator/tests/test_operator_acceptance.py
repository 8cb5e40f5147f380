"""What the API server cannot see and the operator says before it asks for a GPU: Secrets, buckets, keys, templates."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest
import s3_server
from loop_world import Cluster, put_secret, wait_for
from run_manifests import TRAIN, run_manifest

from deepcoder_operator.kube.client import Object
from deepcoder_operator.kube.resources import (
    CONFIGMAPS,
    POOLS,
    RAYJOBS,
    RUNS,
    SECRETS,
)

pytestmark = [pytest.mark.apiserver, pytest.mark.s3]


async def test_wrong_credentials_are_said_and_mending_them_starts_the_run(cluster: Cluster) -> None:
    await put_secret(cluster.kube, cluster.namespace, "wrong")
    await cluster.create_run(stages=[TRAIN])

    def refused(run: Object) -> bool:
        conditions = run.get("status", {}).get("conditions", [])
        return any(c["type"] == "Accepted" and c["reason"] == "CredentialsRefused" for c in conditions)

    run = await cluster.until("CredentialsRefused", refused)
    assert run["status"]["phase"] == "Pending"
    assert cluster.standin.seen == []
    await put_secret(cluster.kube, cluster.namespace, s3_server.SECRET)
    await cluster.until_running("demo-s0-a1")


async def test_missing_secret_and_missing_bucket_are_told_apart(cluster: Cluster) -> None:
    def reason(run: Object, word: str) -> bool:
        conditions = run.get("status", {}).get("conditions", [])
        return any(c["type"] == "Accepted" and c["reason"] == word for c in conditions)

    await cluster.kube.delete(SECRETS, cluster.namespace, "s3")
    await cluster.create_run(stages=[TRAIN])
    await cluster.until("SecretNotFound", lambda run: reason(run, "SecretNotFound"))
    await cluster.kube.delete(RUNS, cluster.namespace, "demo")
    await wait_for("the run is gone", cluster.gone)
    await put_secret(cluster.kube, cluster.namespace, s3_server.SECRET)
    s3 = {"bucket": "no-such-bucket", "endpoint": cluster.s3.endpoint, "credentialsSecretRef": {"name": "s3"}}
    await cluster.kube.create(run_manifest(cluster.namespace, checkpoint={"s3": s3}))
    await cluster.until("BucketNotFound", lambda run: reason(run, "BucketNotFound"))


async def test_run_with_a_hosted_judge_waits_for_its_key_and_goes_to_its_end_without_a_pool(cluster: Cluster) -> None:
    def accepted(word: str, field: str) -> Callable[[Object], bool]:
        def holds(run: Object) -> bool:
            conditions = run.get("status", {}).get("conditions", [])
            return any(c["type"] == "Accepted" and c["reason"] == word and field in c["message"] for c in conditions)

        return holds

    async def key(**data: str) -> None:
        encoded = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
        meta = {"name": "together", "namespace": cluster.namespace}
        await cluster.kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": encoded})

    await cluster.create_run(stages=[TRAIN], sandbox={"together": {"credentialsSecretRef": {"name": "together"}}})
    field = "sandbox.together.credentialsSecretRef: Secret together"
    await cluster.until("SecretNotFound", accepted("SecretNotFound", field))
    await key(OTHER="x")
    await cluster.until("CredentialsInvalid", accepted("CredentialsInvalid", f"{field} has no TOGETHER_API_KEY"))
    assert cluster.standin.seen == []
    await key(TOGETHER_API_KEY="tgp_v1_the-key-of-the-team")
    await cluster.until_running("demo-s0-a1")
    assert (await cluster.standin.config("demo-s0-a1")).judge.together is not None
    job = await cluster.kube.get(RAYJOBS, cluster.namespace, "demo-s0-a1")
    maps, _ = await cluster.kube.list(CONFIGMAPS, cluster.namespace)
    log = (cluster.directory / "operator.log").read_text()
    assert "tgp_v1" not in json.dumps([job, maps, await cluster.run()]) + log
    assert (await cluster.kube.list(POOLS, cluster.namespace))[0] == []
    await cluster.finish("demo-s0-a1")
    run = await cluster.until_phase("Complete")
    assert {c["type"]: c["reason"] for c in run["status"]["conditions"]}["SandboxReady"] == "Hosted"


async def test_operator_template_fields_are_refused_by_name(cluster: Cluster) -> None:
    template = {"spec": {"restartPolicy": "Always"}}
    await cluster.create_run(stages=[TRAIN | {"resources": {"learners": {"template": template}}}])

    def refused(run: Object) -> bool:
        conditions = run.get("status", {}).get("conditions", [])
        return any("resources.learners.template.spec.restartPolicy" in c["message"] for c in conditions)

    await cluster.until("refusal", refused)
    assert cluster.standin.seen == []
