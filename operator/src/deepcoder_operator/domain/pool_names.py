"""Names and labels of a pool's objects, shared by the builders, the planner and the runs that use the pool.

They follow from the pool's name alone, so a run can name its pool's Service and token before they exist.
"""

from __future__ import annotations

from deepcoder_contracts.labels import LABEL_POOL as LABEL_POOL

JUDGE_PORT = 8080
"""Port of each judge."""

TOKEN_KEY = "token"  # noqa: S105  the key's name, not a token
"""Key of the bearer token in the pool's Secret."""

LABEL_TEMPLATE_HASH = "deepcoder.dev/template-hash"
"""Label of a judge's pod: hash of the pod template that it was made from."""

LABEL_INDEX = "deepcoder.dev/pool-index"
"""Label of a judge's pod: its index in the pool."""

LABEL_AVOIDS = "deepcoder.dev/avoids"
"""Label of a judge's pod that avoids nodes: whether it must avoid them, and a digest of their names."""


def service_name(pool: str) -> str:
    """Return the name of the pool's headless Service. Every address behind it is a ready judge."""
    return f"{pool}-judge"


def judge_host(pool: str, namespace: str) -> str:
    """Return the host name of the pool's Service within the cluster."""
    return f"{service_name(pool)}.{namespace}.svc"


def token_secret_name(pool: str) -> str:
    """Return the name of the Secret with the bearer token that judges require."""
    return f"{pool}-token"


def pod_name(pool: str, index: int, template_hash: str) -> str:
    """Return the name of a judge's pod. The API server refuses to create a name twice, so no judge is created twice."""
    return f"{pool}-{index}-{template_hash}"


def selector(pool: str) -> str:
    """Return the label selector of the pool's pods."""
    return f"{LABEL_POOL}={pool}"
