"""One ready platform for all end-to-end tests, and small runs on it that are removed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from e2e_world import World
from kubernetes import config
from rich.console import Console

from deepcoder_demo.ready import make_ready
from deepcoder_demo.settings import NAMESPACE
from deepcoder_demo.stopwatch import Stopwatch

GONE_SECONDS = 240


@pytest.fixture(scope="session")
def world() -> World:
    cluster = make_ready(Stopwatch(Console()))
    config.load_kube_config(cluster.kubeconfig)
    return World(cluster, NAMESPACE)


@pytest.fixture
def start_run(world: World) -> Iterator[Callable[..., str]]:
    """Start a small run under a name; every one is deleted at the end, and must be gone."""
    started: list[str] = []

    def start(name: str, steps: int = 6, change: Callable[[dict[str, Any]], None] = lambda manifest: None) -> str:
        world.delete(name)
        world.wait_gone(name, GONE_SECONDS)
        manifest = world.small_run(name, steps)
        change(manifest)
        world.create(manifest)
        started.append(name)
        return name

    yield start
    for name in started:
        world.delete(name)
    for name in started:
        world.wait_gone(name, GONE_SECONDS)
