"""A finished run's model behind a Service: exported with a card, fetched and checked by a pod, answering a chat.

At 64K, and at 128K with positions scaled by YaRN, each with prompts longer than the next shorter length.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml
from e2e_world import World, wait_until
from kubernetes import client, utils

from deepcoder_demo.settings import CREDENTIALS_SECRET, REPOSITORY, tool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

EXAMPLE = REPOSITORY / "examples" / "serve-vllm.yaml"
NAME, SECRET = "deepcoder", "deepcoder-serve"  # as in the example
KEY = secrets.token_hex(16)
# The demo model's config.json says 512 positions where the published model's says 131,072; else as the example has it.
AT_64K = {"MAX_MODEL_LEN": "65536", "HF_OVERRIDES": json.dumps({"max_position_embeddings": 65536})}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 10000.0}
AT_128K = {
    "MAX_MODEL_LEN": "131072",
    "HF_OVERRIDES": json.dumps({"rope_parameters": _YARN, "max_position_embeddings": 131072}),
}
# Settings for a CPU instead of a GPU: vLLM's CPU build, and no compiler in the image.
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}


@pytest.fixture
def exported(world: World, start_run: Callable[..., str]) -> tuple[str, str]:
    """URI and digest of an export of a finished run, made with the command."""
    name = start_run("e2e-serve", steps=2)
    world.wait_for_phase(name, "Complete", 900)
    run = world.run(name)
    assert run is not None
    card = world.content(name, f"short/export/step-000002.a{world.status(name)['ordinal']:03d}/README.md")
    assert card is not None
    assert b"logits_compared: true" in card, card.decode()
    s3 = world.cluster.s3
    storage = run["spec"]["checkpoint"]["s3"]
    uid = run["metadata"]["uid"]
    folder = "/".join(p for p in (storage.get("prefix", "").strip("/"), world.namespace, f"{name}-{uid[:8]}") if p)
    output = f"s3://{s3.bucket}/exports/{uid}"
    done = subprocess.run(
        [
            *(tool("deepcoder-trainer"), "export", "--source", f"s3://{s3.bucket}/{folder}", "--output", output),
            *("--endpoint", s3.host_endpoint, "--region", s3.region, "--float32"),
        ],
        env={**os.environ, "AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    uri, digest = done.stdout.split()[:2]
    assert uri == output
    return uri, digest


@pytest.fixture
def served(world: World, exported: tuple[str, str]) -> Iterator[None]:
    """The example's objects with this cluster's values; removed afterwards."""
    documents = {d["kind"]: d for d in yaml.safe_load_all(EXAMPLE.read_text())}
    documents["ConfigMap"]["data"] |= {
        "MODEL_URI": exported[0],
        "MODEL_DIGEST": exported[1],
        "S3_ENDPOINT": world.cluster.s3.endpoint,
        "S3_REGION": world.cluster.s3.region,
        **AT_64K,
    }
    spec = documents["Deployment"]["spec"]["template"]["spec"]
    [fetch], [server] = spec["initContainers"], spec["containers"]
    fetch["envFrom"][1]["secretRef"]["name"] = CREDENTIALS_SECRET
    for container in (fetch, server):
        container["image"] = world.cluster.images.trainer
        container["resources"] = {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "6Gi"}}
    server["args"] += ["--dtype=float32", "--enforce-eager", "--max-num-seqs=8"]
    server["env"] += [{"name": name, "value": value} for name, value in CPU.items()]
    made = [{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": {"VLLM_API_KEY": KEY}}]
    api = client.ApiClient()
    try:
        for document in [*made, *documents.values()]:
            utils.create_from_dict(api, document, namespace=world.namespace)
        yield
    finally:
        client.AppsV1Api().delete_namespaced_deployment(NAME, world.namespace)
        world.core.delete_namespaced_service(NAME, world.namespace)
        world.core.delete_namespaced_config_map(SECRET, world.namespace)
        world.core.delete_namespaced_secret(SECRET, world.namespace)


def pods(world: World) -> list[Any]:
    return list(
        world.core.list_namespaced_pod(world.namespace, label_selector=f"app.kubernetes.io/name={SECRET}").items
    )


def state(world: World) -> str:
    """Information for the message of a failed wait."""
    lines = []
    for pod in pods(world):
        for status in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
            lines.append(f"{status.name}: {status.state}")
            try:
                lines.append(
                    world.core.read_namespaced_pod_log(
                        pod.metadata.name, world.namespace, container=status.name, tail_lines=30
                    )
                )
            except client.ApiException:
                continue
    return "\n".join(lines)


def ready(world: World) -> bool:
    deployment = client.AppsV1Api().read_namespaced_deployment(NAME, world.namespace)
    return bool(deployment.status.ready_replicas)


@contextmanager
def forwarded(world: World) -> Iterator[str]:
    """Forward the Service to this machine while the block runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [world.cluster.kubectl, "port-forward", "-n", world.namespace, f"service/{NAME}", f"{port}:8000"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "KUBECONFIG": world.cluster.kubeconfig},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def listens() -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until("kubectl listens", listens, 30)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def serve_with(world: World, settings: dict[str, str]) -> None:
    """Change values in the ConfigMap as a user would, and wait for a pod that has them."""
    world.core.patch_namespaced_config_map(SECRET, world.namespace, {"data": settings})
    before = {pod.metadata.uid for pod in pods(world)}
    for pod in pods(world):
        world.core.delete_namespaced_pod(pod.metadata.name, world.namespace)
    wait_until("the old pod is gone", lambda: not before & {pod.metadata.uid for pod in pods(world)}, 120)
    wait_until("the served model is ready again", lambda: ready(world), 600, lambda: state(world))


