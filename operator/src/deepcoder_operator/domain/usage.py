"""GPU-seconds: requested GPUs times the time from scheduling to the end, over all pods, and the part that was wasted.

A pod's entry in `status.usage.pods` is opened when the pod is scheduled and closed when it ends. The live attempt's
entries stay until the attempt is settled, because only its end and its checkpoints show what was wasted. Then they join
the totals. If the operator was not running when a pod ended, the end is estimated from what was last known, and the
totals are marked as estimated. A pod that came and went in that time is unknown and not counted.

The API server's clock dates the scheduling of pods, its clock or ours their ends, and storage's clock the checkpoints.
If two of these times are in an impossible order, the clocks differ, and the totals are marked as estimated too.

Each checkpoint records the GPU-seconds spent on it. If storage has lost the newest checkpoint, everything spent since
the previous one was wasted too. So wasted seconds never exceed used seconds, and no second is counted twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from deepcoder_contracts.api.attempt_status import AttemptStatus
from deepcoder_contracts.api.run_status import MAX_POD_ENTRIES, CheckpointStatus, PodUsage
from deepcoder_operator.domain.draft import Draft
from deepcoder_operator.domain.numbers import decimal
from deepcoder_operator.domain.policy import Policy, Price
from deepcoder_operator.domain.world import PodView, World

JUST_STARTED_SECONDS = 60.0

SEEN_SECONDS = 300.0
"""If a watching process first sees a pod this long after it was scheduled, the two clocks differ."""

SKEW = timedelta(seconds=5)
"""Smaller differences between clocks are ignored."""


def account(draft: Draft, world: World, policy: Policy) -> None:
    """Open an entry for each scheduled pod with GPUs, and close the entries of pods that ended."""
    usage = draft.status.usage
    present = {p.name: p for p in world.pods}
    estimated = usage.estimated
    entries: list[PodUsage] = []
    for entry in usage.pods:
        end = _end(draft, world, entry, present.get(entry.name)) if entry.ended_time is None else None
        entries.append(entry if end is None else entry.model_copy(update={"ended_time": end[0]}))
        estimated = estimated or (end is not None and (end[1] or end[0] < entry.scheduled_time - SKEW))
    known = {e.name for e in entries}
    live = draft.status.attempt.ordinal if draft.status.attempt else None
    for pod in sorted(present.values(), key=lambda p: p.name):
        if not pod.gpus or pod.scheduled is None or pod.name in known or (pod.finished and pod.ordinal != live):
            continue
        if len(entries) >= MAX_POD_ENTRIES:
            estimated = True
            break
        estimated = estimated or _by_another_clock(draft, world, pod.scheduled)
        entries.append(
            PodUsage(
                name=pod.name,
                ordinal=pod.ordinal,
                gpus=pod.gpus,
                scheduled_time=pod.scheduled,
                ended_time=pod.finished,
                wasted_since=None if pod.ordinal == live else pod.scheduled,
                per_gpu_hour=_rate(policy.prices, pod.node_selector or {}),
            )
        )
    if entries != usage.pods or estimated != usage.estimated:
        draft.update(usage=usage.model_copy(update={"pods": entries, "estimated": estimated}))


def settle_usage(draft: Draft, world: World) -> None:
    """Add the entries of settled attempts to the totals.

    Ended entries of the live attempt are added early only if there are too many, and then count as not wasted. They are
    never added while their pod is still visible, because the pod would get a new entry.
    """
    usage, attempt = draft.status.usage, draft.status.attempt
    present = {p.name for p in world.pods}
    live = attempt.ordinal if attempt else None
    crowded = len(usage.pods) > MAX_POD_ENTRIES // 2
    kept: list[PodUsage] = []
    used = wasted = cost = 0.0
    for entry in usage.pods:
        end = entry.ended_time
        if end is None or (entry.ordinal == live and (not crowded or entry.name in present)):
            kept.append(entry)
            continue
        seconds = _seconds(entry, entry.scheduled_time, end)
        used += seconds
        wasted += _seconds(entry, entry.wasted_since, end) if entry.wasted_since else 0.0
        cost += seconds / 3600 * float(entry.per_gpu_hour or 0)
    if len(kept) == len(usage.pods):
        return
    changes: dict[str, object] = {
        "gpu_seconds": decimal(float(usage.gpu_seconds) + used, 0),
        "wasted_gpu_seconds": decimal(float(usage.wasted_gpu_seconds) + wasted, 0),
        "pods": kept,
    }
    if any(e.per_gpu_hour for e in usage.pods):
        changes["estimated_cost"] = decimal(float(usage.estimated_cost or 0) + cost, 2)
    draft.update(usage=usage.model_copy(update=changes))


def note_waste(draft: Draft, attempt: AttemptStatus) -> None:
    """Mark what an unsuccessful attempt's pods spent after its last checkpoint as wasted."""
    latest, usage = draft.status.latest_checkpoint, draft.status.usage
    saved = latest.committed_time if latest is not None and latest.ordinal == attempt.ordinal else None
    began = min((e.scheduled_time for e in usage.pods if e.ordinal == attempt.ordinal), default=None)
    if saved is not None and began is not None and not began - SKEW <= saved <= draft.now + SKEW:
        usage = usage.model_copy(update={"estimated": True})
    entries = [
        e.model_copy(update={"wasted_since": max(e.scheduled_time, saved or e.scheduled_time)})
        if e.ordinal == attempt.ordinal
        else e
        for e in usage.pods
    ]
    if entries != usage.pods or usage is not draft.status.usage:
        draft.update(usage=usage.model_copy(update={"pods": entries}))


