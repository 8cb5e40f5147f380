"""Names and labels of a pool's objects: the one place that the builders, the planner and the runs that use it share.

They are functions of the pool's name alone, so that a run can name its pool's Service and token before they exist.
"""

from __future__ import annotations

from deepcoder_contracts.labels import LABEL_POOL as LABEL_POOL

JUDGE_PORT = 8080
"""Port of each judge."""

TOKEN_KEY = "token"  # noqa: S105  the key's name, not a token
"""Key of the bearer token in the pool's Secret."""

LABEL_TEMPLATE_HASH = "deepcoder.dev/template-hash"
"""On a judge's pod: hash of the pod template it was made from."""

LABEL_INDEX = "deepcoder.dev/pool-index"
"""On a judge's pod: its index in the pool."""

LABEL_AVOIDS = "deepcoder.dev/avoids"
"""On a judge's pod that was made to avoid nodes: a digest of which, and whether it had to."""


def service_name(pool: str) -> str:
    """The headless Service behind which every address is a ready judge."""
    return f"{pool}-judge"


def judge_host(pool: str, namespace: str) -> str:
    """Host name of the pool's Service within the cluster."""
    return f"{service_name(pool)}.{namespace}.svc"


def token_secret_name(pool: str) -> str:
    """The Secret with the bearer token that judges ask for."""
    return f"{pool}-token"


def pod_name(pool: str, index: int, template_hash: str) -> str:
    """A judge's pod. Making the same one twice is refused by the API server, so none is made twice."""
    return f"{pool}-{index}-{template_hash}"


def selector(pool: str) -> str:
    """Label selector of the pool's pods."""
    return f"{LABEL_POOL}={pool}"
