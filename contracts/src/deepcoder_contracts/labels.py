"""Labels and derived names of a run's objects, by which all components find its pods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepcoder_contracts.api.run import DeepCoderRun

LABEL_RUN = "deepcoder.dev/run"
LABEL_RUN_UID = "deepcoder.dev/run-uid"
LABEL_STAGE = "deepcoder.dev/stage"
LABEL_ORDINAL = "deepcoder.dev/ordinal"
LABEL_ROLE = "deepcoder.dev/role"
LABEL_POOL = "deepcoder.dev/pool"
"""Label on every object of a pool, with the pool's name."""

HEAD = "head"
SAMPLER = "sampler"
LEARNER = "learner"

HEAD_CONTAINER = "ray-head"
WORKER_CONTAINER = "ray-worker"


def own_pool_name(run: str) -> str:
    """Return the name of the SandboxPool that the operator creates for a run."""
    return f"{run}-sandbox"


def pool_name(run: DeepCoderRun) -> str | None:
    """Return the name of a run's SandboxPool, which is its own or a referenced one. None if a hosted API judges."""
    if run.spec.sandbox.together is not None:
        return None
    reference = run.spec.sandbox.pool_ref
    return reference.name if reference else own_pool_name(run.metadata.name)


def trainer_container(containers: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the trainer's container, or its status, from those of a run's pod. Falls back to the first one.

    The trainer's container need not be the first: a template or a service mesh may add others before it, and a kubelet
    sorts statuses by name.
    """
    own = (HEAD_CONTAINER, WORKER_CONTAINER)
    first: Mapping[str, Any] = next(iter(containers), {})
    return next((c for c in containers if c.get("name") in own), first)
