"""How many processes an attempt has. The numbers follow from its pods and their GPUs; no setting gives them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from deepcoder_contracts.api.stage import Stage, WorkerGroup
from deepcoder_contracts.stage import Placement, StageType

_MIG = re.compile(r"nvidia\.com/mig-\d+g\.\d+gb")
"""A slice of a GPU as NVIDIA's device plugin names it (strategy mixed); KubeRay counts the same names."""


def processes(stage: Stage, tensor_parallel: int) -> tuple[int, int]:
    """Return the numbers of vLLM engines and learner ranks of an attempt at a stage, from its pods and their GPUs."""
    colocated = stage.placement is Placement.COLOCATED
    learners = stage.resources.learners or (WorkerGroup() if stage.type is StageType.TRAIN else None)
    ranks = learners.replicas * per_pod(learners, 1) if learners else 0
    if colocated and learners:
        return learners.replicas * per_pod(learners, tensor_parallel), ranks
    samplers = stage.resources.samplers or WorkerGroup()
    return samplers.replicas * per_pod(samplers, tensor_parallel), ranks


def per_pod(group: WorkerGroup, gpus_each: int) -> int:
    """Return the engines or ranks in each pod of a group: its GPUs divided by `gpus_each`, or one without GPUs."""
    return max(1, pod_gpus(group.template.get("spec") or {}) // gpus_each)


def pod_gpus(pod_spec: Mapping[str, Any]) -> int:
    """Return the number of GPUs that a pod requests: resources named `<vendor>/gpu`, and MIG devices."""
    return sum(count for name, count in _requested(pod_spec) if is_gpu(name))


def pod_mig_devices(pod_spec: Mapping[str, Any]) -> int:
    """Return the number of MIG devices that a pod requests. A process can use only one of them."""
    return sum(count for name, count in _requested(pod_spec) if _MIG.fullmatch(name))


def is_gpu(resource: str) -> bool:
    """Whether a resource of this name is a GPU or a slice of one."""
    return resource.endswith("/gpu") or _MIG.fullmatch(resource) is not None


def _requested(pod_spec: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for container in pod_spec.get("containers") or ():
        resources = container.get("resources") or {}
        asked = (resources.get("requests") or {}) | (resources.get("limits") or {})
        yield from ((name, int(count)) for name, count in asked.items() if str(count).isdecimal())
