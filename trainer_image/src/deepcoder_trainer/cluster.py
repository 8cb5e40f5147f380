"""Connects to the Ray cluster of a RayJob, or starts one on this machine.

In a RayJob, the driver finds its cluster by RAY_ADDRESS. Otherwise it starts a small one without a dashboard, with an
object store for the model's weights, which ends with the driver. If the machine is too busy to start it in time, the
start is retried a few times. A machine whose shared memory is too small for the weights is refused, because Ray would
move them over the disk at each step.
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
"""What of a GPU each of the two asks Ray for who share it."""
THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""What a process that computes must find before it loads torch. Threads that spin at barriers starve each other where
processes share cores: measured 4.6 times the CPU time on two busy cores."""
OWN = THREADS | {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A worker a core would be started beforehand; samplers and learners start theirs when they are asked for.
    "RAY_prestart_worker_first_driver": "0",
    # Ray makes its workers give way (nice 15) to all else: beside judges on the same machine, which are no less a part
    # of the run, learners and samplers had a fiftieth of a core and did not get to load torch.
    "RAY_worker_niceness": "0",
}
"""Environment of a cluster of our own."""
PLACES_SECONDS = 1800.0
"""Longest time for shared places to be there, pods that come late included."""

OBJECT_STORE_BYTES = 512 << 20
"""Object store of a cluster of our own for a small model: several sets of its weights, and all its batches."""
WEIGHT_SETS = 2.5
"""Sets of weights that it holds: those that samplers load, those that come next, and batches."""
STARTS = 3
"""Tries to start a cluster of our own: Ray gives up after 30 s, which no setting of its changes."""
_TOO_SLOW = "timed out during startup"
_IDLE_DAEMONS = ("start_api_server", "start_log_monitor", "start_monitor")
"""How Ray's node starts what serves its dashboard, sends on what workers print, and asks for more nodes."""
_AGENT = "--dashboard_agent_command"
"""Raylet's argument: the process that gathers figures for the dashboard, and for Prometheus on a port of its own."""
_AGENT_PORTS, _AGENT_LISTENS = ("--metrics-agent-port", "--metrics_export_port"), "--dashboard_agent_listen_port"
"""Ports that raylet waits to be told by that process where it was not told them before; the last it never is."""
_ENVIRONMENTS, _ENVIRONMENTS_PORT = "--runtime_env_agent_command", "--runtime_env_agent_port"
"""Raylet's arguments: the process that prepares environments for workers, and the port on which raylet asks it."""
_NOBODY = 1
"""A port on which nothing listens."""
LEAST_SETS = 1.25
"""Without the next ones."""
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  where Ray keeps it
_SHARE = 0.9
"""Of what is free there."""


def in_cluster() -> bool:
    """Whether this process was started in a Ray cluster."""
    return "RAY_ADDRESS" in os.environ


def begun_with(variables: Mapping[str, str]) -> dict[str, Any]:
    """Ray's option for an actor whose process has these variables from its beginning.

    In a cluster of our own each process has `THREADS` from this one, and no actor needs more. Asked to set variables,
    Ray starts two interpreters one after the other, and each loads Ray.
    """
    return {"runtime_env": {"env_vars": dict(variables)}} if in_cluster() else {}


def most_of(stages: Iterable[StageResources]) -> StageResources:
    """What a cluster for all of these stages, one after another, offers."""
    resources = list(stages)
    return StageResources(
        samplers=max(r.samplers for r in resources),
        learners=max(r.learners for r in resources),
        accelerators=any(r.accelerators for r in resources),
    )


class SharedPlaces:
    """Places that a learner and a sampler share, one GPU each: where they take turns (`placement: Colocated`).

    Ray reserves all of them at once; whoever is placed in one gets the same card as the other who is.
    """

    def __init__(self, group: Any, count: int) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._group = group
        self.each: tuple[Any, ...] = tuple(
            PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i) for i in range(count)
        )
        """How Ray is told, place by place."""

    def give_back(self) -> None:
        """Others may have them; whoever is still there is ended."""
        from ray.util import remove_placement_group

        remove_placement_group(self._group)


