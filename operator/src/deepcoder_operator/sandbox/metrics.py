"""Metrics of SandboxPools.

A pool's series are removed with the pool. Otherwise its gauges would keep their last values forever.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from deepcoder_contracts.api.sandboxpool import SandboxPoolStatus
from deepcoder_operator.domain.pool_plan import Cause

POLLS = Counter("deepcoder_operator_pool_capacity_polls_total", "Load requests sent to judges.", ["outcome"])
PODS_CREATED = Counter("deepcoder_operator_pool_pods_created_total", "Judge pods created.", ["namespace", "pool"])
PODS_DELETED = Counter(
    "deepcoder_operator_pool_pods_deleted_total", "Judge pods deleted, by cause.", ["namespace", "pool", "cause"]
)
DEMAND = Gauge(
    "deepcoder_operator_pool_demand",
    "Programs that need a slot now or soon: being judged, waiting or announced. At least 1 while a run needs a judge.",
    ["namespace", "pool"],
)

AVOIDED = Gauge(
    "deepcoder_operator_pool_avoided_nodes",
    "Nodes on which judges failed to start within the last hour.",
    ["namespace", "pool"],
)

_GAUGES = {
    "desired_replicas": Gauge(
        "deepcoder_operator_pool_desired_replicas", "Desired number of judges.", ["namespace", "pool"]
    ),
    "ready_replicas": Gauge("deepcoder_operator_pool_ready_replicas", "Number of ready judges.", ["namespace", "pool"]),
    "slots": Gauge(
        "deepcoder_operator_pool_slots", "Programs that the ready judges can run at once.", ["namespace", "pool"]
    ),
    "busy_slots": Gauge("deepcoder_operator_pool_busy_slots", "Programs being judged.", ["namespace", "pool"]),
    "queue_depth": Gauge("deepcoder_operator_pool_queue_depth", "Programs waiting.", ["namespace", "pool"]),
    "longest_wait_seconds": Gauge(
        "deepcoder_operator_pool_longest_wait_seconds",
        "Time that the longest-waiting program has waited.",
        ["namespace", "pool"],
    ),
}


def show(namespace: str, pool: str, status: SandboxPoolStatus) -> None:
    """Set the gauges of a pool."""
    for field, gauge in _GAUGES.items():
        gauge.labels(namespace=namespace, pool=pool).set(getattr(status, field))
    AVOIDED.labels(namespace, pool).set(len(status.avoided_nodes))
    for cause in Cause:
        PODS_DELETED.labels(namespace, pool, cause)  # so that each series starts at 0


def forget(namespace: str, pool: str) -> None:
    """Remove all series of a deleted pool."""
    for gauge in (*_GAUGES.values(), AVOIDED, DEMAND):
        gauge.remove_by_labels({"namespace": namespace, "pool": pool})
    for counter in (PODS_CREATED, PODS_DELETED):
        counter.remove_by_labels({"namespace": namespace, "pool": pool})
