"""The chart's own test, and its uninstallation beside live runs: nothing keeps them from being deleted afterwards.

Last of the end-to-end tests: it takes the operator away for a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from e2e_world import World, wait_until

from deepcoder_demo import platform
from deepcoder_demo.settings import OPERATOR_NAMESPACE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

NAME = "e2e-left"
FINALIZER = "deepcoder.dev/drain"
SECONDS = 240


@pytest.fixture
def again(world: World) -> Iterator[None]:
    """The operator is there again afterwards."""
    yield
    platform.install_chart(world.cluster)


def test_chart_tests_itself(world: World) -> None:
    said = platform.helm(
        world.cluster, "test", platform.RELEASE, "--namespace", OPERATOR_NAMESPACE, "--logs", seconds=SECONDS
    )
    assert "Succeeded" in said


def test_runs_of_a_chart_that_is_gone_can_be_deleted(world: World, start_run: Callable[..., str], again: None) -> None:
    start_run(NAME, 900)
    world.wait_for_phase(NAME, "Running", 400)
    assert FINALIZER in (world.run(NAME) or {})["metadata"]["finalizers"]
    platform.helm(
        world.cluster, "uninstall", platform.RELEASE, "--namespace", OPERATOR_NAMESPACE, "--wait", seconds=SECONDS
    )
    left = world.run(NAME)
    assert left is not None, "the CRDs stay, and with them the runs"
    assert not left["metadata"].get("finalizers")
    assert world.pods(NAME), "training goes on without an operator"
    world.delete(NAME)
    world.wait_gone(NAME, 30)
    wait_until("its pods are gone", lambda: not world.pods(NAME), SECONDS, lambda: world.brief(NAME))
