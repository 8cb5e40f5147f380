"""Names and labels of a run's children: functions of the run and the attempt, so that a crash heals by name."""

from __future__ import annotations

from deepcoder_contracts.api.run import DeepCoderRun

MANAGED_BY = "app.kubernetes.io/managed-by"
OPERATOR = "deepcoder-operator"

LABEL_RUN = "deepcoder.dev/run"
LABEL_RUN_UID = "deepcoder.dev/run-uid"
LABEL_STAGE = "deepcoder.dev/stage"
LABEL_ORDINAL = "deepcoder.dev/ordinal"
LABEL_ROLE = "deepcoder.dev/role"

HEAD = "head"
SAMPLER = "sampler"
LEARNER = "learner"

TOGETHER_KEY = "TOGETHER_API_KEY"
"""Key of the Secret that sandbox.together refers to."""

MAX_ORDINAL = 999


def attempt_name(run: str, stage_index: int, ordinal: int) -> str:
    """RayJob of an attempt: `<run>-s<index>-a<ordinal>`, at most 46 characters. Its ConfigMap's name begins so, too."""
    return f"{run}-s{stage_index}-a{ordinal}"


def config_name(run: str) -> str:
    """ConfigMap with the resolved config."""
    return f"{run}-config"


def account_name(run: str) -> str:
    """ServiceAccount of the run's pods; it has no rights."""
    return f"{run}-trainer"


def policy_name(run: str) -> str:
    """NetworkPolicy of the run's pods."""
    return f"{run}-trainer"


def own_pool_name(run: str) -> str:
    """SandboxPool made for a run."""
    return f"{run}-sandbox"


def pool_name(run: DeepCoderRun) -> str | None:
    """The SandboxPool that judges for a run: the one it refers to, or its own; None where a hosted API judges."""
    if run.spec.sandbox.together is not None:
        return None
    reference = run.spec.sandbox.pool_ref
    return reference.name if reference else own_pool_name(run.metadata.name)


def run_labels(run: str, uid: str) -> dict[str, str]:
    """Labels of everything made for a run."""
    return {MANAGED_BY: OPERATOR, LABEL_RUN: run, LABEL_RUN_UID: uid}


def attempt_labels(run: str, uid: str, stage: str, ordinal: int) -> dict[str, str]:
    """Labels of everything made for an attempt; KubeRay copies them from the RayJob to its cluster."""
    return run_labels(run, uid) | {LABEL_STAGE: stage, LABEL_ORDINAL: str(ordinal)}
