"""A SandboxPool on the real cluster: it follows a burst of real programs, and only pods of runs reach it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import external_metrics
import pytest
from e2e_world import GROUP, TIMEOUT, VERSION, World, wait_until
from first_verdict import FIRST_VERDICTS
from kubernetes import client
from pool_world import POOL, SELECTOR, call, finished, judges, output, pool_of, ready, start_pod, status

from deepcoder_demo.platform import kubectl

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PROGRAMS = 12
RUNS = 300


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
    """In the judge's own pod, outside the confinement of programs, the API server cannot be reached."""
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


def test_autoscaler_follows_an_external_metric_as_keda_has_it_do(world: World, callers: list[str]) -> None:
    """KEDA creates such an autoscaler; here `external_metrics` serves the metric in KEDA's place."""
    autoscaling = client.AutoscalingV2Api()
    with pool_of(world, 1, replicas=1, scaling={"mode": "External"}), external_metrics.served(world) as metric:
        target = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "SandboxPool", "name": POOL}
        source = {"metric": {"name": metric}, "target": {"type": "AverageValue", "averageValue": "3"}}
        spec = {
            "scaleTargetRef": target,
            "minReplicas": 1,
            "maxReplicas": 3,
            "metrics": [{"type": "External", "external": source}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        }
        body = {"metadata": {"name": POOL}, "spec": spec}
        autoscaling.create_namespaced_horizontal_pod_autoscaler(world.namespace, body, _request_timeout=TIMEOUT)
        try:
            call(world, "e2e-keda", {"deepcoder.dev/run": "e2e"}, PROGRAMS, seconds=6)
            callers.append("e2e-keda")
            ready(world, 3, 180)
            phase = wait_until("the burst is judged", lambda: finished(world, "e2e-keda"), 240)
            assert phase == "Succeeded", output(world, "e2e-keda")
            wait_until("one judge is left", lambda: len(judges(world)) == 1, 180, lambda: status(world))
        finally:
            autoscaling.delete_namespaced_horizontal_pod_autoscaler(POOL, world.namespace, _request_timeout=TIMEOUT)


def test_pool_says_why_its_judges_do_not_start_and_what_mends_it(world: World) -> None:
    judge = {"name": "judge", "resources": {"limits": {"memory": "256Mi"}, "requests": {"memory": "256Mi"}}}
    with pool_of(world, 0, minReplicas=1, template={"spec": {"containers": [judge]}}):

        def reason() -> str:
            condition = next((c for c in status(world).get("conditions", []) if c["type"] == "Ready"), {})
            return f"{condition.get('reason')}: {condition.get('message')}"

        wait_until("the condition tells", lambda: "CrashLoopBackOff" in reason(), 120, reason)
        assert "memory limit is 256 MiB" in reason()
        assert "raise the limit" in reason()
        wait_until(
            "it is believed", lambda: reason().startswith("JudgesRefuseToStart: no judge can start"), 120, reason
        )


def test_program_in_hand_outlives_the_scale_down_of_its_judge(world: World, callers: list[str]) -> None:
    with pool_of(world, 2, replicas=2, scaling={"mode": "External"}):
        call(world, "e2e-in-hand", {"deepcoder.dev/run": "e2e"}, 2, seconds=40)
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


def test_first_verdict_of_a_run_comes_within_a_quarter_of_a_second_on_a_warm_pool(
    world: World, pool: str, callers: list[str]
) -> None:
    host, name = f"{pool}-judge.{world.namespace}.svc", "e2e-first"
    token = {"name": "token", "secret": {"secretName": f"{pool}-token"}}
    command = ["python3", "-c", FIRST_VERDICTS, host, str(RUNS)]
    start_pod(world, name, {"deepcoder.dev/run": "e2e"}, command, token, world.cluster.images.trainer)
    callers.append(name)
    phase = wait_until("all runs have their first verdict", lambda: finished(world, name), 300)
    log = output(world, name)
    assert phase == "Succeeded", log
    result = json.loads(log.splitlines()[-1])
    assert result["passed"] == [True] * RUNS
    p50, p99, most = (result["seconds"][int(RUNS * part) - 1] for part in (0.5, 0.99, 1))
    print(f"first verdict of {RUNS} runs: p50 {p50 * 1000:.0f}, p99 {p99 * 1000:.0f}, most {most * 1000:.0f} ms")
    assert p99 <= 0.25
