"""A Ray cluster that is started by hand: its object store, large enough for the model or refused, who may enter it, and
which daemons it has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from ray._private import ray_constants, services, utils
from ray._private.node import Node
from ray._raylet import AuthenticationTokenLoader, Config

from deepcoder_contracts.stage import StageResources
from deepcoder_trainer import cluster
from deepcoder_trainer.cluster import OBJECT_STORE_BYTES, THREADS, begun_with, object_store_bytes
from deepcoder_trainer.errors import BadConfig

GIB = 1 << 30
LOG_MONITOR, START_PROCESS = Node.start_log_monitor, services.start_ray_process


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    usage = SimpleNamespace(free=64 * GIB)
    monkeypatch.setattr(cluster, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    return usage


def test_it_holds_the_weights_that_are_loaded_and_those_that_come_next(free: SimpleNamespace) -> None:
    assert object_store_bytes(3.6e9) == 9e9
    assert object_store_bytes(1e6) == OBJECT_STORE_BYTES


def test_shared_memory_bounds_it_as_long_as_one_set_has_room(free: SimpleNamespace) -> None:
    free.free = 6 * GIB
    assert 1.25 * 3.6e9 < object_store_bytes(3.6e9) < free.free


def test_too_little_shared_memory_is_refused_with_how_much_is_needed(free: SimpleNamespace) -> None:
    free.free = 64 << 20  # what a container has by default
    with pytest.raises(BadConfig, match=r"weights of 3\.6 GB .* make it at least 5\.0 GB") as refused:
        object_store_bytes(3.6e9)
    assert refused.value.field == "model.uri"
    assert object_store_bytes(1e6) < free.free, "a small model does with little"


SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup"
SLOW_GCS = "Timed out waiting for file /tmp/ray/session/gcs_server_port_0"


class Starts:
    """`ray.init` on a machine that is too busy for so many of them; daemons stay behind, with a child of their own."""

    def __init__(self, too_busy: int, words: str = SLOW) -> None:
        self.too_busy, self.words = too_busy, words
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.starting: list[bool] = []
        """Of each start, whether Ray would have started what has nothing to do."""

    def __call__(self, **settings: Any) -> None:
        assert settings["address"] == "local"
        self.settings, self.environment = settings, dict(os.environ)
        self.starting += [Node.start_log_monitor is LOG_MONITOR, services.start_ray_process is START_PROCESS]
        self.daemons.append(subprocess.Popen(["sh", "-c", "sleep 600 & wait"]))
        while not list(cluster._children(self.daemons[-1].pid)):
            time.sleep(0.01)
        if len(self.daemons) <= self.too_busy:
            raise Exception(self.words)

    @property
    def living(self) -> list[bool]:
        return [daemon.poll() is None for daemon in self.daemons]

    def end(self) -> None:
        for daemon in self.daemons:
            cluster._end(cluster._descendants() & {daemon.pid, *cluster._children(daemon.pid)})
            daemon.wait(10)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    made = Starts(*request.param)
    for variable in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(variable, "")  # so that what is set meanwhile goes again
        monkeypatch.delenv(variable)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", made)
    yield made
    made.end()
    monkeypatch.undo()
    AuthenticationTokenLoader.instance().reset_cache()  # of a real cluster's, which other tests may have started


@pytest.mark.parametrize("starts", [(0,)], indirect=True)
def test_a_cluster_of_our_own_is_open_to_nobody_else(starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.connect_ray(StageResources(), 1e6)
    first = starts.environment
    assert first.get("RAY_AUTH_MODE", "token") == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert starts.settings["include_dashboard"] is False
    assert not [value for value in starts.settings.values() if value == first["RAY_AUTH_TOKEN"]]
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    cluster.connect_ray(StageResources(), 1e6)
    assert starts.environment["RAY_AUTH_TOKEN"] != first["RAY_AUTH_TOKEN"], "each run has one of its own"


@pytest.mark.parametrize("starts", [(0,)], indirect=True)
def test_actors_have_how_threads_wait_from_a_cluster_of_our_own_and_ask_another_for_it(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    cluster.connect_ray(StageResources(), 1e6)
    assert starts.environment.items() >= THREADS.items()
    assert begun_with(THREADS) == {}
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert begun_with(THREADS) == {"runtime_env": {"env_vars": THREADS}}


@pytest.mark.parametrize("starts", [(2,), (2, SLOW_GCS)], indirect=True)
def test_a_start_that_the_machine_was_too_busy_for_is_tried_again_and_leaves_no_daemons(starts: Starts) -> None:
    before = cluster._descendants()
    others = subprocess.Popen(["sleep", "600"])
    try:
        cluster.connect_ray(StageResources(), 1e6)
        for daemon in starts.daemons[:2]:
            daemon.wait(10)
        assert starts.living == [False, False, True]
        assert others.poll() is None, "what this process had started before goes on"
        left = cluster._descendants() - before
        assert left == {others.pid, starts.daemons[2].pid, *cluster._children(starts.daemons[2].pid)}
    finally:
        others.kill()
        others.wait(10)


@pytest.mark.parametrize("starts", [(9,), (9, "no space left on device")], indirect=True)
def test_it_is_tried_a_few_times_and_only_for_want_of_time(starts: Starts) -> None:
    with pytest.raises(Exception, match=starts.words[:20]):
        cluster.connect_ray(StageResources(), 1e6)
    assert len(starts.daemons) == (cluster.STARTS if starts.words == SLOW else 1)
    assert not any(starts.starting)
    kept = (Node.start_log_monitor, services.start_ray_process)
    assert kept == (LOG_MONITOR, START_PROCESS), "whoever else starts a cluster has it"


@pytest.mark.usefixtures("ray_cluster")
def test_no_daemon_is_started_that_has_nothing_to_do() -> None:
    programs = {Path(word).name for child in psutil.Process().children(recursive=True) for word in words(child)}
    assert {"raylet", "gcs_server"} <= programs
    assert programs & {"dashboard.py", "log_monitor.py", "monitor.py", "agent.py", "ray::DashboardAgent"} == set()
    assert not {name for name in programs if name.startswith("ray::RuntimeEnvAgent")}


def environment(given: dict[str, Any]) -> dict[str, Any]:
    """A hook of Ray's, which is asked for the environment of its workers."""
    return {**given, "env_vars": {"A": "b"}}


