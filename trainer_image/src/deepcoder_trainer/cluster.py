"""Connects to the Ray cluster of a RayJob, or starts one on this machine.

In a RayJob, the driver finds its cluster by RAY_ADDRESS. Otherwise it starts a small one without a dashboard, with an
object store for the model's weights, which ends with the driver. If the machine is too busy to start it in time, the
start is retried a few times; Ray's daemons may be silent for two minutes. A machine whose shared memory is too small
for the weights is refused, because Ray would move them over the disk at each step.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import shutil
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deepcoder_contracts.stage import StageResources
from deepcoder_trainer.errors import BadConfig, LearnerLost

log = logging.getLogger(__name__)

HALF = 0.5
"""Share of a GPU that a learner and a sampler each request from Ray if they share it."""
THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Environment that a computing process needs before it loads torch. Threads that spin at barriers starve each other if
processes share cores: measured 4.6 times the CPU time on two busy cores."""
PATIENCE = {"RAY_raylet_client_num_connect_attempts": "120", "RAY_gcs_rpc_server_connect_timeout_s": "120"}
"""Ray's limits on reaching raylet, at least a second a try, and GCS. Its own are 10 tries and 5 s. A driver that raylet
does not answer by then, as on a busy machine, ends without an exception: measured after 30 s."""
OWN = {
    **THREADS,
    **PATIENCE,
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise Ray starts one worker per core in advance; samplers and learners start theirs on demand.
    "RAY_prestart_worker_first_driver": "0",
    # Ray runs its workers at nice 15. Next to judges on the same machine, learners and samplers then had a fiftieth of
    # a core, and did not even finish loading torch.
    "RAY_worker_niceness": "0",
    # GCS has a raylet that is silent for some 35 s end itself. On one machine nothing is gained by that.
    "RAY_health_check_failure_threshold": "40",
}
"""Environment of our own cluster."""
PLACES_SECONDS = 1800.0
"""Deadline for shared places, including pods that come late."""

OBJECT_STORE_BYTES = 512 << 20
"""Object store of our own cluster for a small model: several sets of its weights, and all its batches."""
WEIGHT_SETS = 2.5
"""Sets of weights for which the object store has room: the loaded ones, the next ones, and half a set for batches."""
STARTS = 3
"""Number of tries to start our own cluster. Ray gives up after 15 s for GCS, 30 s for all, which no setting changes."""
_TOO_SLOW = ("timed out during startup", "Timed out waiting for file")
_IDLE_DAEMONS = ("start_api_server", "start_log_monitor", "start_monitor")
"""Methods of Ray's `Node` that start the dashboard's server, the forwarding of logs, and the autoscaler's monitor."""
_AGENT = "--dashboard_agent_command"
"""Raylet's argument with the command of the agent that collects metrics for the dashboard and Prometheus."""
_AGENT_PORTS, _AGENT_LISTENS = ("--metrics-agent-port", "--metrics_export_port"), "--dashboard_agent_listen_port"
"""Ports that raylet waits for the agent to report unless they are arguments; Ray never passes the last one."""
_DASHBOARD = "get_dashboard_dependency_error"
"""Function of Ray that imports the dashboard's libraries. If they are missing, the agent is started without them."""
_ENVIRONMENTS, _ENVIRONMENTS_PORT = "--runtime_env_agent_command", "--runtime_env_agent_port"
"""Raylet's arguments with the command and the port of the agent that prepares environments for workers."""
_NOBODY = 1
"""A port on which nothing listens."""
LEAST_SETS = 1.25
"""Sets of weights for which the object store needs room at least: without the next ones."""
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  where Ray keeps it
_SHARE = 0.9
"""Share of the free shared memory that the object store may take."""


def in_cluster() -> bool:
    """Whether this process was started in a Ray cluster."""
    return "RAY_ADDRESS" in os.environ


