"""A SandboxPool on the real cluster: it follows a burst of real programs, and only runs get through to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_world import GROUP, TIMEOUT, VERSION, World, wait_until
from kubernetes import client

from deepcoder_demo.platform import delete_and_wait, kubectl

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

POOL = "e2e-judges"
SELECTOR = f"deepcoder.dev/pool={POOL}"
READY_SECONDS = 120
PROGRAMS = 12

CALLER = """
import concurrent.futures, json, socket, sys, time, urllib.request

def reach(host):
    # The name of a judge, and the way to it, are there a moment after the judge is ready.
    deadline = time.monotonic() + 20
    while True:
        try:
            found = socket.getaddrinfo(host, 8080, type=socket.SOCK_STREAM)[0][4][0]
            socket.create_connection((found, 8080), 2).close()
            return found
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)

host, count = sys.argv[1], int(sys.argv[2])
token = open("/token/token").read().strip()
address = reach(host)
code = "import time\\nend = time.time() + 3\\nwhile time.time() < end: pass\\nprint(int(input()) + 1)"

def judge(i):
    body = {"id": f"e2e-{i}", "code": code, "time_limit_s": 60, "tests": [{"input": "1", "output": "2"}]}
    headers = {"Authorization": "Bearer " + token, "X-Deepcoder-Run": "demo/e2e/00000000"}
    request = urllib.request.Request(f"http://{address}:8080/v1/judge", json.dumps(body).encode(), headers)
    return json.load(urllib.request.urlopen(request, timeout=240))["passed"]

with concurrent.futures.ThreadPoolExecutor(count) as threads:
    print(json.dumps(list(threads.map(judge, range(count)))))
"""


@pytest.fixture
def pool(world: World) -> Iterator[str]:
    """A pool of small judges, ready, of one slot each."""
    judge = {"name": "judge", "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}}}
    body = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "SandboxPool",
        "metadata": {"name": POOL, "namespace": world.namespace},
        "spec": {
            "slotsPerPod": 1,
            "minReplicas": 1,
            "maxReplicas": 3,
            "scaling": {"targetQueuePerSlot": 2, "stabilizationSeconds": 5},
            "template": {"spec": {"containers": [judge]}},
        },
    }
    remove_pool(world)
    try:
        world.objects.create_namespaced_custom_object(
            GROUP, VERSION, world.namespace, "sandboxpools", body, _request_timeout=TIMEOUT
        )
        wait_until("one judge is ready", lambda: status(world).get("readyReplicas") == 1, READY_SECONDS)
        yield POOL
    finally:
        remove_pool(world)


def remove_pool(world: World) -> None:
    """Also before a test: one that was killed leaves its pool."""
    delete_and_wait(world.cluster, "sandboxpool", POOL, world.namespace, seconds=READY_SECONDS)
    wait_until("the judges are gone", lambda: not judges(world), READY_SECONDS, lambda: judges(world))


def status(world: World) -> dict[str, Any]:
    found = world.objects.get_namespaced_custom_object(
        GROUP, VERSION, world.namespace, "sandboxpools", POOL, _request_timeout=TIMEOUT
    )
    return dict(found.get("status") or {})


def judges(world: World) -> list[str]:
    found = world.core.list_namespaced_pod(world.namespace, label_selector=SELECTOR, _request_timeout=TIMEOUT)
    return [p.metadata.name for p in found.items]


def call(world: World, name: str, labels: dict[str, str], programs: int) -> None:
    """A pod that sends programs to the pool's first judge."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    host = f"{POOL}-judge.{world.namespace}.svc"
    body = {
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "caller",
                    "image": world.cluster.images.sandbox,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python3", "-c", CALLER, host, str(programs)],
                    "securityContext": security,
                    "volumeMounts": [{"name": "token", "mountPath": "/token"}],
                }
            ],
            "volumes": [{"name": "token", "secret": {"secretName": f"{POOL}-token"}}],
        },
    }
    delete_and_wait(world.cluster, "pod", name, world.namespace, seconds=READY_SECONDS)  # of a test that was killed
    world.core.create_namespaced_pod(world.namespace, body, _request_timeout=TIMEOUT)


def finished(world: World, name: str) -> str | None:
    phase = world.core.read_namespaced_pod(name, world.namespace, _request_timeout=TIMEOUT).status.phase
    return phase if phase in ("Succeeded", "Failed") else None


@pytest.fixture
def callers(world: World) -> Iterator[list[str]]:
    """Names of pods to remove afterwards."""
    names: list[str] = []
    yield names
    for name in names:
        world.core.delete_namespaced_pod(name, world.namespace, grace_period_seconds=0, _request_timeout=TIMEOUT)


def test_pool_follows_a_burst_of_real_programs_and_shrinks_again(world: World, pool: str, callers: list[str]) -> None:
    call(world, "e2e-burst", {"deepcoder.dev/run": "e2e"}, PROGRAMS)
    callers.append("e2e-burst")
    wait_until("three judges are ready", lambda: status(world).get("readyReplicas") == 3, 180, lambda: status(world))
    phase = wait_until("the burst is judged", lambda: finished(world, "e2e-burst"), 240)
    log = world.core.read_namespaced_pod_log("e2e-burst", world.namespace, _request_timeout=TIMEOUT)
    assert phase == "Succeeded", log
    assert json.loads(log) == [True] * PROGRAMS
    wait_until("one judge is left", lambda: len(judges(world)) == 1, 180, lambda: status(world))
    reasons = {
        e.reason
        for e in world.core.list_namespaced_event(
            world.namespace, field_selector=f"involvedObject.name={pool}", _request_timeout=TIMEOUT
        ).items
    }
    assert {"JudgesCreated", "ScaledDown"} <= reasons


def test_only_pods_of_runs_reach_judges_even_with_the_token(world: World, pool: str, callers: list[str]) -> None:
    call(world, "e2e-stranger", {"app": "stranger"}, 1)
    callers.append("e2e-stranger")
    assert wait_until("the stranger has given up", lambda: finished(world, "e2e-stranger"), 240) == "Failed"
    call(world, "e2e-friend", {"deepcoder.dev/run": "e2e"}, 1)
    callers.append("e2e-friend")
    assert wait_until("the run's pod is served", lambda: finished(world, "e2e-friend"), 120) == "Succeeded"


def test_judges_reach_nobody(world: World, pool: str) -> None:
    """From the judge's own pod, outside of the confinement of programs: the API server does not answer."""
    connect = (
        "import os, socket\n"
        "try:\n"
        "    socket.create_connection((os.environ['KUBERNETES_SERVICE_HOST'], 443), 5)\n"
        "    print('reached')\n"
        "except OSError:\n"
        "    print('kept')\n"
    )
    (judge,) = judges(world)
    assert kubectl(world.cluster, "-n", world.namespace, "exec", judge, "--", "python3", "-c", connect) == "kept\n"


def test_scale_subresource_is_served(world: World, pool: str) -> None:
    scale = client.CustomObjectsApi().get_namespaced_custom_object_scale(
        GROUP, VERSION, world.namespace, "sandboxpools", POOL, _request_timeout=TIMEOUT
    )
    assert (scale["kind"], scale["status"]["replicas"], scale["status"]["selector"]) == ("Scale", 1, SELECTOR)