def ask(url: str, body: dict[str, Any], key: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=400) as answer:
        return dict(json.loads(answer.read()))


def answers_a_prompt_of(address: str, tokens: int) -> None:
    asked = {"model": "deepcoder", "prompt": [(7 * n + n // 13) % 200 for n in range(tokens)], "max_tokens": 4}
    answer = ask(f"{address}/v1/completions", asked, KEY)
    assert answer["usage"]["prompt_tokens"] == tokens
    assert 0 < answer["usage"]["completion_tokens"] <= 4


def test_a_finished_run_answers_a_chat_through_its_service(world: World, served: None) -> None:
    wait_until("the served model is ready", lambda: ready(world), 600, lambda: state(world))
    [pod] = pods(world)
    log = world.core.read_namespaced_pod_log(pod.metadata.name, world.namespace, container="fetch")
    assert "checked; manifest sha256:" in log
    with forwarded(world) as address:
        asked = {
            "model": "deepcoder",
            "messages": [{"role": "user", "content": "Read an integer and print it plus 1."}],
            "max_tokens": 24,
            "temperature": 0,
        }
        answer = ask(f"{address}/v1/chat/completions", asked, KEY)
        assert answer["choices"][0]["message"]["content"].strip()
        assert 0 < answer["usage"]["completion_tokens"] <= 24
        print(json.dumps(answer["choices"][0]["message"]["content"]))
        with pytest.raises(HTTPError) as refused:
            ask(f"{address}/v1/chat/completions", asked, "wrong")
        assert refused.value.code == 401


@pytest.mark.long
def test_served_model_answers_prompts_of_64k_and_with_yarn_of_128k(world: World, served: None) -> None:
    wait_until("the served model is ready", lambda: ready(world), 600, lambda: state(world))
    with forwarded(world) as address:
        answers_a_prompt_of(address, 40_000)
        with pytest.raises(HTTPError) as too_long:
            answers_a_prompt_of(address, 65_537)
        assert too_long.value.code == 400
    serve_with(world, AT_128K)
    with forwarded(world) as address:
        answers_a_prompt_of(address, 70_000)