def begun_with(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return Ray's option for an actor whose process starts with these environment variables.

    In our own cluster it is empty: each process inherits `THREADS` from this one, and no actor needs more. To set
    variables, Ray would start two interpreters one after the other, each of which loads Ray.
    """
    return {"runtime_env": {"env_vars": dict(variables)}} if in_cluster() else {}


def most_of(stages: Iterable[StageResources]) -> StageResources:
    """Return the size of a cluster that can run all of these stages, one after another."""
    resources = list(stages)
    return StageResources(
        samplers=max(r.samplers for r in resources),
        learners=max(r.learners for r in resources),
        accelerators=any(r.accelerators for r in resources),
    )


class SharedPlaces:
    """Places of one GPU each, in which a learner and a sampler take turns (`placement: Colocated`).

    Ray reserves all of them at once. Learner and sampler of one place get the same GPU.
    """

    def __init__(self, group: Any, count: int) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._group = group
        self.each: tuple[Any, ...] = tuple(
            PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i) for i in range(count)
        )
        """Ray's scheduling strategy for each place."""

    def give_back(self) -> None:
        """Release the places. Ray kills actors that are still in them."""
        from ray.util import remove_placement_group

        remove_placement_group(self._group)


async def shared_places(resources: StageResources) -> SharedPlaces:
    """Reserve one place per learner. Raises `LearnerLost` if Ray has no room for them in time."""
    from ray.util import placement_group

    bundle = {"learner": 1.0, "sampler": 1.0} | ({"GPU": 1.0} if resources.accelerators else {})
    group = placement_group([bundle] * resources.learners, strategy="PACK")
    places = SharedPlaces(group, resources.learners)
    try:
        async with asyncio.timeout(PLACES_SECONDS):
            await asyncio.wrap_future(group.ready().future())
    except BaseException as error:
        places.give_back()
        if isinstance(error, TimeoutError):
            raise LearnerLost(
                f"Ray has no room for {resources.learners} learners with a sampler beside each within "
                f"{PLACES_SECONDS:.0f} s: each takes {bundle}"
            ) from None
        raise
    return places


def object_store_bytes(weights: float) -> int:
    """Return the object store's size for `weights` bytes. Raises `BadConfig` if shared memory is too small."""
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else math.inf
    size = min(max(OBJECT_STORE_BYTES, WEIGHT_SETS * weights), _SHARE * free)
    if size < (least := LEAST_SETS * weights):
        raise BadConfig(
            f"weights of {weights / 1e9:.1f} GB go to the samplers through shared memory, but {_SHARED_MEMORY} has "
            f"{free / 1e9:.1f} GB free: make it at least {least / _SHARE / 1e9:.1f} GB (mount -o remount,size=…; "
            "docker run --shm-size)",
            field="model.uri",
        )
    return int(size)


def connect_ray(resources: StageResources, weights: float) -> None:
    """Connect to Ray, once per process. Our own cluster has `resources`, and room for `weights` bytes of weights."""
    import ray

    if ray.is_initialized():
        return
    if in_cluster():
        _set_by_default(PATIENCE)
        ray.init(address="auto", log_to_driver=True, logging_level=logging.ERROR)
        return
    _lock_out()
    start_ray(
        num_cpus=os.cpu_count(),
        resources={"sampler": float(resources.samplers), "learner": float(max(1, resources.learners))},
        object_store_memory=object_store_bytes(weights),
        logging_level=logging.ERROR,
    )


def start_ray(**settings: Any) -> None:
    """Start our own cluster with these settings of `ray.init`, in addition to those that every such cluster has."""
    import ray

    _set_by_default(OWN)
    for left in reversed(range(STARTS)):
        before = _descendants()
        try:
            with without_idle_daemons():
                ray.init(address="local", include_dashboard=False, log_to_driver=False, **settings)
            return
        except Exception as error:
            if not left or not any(words in str(error) for words in _TOO_SLOW):
                raise
            log.warning("Ray's daemons did not start within Ray's limits, as on a busy machine: trying again")
            _end(_descendants() - before)


def _set_by_default(variables: Mapping[str, str]) -> None:
    """Ray's own settings are read once more when this process connects, and by all processes that it starts."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


@contextmanager
def without_idle_daemons() -> Iterator[None]:
    """Context for `ray.init` that leaves out Ray's processes that our own cluster does not need.

    They serve the dashboard, forward logs, request more nodes, and prepare environments for workers. No setting of
    Ray leaves them out. Each of the five loads Ray, and `ray.init` waits for three of them. A version of Ray that
    starts them in another way starts them.
    """
    from ray._private import services, utils
    from ray._private.node import Node

    kept = {name: vars(Node)[name] for name in _IDLE_DAEMONS if name in vars(Node)}
    start_process = services.start_ray_process
    find_dashboard = getattr(utils, _DASHBOARD, None)
    idle: list[tuple[str, tuple[str, ...]]] = [(_AGENT, (*_AGENT_PORTS, _AGENT_LISTENS))]
    if not _prepares_environments():
        idle.append((_ENVIRONMENTS, (_ENVIRONMENTS_PORT,)))

    def start_without_agents(command: list[str], *args: Any, **settings: Any) -> Any:
        for agent, ports in idle:
            command = _without_agent(command, agent, ports)
        return start_process(command, *args, **settings)

    for name in kept:
        setattr(Node, name, lambda self, **_: None)
    services.start_ray_process = start_without_agents
    if find_dashboard is not None:
        setattr(utils, _DASHBOARD, lambda: ImportError("left out"))
    try:
        yield
    finally:
        services.start_ray_process = start_process
        if find_dashboard is not None:
            setattr(utils, _DASHBOARD, find_dashboard)
        for name, start in kept.items():
            setattr(Node, name, start)


def _prepares_environments() -> bool:
    """Whether Ray gives its workers an environment by default: under `uv run`, and with RAY_RUNTIME_ENV_HOOK."""
    from ray._private import worker

    environment = getattr(worker, "_maybe_modify_runtime_env", None)
    return environment is None or bool(environment({}, False))


def _without_agent(command: list[str], agent: str, ports: tuple[str, ...]) -> list[str]:
    """Return raylet's command with an idle process instead of the agent, because raylet exits if its agent exits.

    Raylet would wait for the agent to report its ports, so each one is set to a port on which nothing listens.
    """
    given = {argument.partition("=")[0] for argument in command}
    if not given >= {agent, *ports} - {_AGENT_LISTENS}:
        return command
    others = {agent: "cat", **dict.fromkeys(ports, _NOBODY)}  # cat ends with raylet, which holds its stdin pipe
    kept = [argument for argument in command if argument.partition("=")[0] not in others]
    return [*kept, *(f"{name}={value}" for name, value in others.items())]


def _lock_out() -> None:
    """Set a random token for our own cluster: Ray listens on all of the machine's addresses and runs code sent to it.

    Ray requires a token by default (RAY_AUTH_MODE turns that off; set here, after Ray was imported, only its daemons
    would see it). But the token that Ray itself creates is the same for every run, in a file that everybody with access
    to the user's home can read.
    """
    if not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        from ray._raylet import AuthenticationTokenLoader

        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        AuthenticationTokenLoader.instance().reset_cache()  # the token of an earlier cluster of this process


def _descendants() -> set[int]:
    """Return the ids of all descendants of this process."""
    found: set[int] = set()
    parents = {os.getpid()}
    while parents:
        parents = {child for parent in parents for child in _children(parent)} - found
        found |= parents
    return found


def _children(process: int) -> Iterable[int]:
    with suppress(OSError):  # the process has just ended
        for thread in Path(f"/proc/{process}/task").iterdir():
            yield from map(int, (thread / "children").read_text().split())


def _end(processes: Iterable[int]) -> None:
    """Kill the processes of a failed start. Ray would leave them running until this process ends."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
