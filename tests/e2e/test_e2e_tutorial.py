"""The tutorial's commands print on the development cluster what the page shows; so do other fences that need a cluster.

WRITE_TUTORIAL=1 writes the printed output into the page instead, so that the page shows real output.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from docs_fences import CLUSTER, DEMO, TUTORIAL, Fence, differs, fences, run_in
from docs_world import Shell, shell
from e2e_world import World

from deepcoder_demo import manifest, platform
from deepcoder_demo.settings import tool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

RUN = "demo"
RUN_SECONDS = 1200
WRITE = bool(os.environ.get("WRITE_TUTORIAL"))


@pytest.fixture(scope="module")
def typed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A reader's shell after `make demo`, with a finished run."""
    cluster = world.cluster
    if world.status(RUN).get("phase") != "Complete":
        world.delete(RUN)
        world.wait_gone(RUN, 240)
        platform.kubectl(cluster, "apply", "-f", str(manifest.written(cluster.s3)))
        platform.follow(cluster, RUN, world.namespace, seconds=RUN_SECONDS)
    programs = [tool("kubectl-deepcoder"), Path(cluster.kubectl), Path(cluster.helm)]
    return shell(
        tmp_path_factory.mktemp("tutorial"), programs, seconds=600,
        KUBECONFIG=str(cluster.kubeconfig), AWS_ENDPOINT_URL_S3=cluster.s3.host_endpoint,
    )  # fmt: skip


def test_the_tutorial_is_as_it_says(typed: Shell, world: World) -> None:
    differ: list[str] = []
    for fence in fences(TUTORIAL):
        if fence.world not in (CLUSTER, DEMO):
            continue
        if "suspend second" in fence.text and "delete" not in fence.text:
            world.wait_for("second", "it trains", lambda status: (status.get("progress") or {}).get("step"), 420)
        printed = [typed.must(step.command, fence.name) for step in fence.steps]
        if fence.language == "console" and WRITE:
            write(fence, printed)
        else:
            differ.append(differs(fence, printed))
    assert not any(differ), "\n".join(differ)


def write(fence: Fence, printed: list[str]) -> None:
    """Write the printed output into the page."""
    new = "".join(
        f"$ {step.command}\n" + "".join(f"{line.rstrip()}\n" for line in now.splitlines())
        for step, now in zip(fence.steps, printed, strict=True)
    )
    text = fence.page.read_text()
    assert text.count(fence.body) == 1, fence.name
    fence.page.write_text(text.replace(fence.body, new))


@pytest.mark.parametrize("fence", [f for f in run_in(DEMO) if f.page != TUTORIAL], ids=lambda fence: fence.name)
def test_it_runs_on_a_cluster(fence: Fence, typed: Shell) -> None:
    for step in fence.steps:
        typed.must(step.command, fence.name)
