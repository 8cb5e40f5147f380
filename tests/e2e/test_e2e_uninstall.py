"""The chart's own test, and uninstalling release, CRDs and namespaces in every order, with live runs. Nothing hangs.

It runs near the end of the end-to-end tests, because it removes the operator for a moment.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest
from e2e_world import GROUP, TIMEOUT, World, wait_until
from kubernetes import client

from deepcoder_demo import platform
from deepcoder_demo.commands import run as run_command
from deepcoder_demo.settings import OPERATOR_NAMESPACE, REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

NAME = "e2e-left"
FINALIZER = "deepcoder.dev/drain"
SECONDS = 240
CRDS = [f"{plural}.{GROUP}" for plural in ("deepcoderruns", "sandboxpools")]


@pytest.fixture
def again(world: World) -> Iterator[None]:
    """Restores the operator and the CRDs afterwards."""
    yield
    platform.install_chart(world.cluster)


def uninstall(world: World, release: str = platform.RELEASE, namespace: str = OPERATOR_NAMESPACE) -> None:
    platform.helm(world.cluster, "uninstall", release, "--namespace", namespace, "--wait", seconds=SECONDS)


def delete_crds(world: World, seconds: float) -> None:
    """Delete the CRDs, and with them runs and pools; fails if one of their finalizers stays."""
    platform.kubectl(world.cluster, "delete", "crd", *CRDS, f"--timeout={seconds:.0f}s", seconds=seconds + 20)


def served(world: World) -> set[str]:
    """Those of our CRDs that exist."""
    found = client.ApiextensionsV1Api().list_custom_resource_definition(_request_timeout=TIMEOUT).items
    return {crd.metadata.name for crd in found} & set(CRDS)


def suspended(world: World, start_run: Callable[..., str]) -> None:
    """A run with the operator's finalizer that uses no GPU."""
    start_run(NAME, 6, change=lambda manifest: manifest["spec"].update(suspend=True))
    world.wait_for_phase(NAME, "Suspended", 120)
    assert FINALIZER in (world.run(NAME) or {})["metadata"]["finalizers"]


def test_chart_tests_itself(world: World) -> None:
    said = platform.helm(
        world.cluster, "test", platform.RELEASE, "--namespace", OPERATOR_NAMESPACE, "--logs", seconds=SECONDS
    )
    assert "Succeeded" in said
    for reached in ("-metrics", "-progress", "-web-test"):
        assert re.search(rf"{reached}\.\S+: (200|401)$", said, re.MULTILINE), said


def test_runs_of_a_chart_that_is_gone_can_be_deleted(world: World, start_run: Callable[..., str], again: None) -> None:
    start_run(NAME, 900)
    world.wait_for_phase(NAME, "Running", 400)
    assert FINALIZER in (world.run(NAME) or {})["metadata"]["finalizers"]
    uninstall(world)
    left = world.run(NAME)
    assert left is not None, "the CRDs stay, and with them the runs"
    assert not left["metadata"].get("finalizers")
    assert world.pods(NAME), "training goes on without an operator"
    world.delete(NAME)
    world.wait_gone(NAME, 30)
    wait_until("its pods are gone", lambda: not world.pods(NAME), SECONDS, lambda: world.brief(NAME))


def test_crds_that_go_with_the_release_wait_for_no_run(
    world: World, start_run: Callable[..., str], again: None
) -> None:
    start_run(NAME, 900)
    world.wait_for_phase(NAME, "Running", 400)
    platform.helm(
        world.cluster, "upgrade", platform.RELEASE, str(platform.CHART), "--namespace", OPERATOR_NAMESPACE,
        "--reset-then-reuse-values", "--set", "crds.keep=false", "--wait", seconds=SECONDS,
    )  # fmt: skip
    uninstall(world)
    assert not served(world)
    wait_until(
        "its pods are gone",
        lambda: not world.core.list_namespaced_pod(world.namespace, _request_timeout=TIMEOUT).items,
        SECONDS,
    )


def test_crds_may_go_first(world: World, start_run: Callable[..., str], again: None) -> None:
    """The running operator releases their runs."""
    suspended(world, start_run)
    delete_crds(world, 90)
    assert not served(world)
    uninstall(world)


def test_a_run_whose_operator_went_with_its_namespace_is_freed_as_the_docs_say(
    world: World, start_run: Callable[..., str], again: None
) -> None:
    suspended(world, start_run)
    platform.delete_and_wait(world.cluster, "namespace", OPERATOR_NAMESPACE, "default", seconds=120)
    world.delete(NAME)
    time.sleep(5)
    assert world.run(NAME), "nobody lets it go, which the docs say"
    page = (REPOSITORY / "docs/howto/upgrading.md").read_text()
    (command,) = re.findall(r"```sh\n(kubectl get dcr -A .*?)```", page, re.DOTALL)
    by_hand = command.replace("kubectl ", f"{world.cluster.kubectl} ")
    run_command(["bash", "-euo", "pipefail", "-c", by_hand], seconds=60, env={"KUBECONFIG": world.cluster.kubeconfig})
    world.wait_gone(NAME, 30)
    delete_crds(world, 60)


def test_a_watched_namespace_that_is_gone_holds_nothing_up(world: World, again: None) -> None:
    """A release for two teams, of which one is gone with its namespace."""
    uninstall(world)
    home, ours, theirs = "e2e-home", "e2e-team-a", "e2e-team-b"
    try:
        platform.apply(world.cluster, *map(platform.namespace, (home, ours, theirs)))
        platform.helm(
            world.cluster, "install", "named", str(platform.CHART), "--namespace", home, "--wait",
            "--set", f"replicas=1,watchNamespaces={{{ours},{theirs}}}", "--set", "crds.install=false",
            "--set-string", f"images.operator={world.cluster.images.operator}", seconds=SECONDS,
        )  # fmt: skip
        run = world.small_run(NAME)
        run["metadata"]["namespace"] = ours
        run["spec"]["suspend"] = True
        platform.apply(world.cluster, run)

        def finalizers() -> list[str]:
            found = platform.get(world.cluster, "deepcoderrun", NAME, ours)["metadata"]
            return list(found.get("finalizers") or [])

        wait_until("the operator holds it", lambda: finalizers() == [FINALIZER], 60, finalizers)
        platform.delete_and_wait(world.cluster, "namespace", theirs, "default", seconds=120)
        uninstall(world, "named", home)
        assert finalizers() == []
    finally:
        for name in (home, ours, theirs):
            platform.delete_and_wait(world.cluster, "namespace", name, "default", seconds=120)
