"""Names and labels of a run's child objects. They follow from the run and the attempt, so a crash loses none of them.

Names that clients use too come from the contracts and are re-exported here.
"""

from __future__ import annotations

from deepcoder_contracts.labels import HEAD as HEAD
from deepcoder_contracts.labels import HEAD_CONTAINER as HEAD_CONTAINER
from deepcoder_contracts.labels import LABEL_ORDINAL as LABEL_ORDINAL
from deepcoder_contracts.labels import LABEL_ROLE as LABEL_ROLE
from deepcoder_contracts.labels import LABEL_RUN as LABEL_RUN
from deepcoder_contracts.labels import LABEL_RUN_UID as LABEL_RUN_UID
from deepcoder_contracts.labels import LABEL_STAGE as LABEL_STAGE
from deepcoder_contracts.labels import LEARNER as LEARNER
from deepcoder_contracts.labels import SAMPLER as SAMPLER
from deepcoder_contracts.labels import WORKER_CONTAINER as WORKER_CONTAINER
from deepcoder_contracts.labels import judges as judges
from deepcoder_contracts.labels import own_pool_name as own_pool_name
from deepcoder_contracts.labels import pool_name as pool_name
from deepcoder_contracts.labels import pool_of as pool_of
from deepcoder_contracts.labels import requested_judges as requested_judges
from deepcoder_contracts.labels import trainer_container as trainer_container

MANAGED_BY = "app.kubernetes.io/managed-by"
OPERATOR = "deepcoder-operator"

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
"""Label of a RayJob by which Kueue finds its LocalQueue."""

LABEL_ASKED_QUEUE = "deepcoder.dev/queue"
"""Label of a RayJob with the queue that the run named when the RayJob was created, empty if it named none. Kueue's own
label is not reliable for this, because policies may set or rewrite it."""

TOGETHER_KEY = "TOGETHER_API_KEY"
"""Key of the Secret that sandbox.together refers to."""

MAX_ORDINAL = 999


def attempt_name(run: str, stage_index: int, ordinal: int) -> str:
    """Return the name of an attempt's RayJob: `<run>-s<index>-a<ordinal>`, at most 46 characters. The name of the
    attempt's ConfigMap starts with it."""
    return f"{run}-s{stage_index}-a{ordinal}"


def config_name(run: str) -> str:
    """Return the name of the ConfigMap with the resolved config."""
    return f"{run}-config"


def account_name(run: str) -> str:
    """Return the name of the ServiceAccount of the run's pods, which has no permissions."""
    return f"{run}-trainer"


def policy_name(run: str) -> str:
    """Return the name of the NetworkPolicy of the run's pods."""
    return f"{run}-trainer"


def run_labels(run: str, uid: str) -> dict[str, str]:
    """Return the labels of all objects of a run."""
    return {MANAGED_BY: OPERATOR, LABEL_RUN: run, LABEL_RUN_UID: uid}


def attempt_labels(run: str, uid: str, stage: str, ordinal: int) -> dict[str, str]:
    """Return the labels of all objects of an attempt. KubeRay copies them from the RayJob to its cluster."""
    return run_labels(run, uid) | {LABEL_STAGE: stage, LABEL_ORDINAL: str(ordinal)}
