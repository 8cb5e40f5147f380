"""Labels of what is made for a run, and the names that follow from the run's: by these everybody finds its pods."""

from __future__ import annotations

from deepcoder_contracts.api.run import DeepCoderRun

LABEL_RUN = "deepcoder.dev/run"
LABEL_RUN_UID = "deepcoder.dev/run-uid"
LABEL_STAGE = "deepcoder.dev/stage"
LABEL_ORDINAL = "deepcoder.dev/ordinal"
LABEL_ROLE = "deepcoder.dev/role"
LABEL_POOL = "deepcoder.dev/pool"
"""On every object of a pool: its name."""

HEAD = "head"
SAMPLER = "sampler"
LEARNER = "learner"


def own_pool_name(run: str) -> str:
    """SandboxPool made for a run."""
    return f"{run}-sandbox"


def pool_name(run: DeepCoderRun) -> str | None:
    """The SandboxPool that judges for a run: the one it refers to, or its own; None where a hosted API judges."""
    if run.spec.sandbox.together is not None:
        return None
    reference = run.spec.sandbox.pool_ref
    return reference.name if reference else own_pool_name(run.metadata.name)