def _by_another_clock(draft: Draft, world: World, scheduled: datetime) -> bool:
    """Whether a pod that is first seen now cannot have been scheduled at that time by our clock."""
    if scheduled > draft.now + SKEW:
        return True
    since = world.watching_since
    watched = since is None or since < scheduled
    return watched and draft.now - scheduled > timedelta(seconds=SEEN_SECONDS)


def invested(draft: Draft, checkpoint: CheckpointStatus) -> float | None:
    """Return the GPU-seconds spent on a checkpoint of the live attempt. None for other attempts, whose entries are
    closed."""
    usage, attempt = draft.status.usage, draft.status.attempt
    if attempt is None or checkpoint.ordinal != attempt.ordinal:
        return None
    until = min(checkpoint.committed_time, draft.now)
    total = float(usage.gpu_seconds) - float(usage.wasted_gpu_seconds)
    for entry in usage.pods:
        end = min(entry.ended_time or until, entry.wasted_since or until, until)
        total += _seconds(entry, entry.scheduled_time, end)
    return total


def write_off(draft: Draft, lost: CheckpointStatus, kept: CheckpointStatus | None) -> None:
    """Count what was spent on a lost checkpoint, since the one that is kept, as wasted.

    If the live attempt made the checkpoint, the attempt's end does this, counting from the remaining checkpoint.
    """
    usage, attempt = draft.status.usage, draft.status.attempt
    if attempt is not None and attempt.ordinal == lost.ordinal:
        return
    wasted = float(usage.wasted_gpu_seconds)
    spent = float(lost.gpu_seconds or 0) - float(kept.gpu_seconds or 0 if kept else 0)
    bounded = min(max(spent, 0.0), float(usage.gpu_seconds) - wasted)
    if bounded > 0:
        draft.update(usage=usage.model_copy(update={"wasted_gpu_seconds": decimal(wasted + bounded, 0)}))


def _end(draft: Draft, world: World, entry: PodUsage, pod: PodView | None) -> tuple[datetime, bool] | None:
    """Return when an entry's pod ended, and whether that is an estimate. None while it runs."""
    if pod is not None:
        return (pod.finished, False) if pod.finished else None
    since, attempt = world.watching_since, draft.status.attempt
    if since is None or draft.now - since >= timedelta(seconds=JUST_STARTED_SECONDS):
        return draft.now, False
    if attempt is None or attempt.ordinal != entry.ordinal:
        return draft.now, True
    if world.rayjob is not None and world.rayjob.ended is not None:
        return max(world.rayjob.ended, entry.scheduled_time), True
    known = (attempt.heartbeat_time, attempt.running_time, attempt.ended_time, entry.scheduled_time)
    return max(t for t in known if t is not None), True


def _seconds(entry: PodUsage, since: datetime, until: datetime) -> float:
    """Return the GPU-seconds of an entry between two times, not counting time before it was scheduled."""
    return max((until - max(since, entry.scheduled_time)).total_seconds(), 0.0) * entry.gpus


def _rate(prices: tuple[Price, ...], node_selector: Mapping[str, str]) -> str | None:
    for price in prices:
        if all(node_selector.get(k) == v for k, v in price.node_selector.items()):
            return decimal(price.per_gpu_hour, 4)
    return None
