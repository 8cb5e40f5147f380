"""A SandboxPool on the real cluster: it follows a burst of real programs, and only runs get through to it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from e2e_world import GROUP, TIMEOUT, VERSION, World, wait_until
from kubernetes import client
from pool_world import POOL, SELECTOR, call, finished, judges, output, pool_of, ready, status

from deepcoder_demo.platform import kubectl

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PROGRAMS = 12


@pytest.fixture
def pool(world: World) -> Iterator[str]:
    """A pool that follows its queue, one judge of it ready."""
    scaling = {"targetQueuePerSlot": 2, "stabilizationSeconds": 5}
    with pool_of(world, 1, minReplicas=1, scaling=scaling) as made:
        yield made


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
    ready(world, 3, 180)
    phase = wait_until("the burst is judged", lambda: finished(world, "e2e-burst"), 240)
    log = output(world, "e2e-burst")
    assert phase == "Succeeded", log
    assert json.loads(log)["passed"] == [True] * PROGRAMS
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


def test_autoscaler_sets_the_number_of_judges_through_the_scale_subresource(world: World) -> None:
    autoscaling = client.AutoscalingV2Api()
    target = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "SandboxPool", "name": POOL}
    spec = {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 3}
    body = {"metadata": {"name": POOL}, "spec": spec}
    with pool_of(world, 1, replicas=1, scaling={"mode": "External"}):
        autoscaling.create_namespaced_horizontal_pod_autoscaler(world.namespace, body, _request_timeout=TIMEOUT)
        try:
            ready(world, 2, 180)
        finally:
            autoscaling.delete_namespaced_horizontal_pod_autoscaler(POOL, world.namespace, _request_timeout=TIMEOUT)


def test_program_in_hand_outlives_the_scale_down_of_its_judge(world: World, callers: list[str]) -> None:
    with pool_of(world, 2, replicas=2, scaling={"mode": "External"}):
        call(world, "e2e-in-hand", {"deepcoder.dev/run": "e2e"}, 2, seconds=12)
        callers.append("e2e-in-hand")
        wait_until("both judges are busy", lambda: status(world).get("busySlots") == 2, 60, lambda: status(world))
        world.objects.patch_namespaced_custom_object(
            GROUP, VERSION, world.namespace, "sandboxpools", POOL, {"spec": {"replicas": 1}}, _request_timeout=TIMEOUT
        )
        phase = wait_until("both are judged", lambda: finished(world, "e2e-in-hand"), 120)
        log = output(world, "e2e-in-hand")
        assert phase == "Succeeded", log
        assert json.loads(log)["passed"] == [True, True]
        wait_until("one judge is left", lambda: len(judges(world)) == 1, 120, lambda: judges(world))


def test_verdicts_of_a_warm_pool_come_within_a_quarter_of_a_second(world: World, pool: str, callers: list[str]) -> None:
    call(world, "e2e-warm", {"deepcoder.dev/run": "e2e"}, 300, at_once=1, seconds=0)
    callers.append("e2e-warm")
    phase = wait_until("all are judged", lambda: finished(world, "e2e-warm"), 240)
    log = output(world, "e2e-warm")
    assert phase == "Succeeded", log
    seconds = json.loads(log)["seconds"]
    p99 = seconds[int(len(seconds) * 0.99) - 1]
    print(f"first verdict of a program on a warm pool, p99 of {len(seconds)}: {p99 * 1000:.0f} ms")
    assert p99 <= 0.25
