"""Attacks on the protection of a run's pods on the real cluster, and what an evicted or crashed pod leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from e2e_world import TIMEOUT, World, wait_until
from kubernetes import client
from pool_world import finished, output, start_pod

from deepcoder_contracts import layout
from deepcoder_demo.platform import kubectl
from deepcoder_demo.settings import OPERATOR_NAMESPACE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

START_SECONDS = 300
STAGE = "short"
PORTS = (6379, 8265, 10001, 8080)
"""Of Ray: its store, the dashboard (which runs what it is sent) and the client server, all on the head; metrics."""

TRY = """
import json, socket, sys
def reached(place):
    host, _, port = place.partition(":")
    try:
        socket.create_connection((host, int(port)), 3).close()
        return True
    except OSError:
        return False
print(json.dumps([place for place in sys.argv[1:] if reached(place)]))
"""
ASK = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(f"http://{sys.argv[1]}:8265/api/jobs/", timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def running(world: World, start_run: Callable[..., str], name: str) -> tuple[str, Any]:
    """A run that trains, and its head pod."""

    def every(manifest: dict[str, Any]) -> None:
        manifest["spec"]["checkpoint"].update(everySteps=5)

    start_run(name, steps=120, change=every)
    world.wait_for(name, "a checkpoint", lambda s: s.get("latestCheckpoint"), START_SECONDS)
    return name, next(p for p in world.pods(name) if p.metadata.labels.get("ray.io/node-type") == "head")


@pytest.fixture
def stranger(world: World) -> Iterator[str]:
    yield "e2e-intruder"
    world.core.delete_namespaced_pod("e2e-intruder", world.namespace, grace_period_seconds=0, _request_timeout=TIMEOUT)


def test_stranger_reaches_no_port_of_a_run_and_a_pod_of_the_run_needs_the_token(
    world: World, start_run: Callable[..., str], stranger: str
) -> None:
    name, head = running(world, start_run, "e2e-guarded")
    worker = next(p for p in world.pods(name) if p.metadata.labels.get("ray.io/node-type") == "worker")
    places = [f"{pod.status.pod_ip}:{port}" for pod in (head, worker) for port in PORTS]
    start_pod(world, stranger, {"app": "intruder"}, ["python3", "-c", TRY, *places], {"name": "token", "emptyDir": {}})
    wait_until("the stranger has tried", lambda: finished(world, stranger), 120)
    assert json.loads(output(world, stranger)) == []
    inside = ("-n", world.namespace, "exec", worker.metadata.name, "-c", "ray-worker", "--", "python3", "-c")
    reached = json.loads(kubectl(world.cluster, *inside, TRY, *places))
    served = {f"{head.status.pod_ip}:{port}" for port in (6379, 8265, 8080)} | {f"{worker.status.pod_ip}:8080"}
    assert served <= set(reached), "a pod of the run gets through"
    assert kubectl(world.cluster, *inside, ASK, head.status.pod_ip).strip() in ("401", "403")


def test_head_that_is_evicted_without_an_operator_saves_and_the_run_goes_on_from_there(
    world: World, start_run: Callable[..., str]
) -> None:
    """No operator tells the trainer to drain; its pod's preStop hook does."""
    name, head = running(world, start_run, "e2e-evicted")
    deployments = client.AppsV1Api()
    (operator,) = deployments.list_namespaced_deployment(
        OPERATOR_NAMESPACE, label_selector="app.kubernetes.io/name=deepcoder-operator", _request_timeout=TIMEOUT
    ).items

    def scale(replicas: int) -> None:
        deployments.patch_namespaced_deployment_scale(
            operator.metadata.name, OPERATOR_NAMESPACE, {"spec": {"replicas": replicas}}, _request_timeout=TIMEOUT
        )

    scale(0)
    try:
        eviction = {"metadata": {"name": head.metadata.name, "namespace": world.namespace}}
        world.core.create_namespaced_pod_eviction(
            head.metadata.name, world.namespace, eviction, _request_timeout=TIMEOUT
        )

        def gone() -> bool:
            return all(p.metadata.uid != head.metadata.uid for p in world.pods(name))

        wait_until("the head has left", gone, 180, lambda: world.brief(name))
        ending = world.stored(name, layout.exit_key(STAGE, 1))
        assert ending is not None, "it left without a word"
        assert ending["code"] == 75
    finally:
        scale(operator.spec.replicas)
    status = world.wait_for(name, "attempt 2", lambda s: s if s.get("ordinal", 0) >= 2 else None, START_SECONDS)
    assert status["latestCheckpoint"]["step"] >= ending["step"], "what the hook saved is not what the run goes on from"
    assert status["stages"][0].get("failures", 0) == 0, "an eviction is no failure"


def test_crash_leaves_what_tells_why_in_the_bucket(world: World, start_run: Callable[..., str]) -> None:
    name, head = running(world, start_run, "e2e-crashed")
    kill = (
        "import os, pathlib, signal\n"
        "for p in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
        "    words = p.read_bytes().split(b'\\0')\n"
        "    if b'run' in words and any(w.endswith(b'deepcoder-trainer') for w in words):\n"
        "        os.kill(int(p.parent.name), signal.SIGKILL)\n"
    )
    kubectl(
        world.cluster, "-n", world.namespace, "exec", head.metadata.name, "-c", "ray-head", "--", "python3", "-c", kill
    )
    world.wait_for(name, "attempt 2", lambda s: s.get("ordinal", 0) >= 2, START_SECONDS)
    states = world.stored(name, layout.log_key(STAGE, 1, "pods.json"))
    assert states is not None
    assert head.metadata.name in [s["metadata"]["name"] for s in states]
    assert world.stored(name, layout.log_key(STAGE, 1, "events.json"))
    assert world.content(name, layout.log_key(STAGE, 1, "head.log"))
    driver = world.content(name, layout.log_key(STAGE, 1, "driver.log"))
    assert driver, "the trainer's own words, though it was killed"
