"""Collects facts about the machines of an attempt, for its manifests: image digest and GPU model.

A pod cannot see its own image digest, which comes with the operator's replies, and the trainer's pod may have no GPU.
The GPU model comes from the driver's files on the nodes that run samplers and learners. Nothing waits for either, and
unknown facts are left out of the manifests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

GPUS = Path("/proc/driver/nvidia/gpus")
"""The kernel driver publishes each GPU's model here, readable by everybody and in containers too."""

PROBE_SECONDS = 60.0
_PLACES = ("sampler", "learner")
"""Ray resources that mark the nodes to query."""


@dataclass
class RuntimeInfo:
    """Facts about the pod and its nodes, filled in as they become known."""

    image_id: str | None = None
    """Image of the head with its digest."""

    accelerator: str | None = None
    """Model of the GPUs."""


def gpu_models(root: Path = GPUS) -> list[str]:
    """Return the models of this machine's GPUs, each once."""
    told = [file.read_text(errors="replace").splitlines() for file in sorted(root.glob("*/information"))]
    values = [line.partition(":")[2].strip() for lines in told for line in lines if line.startswith("Model:")]
    return sorted({value for value in values if value})


async def find_accelerator(root: Path = GPUS) -> str | None:
    """Return the GPU models of all nodes with samplers or learners; None if they cannot be found in time."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(num_cpus=0)(gpu_models)
    nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"] and any(p in n["Resources"] for p in _PLACES)]
    try:
        asked = [
            probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(root)
            for node in nodes
        ]
        async with asyncio.timeout(PROBE_SECONDS):
            found = await asyncio.gather(*(asyncio.wrap_future(ref.future()) for ref in asked))
    except (TimeoutError, OSError, ray.exceptions.RayError) as error:
        log.warning("the GPU model is unknown, and is left out of the manifests: %s", error)
        return None
    return _joined(model for models in found for model in models)


def _joined(models: Iterable[str]) -> str | None:
    return ", ".join(sorted(set(models)))[:256] or None
