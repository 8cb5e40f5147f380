"""How many processes an attempt has: they follow from its pods and their GPUs, and are asked for nowhere else."""

from __future__ import annotations

from deepcoder_contracts.api.stage import Stage, WorkerGroup
from deepcoder_contracts.stage import Placement, StageType
from deepcoder_operator.domain.world import pod_gpus


def processes(stage: Stage, tensor_parallel: int) -> tuple[int, int]:
    """(vLLM engines, learner ranks) of an attempt at a stage, from its pods and their GPUs."""
    colocated = stage.placement is Placement.COLOCATED
    learners = stage.resources.learners or (WorkerGroup() if stage.type is StageType.TRAIN else None)
    ranks = learners.replicas * per_pod(learners, 1) if learners else 0
    if colocated and learners:
        return learners.replicas * per_pod(learners, tensor_parallel), ranks
    samplers = stage.resources.samplers or WorkerGroup()
    return samplers.replicas * per_pod(samplers, tensor_parallel), ranks


def per_pod(group: WorkerGroup, gpus_each: int) -> int:
    """Engines or ranks in each pod of a group: its GPUs by what one takes, without GPUs one."""
    return max(1, pod_gpus(group.template.get("spec") or {}) // gpus_each)
