"""GPU-seconds: over all pods, GPUs asked for times the time from scheduled to gone.

A pod counts while it is in `status.usage.pods`; when it ends its seconds join the totals. An end that nobody saw,
because the operator was away, is taken from the attempt's last heartbeat, and the totals are marked estimated.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from deepcoder_operator.api.attempt_status import AttemptStatus
from deepcoder_operator.api.run_status import PodUsage, UsageStatus
from deepcoder_operator.domain.draft import Draft
from deepcoder_operator.domain.numbers import decimal
from deepcoder_operator.domain.policy import Policy, Price
from deepcoder_operator.domain.terminal import is_terminal
from deepcoder_operator.domain.world import World

JUST_STARTED_SECONDS = 60.0
SANDBOX_SECONDS = 60.0


def account(draft: Draft, world: World, policy: Policy) -> None:
    """Open an entry for each pod with GPUs that was scheduled, close those that ended."""
    usage = draft.status.usage
    running = {p.name: p for p in world.pods if p.gpus and p.scheduled and not p.finished}
    ended = {p.name: p for p in world.pods if p.finished}
    open_pods: list[PodUsage] = []
    for entry in usage.pods:
        if entry.name in running:
            open_pods.append(entry)
            continue
        seen = ended[entry.name].finished if entry.name in ended else None
        end, estimated = (seen, False) if seen else _unseen_end(draft, world, entry)
        usage = _close(usage, entry, end, estimated)
    known = {e.name for e in usage.pods}
    for name, pod in sorted(running.items()):
        if name not in known and pod.scheduled:
            rate = _rate(policy.prices, pod.node_selector or {})
            open_pods.append(PodUsage(name=name, gpus=pod.gpus, scheduled_time=pod.scheduled, per_gpu_hour=rate))
    usage = _sandbox(draft, world, usage.model_copy(update={"pods": open_pods}))
    if usage != draft.status.usage:
        draft.update(usage=usage)


def note_waste(draft: Draft, attempt: AttemptStatus) -> None:
    """An attempt failed: its time from its last checkpoint to its end was for nothing."""
    if attempt.running_time is None or not attempt.gpus:
        return
    latest = draft.status.latest_checkpoint
    since = attempt.running_time
    if latest and latest.ordinal == attempt.ordinal:
        since = max(since, latest.committed_time)
    end = attempt.ended_time or draft.now
    seconds = max((end - since).total_seconds(), 0.0) * attempt.gpus
    usage = draft.status.usage
    total = float(usage.wasted_gpu_seconds) + seconds
    draft.update(usage=usage.model_copy(update={"wasted_gpu_seconds": decimal(total, 0)}))


def _sandbox(draft: Draft, world: World, usage: UsageStatus) -> UsageStatus:
    if draft.run.spec.sandbox.template is None:
        return usage
    if world.pool is None:  # it may be made anew: the time between is nobody's
        return usage.model_copy(update={"sandbox_time": None}) if usage.sandbox_time else usage
    if usage.sandbox_time is None:
        return usage.model_copy(update={"sandbox_time": draft.now})
    elapsed = (draft.now - usage.sandbox_time).total_seconds()
    if elapsed < SANDBOX_SECONDS or is_terminal(draft.status):
        return usage
    total = float(usage.sandbox_seconds) + elapsed * world.pool.replicas
    return usage.model_copy(update={"sandbox_seconds": decimal(total, 0), "sandbox_time": draft.now})


def _unseen_end(draft: Draft, world: World, entry: PodUsage) -> tuple[datetime, bool]:
    since = world.watching_since
    just_started = since is not None and draft.now - since < timedelta(seconds=JUST_STARTED_SECONDS)
    attempt = draft.status.attempt
    if just_started and attempt and attempt.heartbeat_time:
        return max(attempt.heartbeat_time, entry.scheduled_time), True
    return draft.now, just_started


def _close(usage: UsageStatus, entry: PodUsage, end: datetime, estimated: bool) -> UsageStatus:
    seconds = max((end - entry.scheduled_time).total_seconds(), 0.0) * entry.gpus
    changes: dict[str, object] = {
        "gpu_seconds": decimal(float(usage.gpu_seconds) + seconds, 0),
        "estimated": usage.estimated or estimated,
    }
    if entry.per_gpu_hour is not None:
        cost = float(usage.estimated_cost or 0) + seconds / 3600 * float(entry.per_gpu_hour)
        changes["estimated_cost"] = decimal(cost, 2)
    return usage.model_copy(update=changes)


def _rate(prices: tuple[Price, ...], node_selector: Mapping[str, str]) -> str | None:
    for price in prices:
        if all(node_selector.get(k) == v for k, v in price.node_selector.items()):
            return decimal(price.per_gpu_hour, 4)
    return None