async def shared_places(resources: StageResources) -> SharedPlaces:
    """As many as there are learners; raises `LearnerLost` when Ray has no room for them in time."""
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
    """Object store of a cluster of our own for so many bytes of weights; raises `BadConfig` where there is no room."""
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
    """Connect to Ray, once a process; a cluster of our own offers `resources`, and room for `weights` in bytes."""
    import ray

    if ray.is_initialized():
        return
    if in_cluster():
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
    """A cluster of our own, with these settings of `ray.init` and what every such cluster has."""
    import ray

    for name, value in OWN.items():
        os.environ.setdefault(name, value)
    for left in reversed(range(STARTS)):
        before = _descendants()
        try:
            with without_idle_daemons():
                ray.init(address="local", include_dashboard=False, log_to_driver=False, **settings)
            return
        except Exception as error:
            if _TOO_SLOW not in str(error) or not left:
                raise
            log.warning("Ray's daemons were not up in the 30 s that Ray gives them, as on a busy machine: once more")
            _end(_descendants() - before)


@contextmanager
def without_idle_daemons() -> Iterator[None]:
    """Around `ray.init`, to leave out the processes of Ray's that a cluster of our own has no use for.

    They serve the dashboard, forward logs, ask for more nodes, and prepare environments for workers. No setting of
    Ray leaves them out. Each of the five loads Ray, and `ray.init` waits for three of them. If another version of Ray
    starts them in another way, they are started.
    """
    from ray._private import services
    from ray._private.node import Node

    kept = {name: vars(Node)[name] for name in _IDLE_DAEMONS if name in vars(Node)}
    start_process = services.start_ray_process
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
    try:
        yield
    finally:
        services.start_ray_process = start_process
        for name, start in kept.items():
            setattr(Node, name, start)


def _prepares_environments() -> bool:
    """Whether Ray gives its workers an environment unasked: below `uv run`, and with RAY_RUNTIME_ENV_HOOK."""
    from ray._private import worker

    environment = getattr(worker, "_maybe_modify_runtime_env", None)
    return environment is None or bool(environment({}, False))


def _without_agent(command: list[str], agent: str, ports: tuple[str, ...]) -> list[str]:
    """Raylet's command with a process in the agent's place that does nothing: raylet ends if its agent does.

    Raylet waits to be told ports that it does not know, so each is a port on which nothing listens.
    """
    given = {argument.partition("=")[0] for argument in command}
    if not given >= {agent, *ports} - {_AGENT_LISTENS}:
        return command
    others = {agent: "cat", **dict.fromkeys(ports, _NOBODY)}  # its input is a pipe that ends with raylet
    kept = [argument for argument in command if argument.partition("=")[0] not in others]
    return [*kept, *(f"{name}={value}" for name, value in others.items())]


def _lock_out() -> None:
    """Let nobody in but this process's own: Ray listens on all of the machine's addresses and runs what it is sent.

    It asks for a token by itself (RAY_AUTH_MODE is for who wants none; set here, after Ray was imported, it would be
    heard by its daemons alone). The token that it makes is the same for every run, in a file that everybody may read
    who may enter this user's home.
    """
    if not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        from ray._raylet import AuthenticationTokenLoader

        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        AuthenticationTokenLoader.instance().reset_cache()  # of a cluster that this process had before


def _descendants() -> set[int]:
    """Processes that come from this one."""
    found: set[int] = set()
    parents = {os.getpid()}
    while parents:
        parents = {child for parent in parents for child in _children(parent)} - found
        found |= parents
    return found


def _children(process: int) -> Iterable[int]:
    with suppress(OSError):  # it has just ended
        for thread in Path(f"/proc/{process}/task").iterdir():
            yield from map(int, (thread / "children").read_text().split())


def _end(processes: Iterable[int]) -> None:
    """Those of a start that failed: Ray leaves them until this process ends, and they would take CPU time."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
