"""Ray: the cluster we run in, or one of our own on this machine.

In a RayJob the driver finds its cluster by RAY_ADDRESS. By hand a small one is started, without dashboard, with an
object store sized for a model of the kind one trains on such a machine; it ends with the driver.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

from deepcoder_contracts.stage import StageResources

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 512 << 20
"""Object store of a cluster of our own: several sets of weights of a small model, and all its batches."""


def in_cluster() -> bool:
    """Whether this process was started in a Ray cluster."""
    return "RAY_ADDRESS" in os.environ


def most_of(stages: Iterable[StageResources]) -> StageResources:
    """What a cluster for all of these stages, one after another, offers."""
    resources = list(stages)
    return StageResources(
        samplers=max(r.samplers for r in resources),
        learners=max(r.learners for r in resources),
        accelerators=any(r.accelerators for r in resources),
    )


def connect_ray(resources: StageResources) -> None:
    """Connect to Ray, once a process; a cluster of our own offers `resources`."""
    import ray

    if ray.is_initialized():
        return
    if in_cluster():
        ray.init(address="auto", log_to_driver=True, logging_level=logging.ERROR)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=os.cpu_count(),
        resources={"sampler": float(resources.samplers), "learner": float(max(1, resources.learners))},
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
