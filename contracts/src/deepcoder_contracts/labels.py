"""Labels and derived names of a run's objects, by which all components find its pods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from deepcoder_contracts.api.run import DeepCoderRun

LABEL_RUN = "deepcoder.dev/run"
LABEL_RUN_UID = "deepcoder.dev/run-uid"
LABEL_STAGE = "deepcoder.dev/stage"
LABEL_ORDINAL = "deepcoder.dev/ordinal"
LABEL_ROLE = "deepcoder.dev/role"
LABEL_POOL = "deepcoder.dev/pool"
"""Label on every object of a pool, with the pool's name."""

LABEL_COMPONENT = "deepcoder.dev/component"
"""Label of the chart's own pods, whatever its values call them."""

COMPONENT_OPERATOR = "operator"
COMPONENT_DASHBOARD = "dashboard"

HEAD = "head"
SAMPLER = "sampler"
LEARNER = "learner"

HEAD_CONTAINER = "ray-head"
WORKER_CONTAINER = "ray-worker"


def own_pool_name(run: str) -> str:
    """Return the name of the SandboxPool that the operator creates for a run."""
    return f"{run}-sandbox"


class Judges(NamedTuple):
    """Who judges: the SandboxPool of this name, or a hosted API whose key is in this Secret."""

    pool: str | None
    secret: str | None


def requested_judges(run: DeepCoderRun) -> Judges:
    """Return the judges that the spec asks for: those of the next attempt."""
    sandbox = run.spec.sandbox
    if sandbox.together is not None:
        return Judges(None, sandbox.together.credentials_secret_ref.name)
    return Judges(sandbox.pool_ref.name if sandbox.pool_ref else own_pool_name(run.metadata.name), None)


def judges(run: DeepCoderRun) -> Judges:
    """Return the judges that a run uses: those of its live attempt, else those that the spec asks for.

    Pods keep the judges that they were created with. An attempt that an earlier release recorded names none.
    """
    attempt = run.status.attempt
    if attempt is not None and (attempt.pool or attempt.judge_secret):
        return Judges(attempt.pool, attempt.judge_secret)
    return requested_judges(run)


def pool_name(run: DeepCoderRun) -> str | None:
    """Return the name of the SandboxPool that a run uses, its own or a referenced one. None if a hosted API judges."""
    return judges(run).pool


def pool_of(run: Mapping[str, Any]) -> str | None:
    """Return `pool_name` for a plain run, which a newer release may have written."""
    attempt = (run.get("status") or {}).get("attempt") or {}
    sandbox = (run.get("spec") or {}).get("sandbox") or {}
    if attempt.get("pool") or attempt.get("judgeSecret"):
        pool: str | None = attempt.get("pool")
        return pool
    if "together" in sandbox:
        return None
    return (sandbox.get("poolRef") or {}).get("name") or own_pool_name(run["metadata"]["name"])


def trainer_container(containers: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the trainer's container, or its status, from those of a run's pod. Falls back to the first one.

    The trainer's container need not be the first: a template or a service mesh may add others before it, and a kubelet
    sorts statuses by name.
    """
    own = (HEAD_CONTAINER, WORKER_CONTAINER)
    first: Mapping[str, Any] = next(iter(containers), {})
    return next((c for c in containers if c.get("name") in own), first)
