"""Upgrades an older release of the chart, with its operator and CRDs, to this one in the middle of a run's stage.

The older release comes from git history, which the test needs, with its own judge: this release's refuses to start in
pods of the older operator, which are too small for it. The trainer is this release's. Nothing that trains restarts,
judges are replaced one by one, the run completes in its first attempt, and fields that only the newer CRD knows are
available at once. It runs last, because it removes the platform first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import release_before
from e2e_world import GROUP, TIMEOUT, VERSION, World, wait_until
from kubernetes import client

from deepcoder_contracts.labels import LABEL_POOL
from deepcoder_demo import platform
from deepcoder_demo.commands import run as run_command
from deepcoder_demo.settings import OPERATOR_NAMESPACE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PARTS = ("client", "constraints", "contracts", "helm", "operator", "sandbox_image", "web")
NAME = "e2e-upgraded"
STEPS = 150
SECONDS = 240
CRD = f"deepcoderruns.{GROUP}"


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the release before, as far as its chart and the images of its operator and judge need them."""
    return release_before.unpack(tmp_path_factory.mktemp("release-before"), *PARTS)


@pytest.fixture
def older(world: World, before: Path) -> Iterator[None]:
    """Chart, operator, judge and CRDs of the release before, and nothing of this one; afterwards this one."""
    if not world.cluster.ours:
        pytest.skip("its images are built into the development cluster")
    built = run_command(
        [sys.executable, "-m", "devcluster", "images", "operator", "sandbox", "--source", before, "--json"], seconds=600
    )
    operator, sandbox = (json.loads(built)[part]["reference"] for part in ("operator", "sandbox"))
    assert operator != world.cluster.images.operator
    assert sandbox != world.cluster.images.sandbox
    try:
        platform.helm(
            world.cluster, "uninstall", platform.RELEASE, "--namespace", OPERATOR_NAMESPACE, "--wait", seconds=SECONDS
        )
        for plural in ("deepcoderruns", "sandboxpools"):
            platform.kubectl(world.cluster, "delete", "crd", f"{plural}.{GROUP}", "--timeout=60s", seconds=80)
        platform.helm(
            world.cluster, "install", platform.RELEASE, str(before / release_before.CHART),
            "--namespace", OPERATOR_NAMESPACE, "--wait", "--timeout=180s", "--set", "replicas=1",
            *images(world, operator, sandbox), seconds=SECONDS,
        )  # fmt: skip
        yield
    finally:
        platform.install_chart(world.cluster)


def images(world: World, operator: str, sandbox: str) -> list[str]:
    chosen = {"operator": operator, "trainer": world.cluster.images.trainer, "sandbox": sandbox}
    return [word for part, image in chosen.items() for word in ("--set-string", f"images.{part}={image}")]


def schema(world: World) -> Any:
    """Of a run's spec, as it is served."""
    crd = client.ApiextensionsV1Api().read_custom_resource_definition(CRD, _request_timeout=TIMEOUT)
    (version,) = [v for v in crd.spec.versions if v.name == VERSION]
    return version.schema.open_apiv3_schema.properties["spec"]


def lives(world: World) -> tuple[dict[str, tuple[str, int]], set[str]]:
    """Return uid and restarts of what a run consists of, without judges, and the names of its judges."""
    pods = world.core.list_namespaced_pod(world.namespace, _request_timeout=TIMEOUT).items
    judges = {pod.metadata.name for pod in pods if LABEL_POOL in pod.metadata.labels}
    found = {
        f"pod/{pod.metadata.name}": (
            pod.metadata.uid,
            sum(status.restart_count for status in pod.status.container_statuses or []),
        )
        for pod in pods
        if pod.metadata.name not in judges
    }
    for group, version, plural in (
        ("ray.io", "v1", "rayjobs"),
        ("ray.io", "v1", "rayclusters"),
        (GROUP, VERSION, "sandboxpools"),
        (GROUP, VERSION, "deepcoderruns"),
    ):
        listed = world.objects.list_namespaced_custom_object(
            group, version, world.namespace, plural, _request_timeout=TIMEOUT
        )
        found |= {f"{plural}/{item['metadata']['name']}": (item["metadata"]["uid"], 0) for item in listed["items"]}
    return found, judges


def steady(manifest: dict[str, Any]) -> None:
    """Few checkpoints, and a pool that neither grows nor shrinks."""
    manifest["spec"]["checkpoint"]["everySteps"] = 10
    manifest["spec"]["sandbox"]["template"]["maxReplicas"] = 1


def replaced(world: World, judges: set[str]) -> bool:
    now = lives(world)[1]
    return len(now) == 1 and now.isdisjoint(judges)


def step_after(step: int) -> Callable[[dict[str, Any]], bool]:
    return lambda status: status.get("phase") == "Running" and status.get("progress", {}).get("step", 0) > step


def test_an_upgrade_from_the_release_before_restarts_nothing_that_trains(
    world: World, older: None, start_run: Callable[..., str]
) -> None:
    assert "curation" not in schema(world).properties["dataset"].properties
    start_run(NAME, STEPS, change=steady)
    world.wait_for(NAME, "steps", step_after(1), 400)
    began, judges = lives(world)
    kinds = {name.partition("/")[0] for name in began}
    assert kinds == {"pod", "rayjobs", "rayclusters", "sandboxpools", "deepcoderruns"}
    assert len([name for name in began if name.startswith("pod/")]) >= 2, "head and workers"
    assert len(judges) == 1

    platform.helm(
        world.cluster, "upgrade", platform.RELEASE, str(platform.CHART), "--namespace", OPERATOR_NAMESPACE,
        "--reset-then-reuse-values", "--wait", "--timeout=180s",
        *images(world, world.cluster.images.operator, world.cluster.images.sandbox), seconds=SECONDS,
    )  # fmt: skip

    wait_until("the newer CRD is served", lambda: "curation" in schema(world).properties["dataset"].properties, 30)
    (operator,) = world.core.list_namespaced_pod(
        OPERATOR_NAMESPACE, label_selector="app.kubernetes.io/name=deepcoder-operator", _request_timeout=TIMEOUT
    ).items
    assert operator.spec.containers[0].image == world.cluster.images.operator
    seen = world.status(NAME)["progress"]["step"]
    assert seen < STEPS, "the run has ended before the upgrade: it shows nothing"
    world.wait_for(NAME, "a step that this release's operator was told of", step_after(seen), 90)
    wait_until("a judge of this release has replaced the older one", lambda: replaced(world, judges), 120)
    assert lives(world)[0] == began

    status = world.wait_for_phase(NAME, "Complete", 400)
    assert status["ordinal"] == 1
    assert status["latestCheckpoint"]["final"]
    assert status["latestCheckpoint"]["step"] == STEPS
