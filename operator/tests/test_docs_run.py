"""Commands of the tutorial, the how-tos and the README do what the pages say: they are run as they stand.

In a shell alone, or before a real API server and a real S3 server with a run that was played through the operator. What
runs on the development cluster alone is tried by `tests/e2e/test_e2e_tutorial.py`; what runs nowhere says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cli_template
import pytest
from docs_fences import CLUSTER, SHELL, TUTORIAL, Fence, differs, fences, run_in
from docs_world import DocsWorld, Shell, shell
from played_run import PlayedRun

from devcluster import doctor
from devcluster.artifacts import Artifacts
from devcluster.config import cache_root

pytestmark = pytest.mark.early

USED = ("ml", "demo", "team-red")
"""Namespaces that the pages name and leave behind."""


@pytest.fixture(scope="module")
def kubectl() -> Path:
    """The real one."""
    found = Artifacts(cache_root(), doctor.go_version()).kubectl
    if not found.exists():
        pytest.skip("kubectl has not been built: run `python -m devcluster build`")
    return found


@pytest.fixture
def alone(tmp_path: Path, helm: str, kubectl: Path) -> Shell:
    """A shell that knows no cluster."""
    return shell(tmp_path, [Path(helm), kubectl])


@pytest.fixture(scope="module")
def docs_world(
    played: PlayedRun, kubeconfig: Path, helm: str, kubectl: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DocsWorld]:
    """An administrator's shell."""
    played.call(played.cluster.kill_operator())
    plain = shell(tmp_path_factory.mktemp("plain"), [])
    with cli_template.forking(tmp_path_factory.mktemp("forking"), plain.environment) as plugin:
        programs = [plugin, Path(helm), kubectl]
        typed = shell(tmp_path_factory.mktemp("docs"), programs, KUBECONFIG=str(kubeconfig))
        world = DocsWorld(typed, played)
        world.give("uninstalled")
        yield world
        world.give("uninstalled")
        for namespace in USED:
            world.give(f"no-runs {namespace}")
        typed.must(f"kubectl delete namespace {' '.join(USED)} --wait=false")


def pages(world: str) -> list[Path]:
    """Those with fences that are run there: one test each, since a fence goes on where the one before it ended."""
    return list(dict.fromkeys(fence.page for fence in run_in(world)))


def of(page: Path, world: str) -> list[Fence]:
    return [fence for fence in fences(page) if fence.world == world]


@pytest.mark.parametrize("page", pages(SHELL), ids=lambda page: page.name)
def test_it_runs_in_a_shell(page: Path, alone: Shell) -> None:
    for fence in of(page, SHELL):
        printed = [alone.must(step.command, fence.name) for step in fence.steps]
        assert not differs(fence, printed), differs(fence, printed)


@pytest.mark.apiserver
@pytest.mark.s3
@pytest.mark.parametrize("page", pages(CLUSTER), ids=lambda page: page.name)
def test_it_runs_before_a_cluster(page: Path, docs_world: DocsWorld) -> None:
    for fence in of(page, CLUSTER):
        for what in fence.given:
            docs_world.give(what)
        printed = [docs_world.shell.must(step.command, fence.name) for step in fence.steps]
        # The tutorial shows what the real demo prints, which the end-to-end test looks at.
        assert page == TUTORIAL or not differs(fence, printed), differs(fence, printed)
