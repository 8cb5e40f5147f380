"""The cost of a run so far, from its status: GPU-seconds of settled attempts and of running pods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from deepcoder_client.prices import Price, per_gpu_hour
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.api.run_status import PodUsage


@dataclass(frozen=True)
class Cost:
    """The cost of a run up to a moment."""

    gpu_hours: float
    """GPU-hours of all pods with GPUs, including running ones."""
    wasted_gpu_hours: float
    """GPU-hours that settled attempts spent after their last checkpoint; included in `gpu_hours`."""
    sandbox_hours: float
    """Hours of the judges of the run's own pool."""
    gpus: int
    """Number of GPUs of the pods that run now."""
    amount: float | None
    """Cost by the operator's price list, or by the given one; None without either."""
    estimated: bool
    """True if the end of a pod was not observed, or if the operator's list has no price for a running pod."""


def cost(run: DeepCoderRun, now: datetime, prices: Sequence[Price] = ()) -> Cost:
    """Compute the cost from a run's status.

    `prices` replaces the operator's list. Only its entry without a node selector is used, because a status does not say
    on which nodes settled pods ran.
    """
    usage = run.status.usage
    running = sum(_gpu_seconds(pod, now) for pod in usage.pods)
    seconds = float(usage.gpu_seconds) + running
    amount: float | None = None
    unpriced = False
    if prices:
        rate = per_gpu_hour(prices, {})
        amount = None if rate is None else seconds / 3600 * rate
    elif usage.estimated_cost is not None or any(pod.per_gpu_hour for pod in usage.pods):
        open_ = sum(_gpu_seconds(pod, now) / 3600 * float(pod.per_gpu_hour or 0) for pod in usage.pods)
        amount = float(usage.estimated_cost or 0) + open_
        unpriced = any(pod.gpus and not pod.per_gpu_hour for pod in usage.pods)
    return Cost(
        gpu_hours=seconds / 3600,
        wasted_gpu_hours=float(usage.wasted_gpu_seconds) / 3600,
        sandbox_hours=float(usage.sandbox_seconds) / 3600,
        gpus=sum(pod.gpus for pod in usage.pods if pod.ended_time is None),
        amount=amount,
        estimated=usage.estimated or unpriced,
    )


def _gpu_seconds(pod: PodUsage, now: datetime) -> float:
    return max(((pod.ended_time or now) - pod.scheduled_time).total_seconds(), 0.0) * pod.gpus