@pytest.mark.parametrize("hook", [False, True])
def test_environments_of_workers_are_prepared_if_ray_is_to_make_them(
    monkeypatch: pytest.MonkeyPatch, hook: bool
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(services, "start_ray_process", lambda command, *_: commands.append(command))
    monkeypatch.setattr(ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", False)  # these tests may run below `uv run`
    monkeypatch.delenv("RAY_RUNTIME_ENV_HOOK", raising=False)
    if hook:
        monkeypatch.setenv("RAY_RUNTIME_ENV_HOOK", f"{__name__}.environment")
    asked = ["raylet", "--runtime_env_agent_command=python agent.py", "--runtime_env_agent_port=0"]
    with cluster.without_idle_daemons():
        services.start_ray_process(asked, "raylet")
    assert commands == [asked if hook else ["raylet", "--runtime_env_agent_command=cat", "--runtime_env_agent_port=1"]]


def test_libraries_of_the_dashboard_are_not_loaded_to_leave_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[None] = []

    def find() -> None:
        loads.append(None)

    monkeypatch.setattr(utils, "get_dashboard_dependency_error", find)
    with cluster.without_idle_daemons():
        assert isinstance(utils.get_dashboard_dependency_error(), ImportError)
    assert loads == []
    assert utils.get_dashboard_dependency_error is find, "whoever else starts a cluster has it"


PATIENT = """
import os, signal, subprocess, sys
import ray
from ray._private import worker
from deepcoder_trainer import cluster

connect = worker.connect

def connect_to_frozen(node, *args, **settings):
    raylet = node.all_processes["raylet"][0].process.pid
    os.kill(raylet, signal.SIGSTOP)
    subprocess.Popen(["sh", "-c", f"sleep 60; kill -CONT {raylet}"])
    connect(node, *args, **settings)

worker.connect = connect_to_frozen
cluster.start_ray(num_cpus=1, object_store_memory=100 << 20)
print("nodes:", len(ray.nodes()))
"""


@pytest.mark.long
def test_a_raylet_that_does_not_answer_for_a_while_does_not_end_its_driver() -> None:
    """With Ray's own limits it ended with status 1 after 30 s."""
    ended = subprocess.run([sys.executable, "-c", PATIENT], capture_output=True, text=True, timeout=200)
    assert (ended.returncode, ended.stdout) == (0, "nodes: 1\n"), ended.stderr


@pytest.mark.usefixtures("ray_cluster")
def test_driver_and_actors_wait_for_raylet_and_gcs_longer_than_ray_has_them() -> None:
    @ray.remote(num_cpus=0)
    def tries() -> int:
        return int(Config.raylet_client_num_connect_attempts())

    assert int(Config.raylet_client_num_connect_attempts()) == ray.get(tries.remote(), timeout=120) == 120


@pytest.mark.usefixtures("ray_cluster")
def test_what_computes_gives_way_to_nothing_else_on_the_machine() -> None:
    """Judges' programs, say: their processes are of the same run, and there are as many as there are cores."""

    @ray.remote(num_cpus=0)
    def niceness() -> int:
        return os.nice(0)

    assert ray.get(niceness.remote(), timeout=120) == os.nice(0)


def words(process: psutil.Process) -> list[str]:
    with suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []
