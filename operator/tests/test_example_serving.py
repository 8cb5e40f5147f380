"""The serving example is taken by a real API server as it is, and its pod by a namespace that is restricted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.errors import KubeError
from deepcoder_operator.kube.resources import Resource

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "serve-vllm.yaml"
KINDS = {
    "ConfigMap": Resource("", "v1", "configmaps", "ConfigMap"),
    "Deployment": Resource("apps", "v1", "deployments", "Deployment"),
    "Pod": Resource("", "v1", "pods", "Pod"),
    "Service": Resource("", "v1", "services", "Service"),
}


def documents() -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all(EXAMPLE.read_text())}


def pod_spec() -> dict[str, Any]:
    spec: dict[str, Any] = documents()["Deployment"]["spec"]["template"]["spec"]
    return spec


async def create(kube: Kube, namespace: str, document: dict[str, Any]) -> dict[str, Any]:
    """Made, with unknown fields refused instead of dropped."""
    path = KINDS[document["kind"]].path(namespace)
    return await kube.post(f"{path}?fieldValidation=Strict", document)


@pytest.mark.apiserver
async def test_the_api_server_takes_it_and_a_restricted_namespace_its_pod(kube: Kube, namespace: str) -> None:
    for document in documents().values():
        assert (await create(kube, namespace, document))["metadata"]["uid"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "serve"}, "spec": pod_spec()}
    assert (await create(kube, namespace, pod))["spec"]["containers"][0]["name"] == "vllm"
    pod["metadata"] = {"name": "careless"}
    del pod["spec"]["containers"][0]["securityContext"]
    with pytest.raises(KubeError, match="violates PodSecurity"):
        await create(kube, namespace, pod)


def test_service_deployment_and_settings_name_each_other() -> None:
    found = documents()
    deployment, service = found["Deployment"]["spec"], found["Service"]["spec"]
    assert service["selector"].items() <= deployment["template"]["metadata"]["labels"].items()
    assert deployment["selector"]["matchLabels"] == service["selector"]
    [init], [server] = pod_spec()["initContainers"], pod_spec()["containers"]
    settings = found["ConfigMap"]["data"]
    for container in (init, server):
        used = set(re.findall(r"\$\((\w+)\)", " ".join([*container["command"], *container["args"]])))
        assert used <= set(settings), "a variable that is not set is passed on as it is written"
    named = {variable["name"] for variable in server["env"]}
    assert {"MAX_MODEL_LEN", "HF_OVERRIDES", "VLLM_API_KEY"} <= named
    assert "deepcoder-s3" not in str(server), "the server has no use for S3 credentials"
    assert settings["MAX_MODEL_LEN"] == "65536"


def test_values_for_128k_in_the_comments_are_what_they_say() -> None:
    text = EXAMPLE.read_text()
    block = re.search(r"#   MAX_MODEL_LEN: \"131072\"\n((?:  #.*\n)+)", text)
    assert block is not None
    lines = re.sub(r"^  # ", "", block[0].replace("#   MAX", "  #   MAX"), flags=re.M)
    values = yaml.safe_load(lines)
    overrides = json.loads(values["HF_OVERRIDES"])
    rope = overrides["rope_parameters"]
    assert rope["factor"] * rope["original_max_position_embeddings"] == overrides["max_position_embeddings"] == 131072
    assert values["MAX_MODEL_LEN"] == "131072"
