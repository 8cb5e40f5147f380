"""Decides which judges to create and which to delete: a pure function of the existing pods and the desired number.

A pod's name follows from its index and the template's hash, and the lowest free index is used. So two passes over the
same stale view create the same pods, and the API server refuses the second. Judges of an older template are replaced
one surge at a time, and a serving judge is deleted only after its successor serves. When there are too many judges,
unready ones are deleted first, then idle ones, then the least loaded. `pool_nodes` decides about a judge that does not
start on its node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

FAILURE_WINDOW_SECONDS = 600.0
"""Failures older than this no longer slow down replacement."""

_LONGEST_BACKOFF_SECONDS = 60.0
_SURGE_DIVISOR = 4


class JudgeLoad(NamedTuple):
    """The load that a judge reports."""

    slots: int
    busy: int
    queued: int
    longest_wait: float = 0.0
    """Time, in seconds, that the oldest queued submission has waited."""


@dataclass(frozen=True)
class JudgePod:
    """A judge's pod as last seen."""

    name: str
    """Name of the pod."""

    uid: str
    """UID of the pod."""

    index: int
    """Index in its pool."""

    template_hash: str
    """Hash of the template it was made from."""

    created_at: float
    """When it was created (seconds since the epoch)."""

    ready: bool = False
    """Whether it is in the Service."""

    deleting: bool = False
    """Whether it is being deleted, or foreign: both only occupy a name."""

    foreign: bool = False
    """Whether it carries the pool's label but does not belong to the pool. It must not learn the pool's token."""

    ended: bool = False
    """Whether its phase is Failed or Succeeded: it will never judge again."""

    address: str | None = None
    """Its IP."""

    node: str = ""
    """Its node, once it has one."""

    avoids: str = ""
    """Nodes that it was created to avoid, as its label says (`pool_nodes`). Empty if there are none."""

    unready_since: float | None = None
    """Time since which it is not ready (seconds since the epoch). None if it is, or if Kubernetes has not said."""

    ran_seconds: float = 0.0
    """How long the failed container of a crashing judge had run; 0 if Kubernetes does not say."""

    trouble: str | None = None
    """Why it is not ready, as Kubernetes names it: Unschedulable, ImagePullBackOff, CrashLoopBackOff, …"""

    told: str = ""
    """The judge's last output, or what Kubernetes says about it, and how to fix it if that is known."""

    refuses: bool = False
    """Whether it has repeatedly refused to start, with the exit status for that. A restart does not help."""

    load: JudgeLoad | None = None
    """Its load. None if it did not answer."""


class Cause(StrEnum):
    """Why a judge is deleted. It is the reason of the event."""

    ENDED = "JudgeFailed"
    MOVED = "JudgeMoved"
    SCALED_DOWN = "ScaledDown"
    OUTDATED = "TemplateChanged"
    TOO_OLD = "Recycled"


class Deletion(NamedTuple):
    """A judge to delete. The UID protects a later pod with the same name."""

    name: str
    uid: str
    cause: Cause
    why: str = ""
    """How a judge ended or why it did not start, because its log is deleted with the pod."""
    failed: bool = False
    """Whether it has ended by itself or did not start. After such failures, others are created ever more slowly."""


@dataclass(frozen=True)
class PodPlan:
    """What to do about the pods."""

    create: tuple[int, ...] = ()
    """Indices of judges to create from the current template."""

    delete: tuple[Deletion, ...] = ()
    """Judges to delete."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.create and not self.delete


def plan_pods(
    pods: Sequence[JudgePod],
    *,
    desired: int,
    template_hash: str,
    now: float,
    max_age: float | None = None,
    may_create: bool = True,
    moved: Sequence[Deletion] = (),
) -> PodPlan:
    """Plan steps from the existing pods towards `desired` judges of the current template.

    `may_create` is False while the replacement of failing judges backs off. `moved` are judges to recreate elsewhere.
    """
    ended = [p for p in pods if p.ended and not p.deleting]
    delete = [Deletion(p.name, p.uid, Cause.ENDED, _end_message(p), failed=True) for p in ended]
    delete += moved
    gone = {d.uid for d in delete}
    live = [p for p in pods if p.uid not in gone and not p.deleting]
    fresh = [p for p in live if _stale(p, template_hash, now, max_age) is None]
    stale = [p for p in live if _stale(p, template_hash, now, max_age) is not None]

    create: tuple[int, ...] = ()
    if may_create:
        surge = max(1, desired // _SURGE_DIVISOR) if stale else 0
        room = min(desired - len(fresh), desired + surge - len(live))
        create = _free_indices(pods, room, template_hash)

    delete += _retire_stale(fresh, stale, desired, template_hash, now, max_age)
    if len(fresh) > desired:
        leaving = sorted(fresh, key=_least_missed)[: len(fresh) - desired]
        delete += [Deletion(p.name, p.uid, Cause.SCALED_DOWN) for p in leaving]
    return PodPlan(create, tuple(delete))


def backoff_until(failures: Sequence[float], now: float) -> float:
    """Return the time before which no judge is created: 1, 2, 4, … and at most 60 s after the last failure."""
    recent = [t for t in failures if now - t < FAILURE_WINDOW_SECONDS]
    if not recent:
        return 0.0
    return max(recent) + min(_LONGEST_BACKOFF_SECONDS, 2.0 ** min(len(recent) - 1, 16))


def _stale(pod: JudgePod, template_hash: str, now: float, max_age: float | None) -> Cause | None:
    if pod.template_hash != template_hash:
        return Cause.OUTDATED
    # A judge that has not started is not worn, and its successor would start no sooner.
    if max_age is not None and pod.ready and now - pod.created_at >= max_age:
        return Cause.TOO_OLD
    return None


def _end_message(pod: JudgePod) -> str:
    how = ending(pod)
    return f"which has ended: {how}" if how else ""


def ending(pod: JudgePod) -> str:
    """Return how a judge ended, as far as is known."""
    return ": ".join(word for word in (pod.trouble, pod.told) if word)


def _retire_stale(
    fresh: Sequence[JudgePod],
    stale: Sequence[JudgePod],
    desired: int,
    template_hash: str,
    now: float,
    max_age: float | None,
) -> list[Deletion]:
    """Delete stale judges: unready ones at once, serving ones only while enough others serve."""
    spare = sum(p.ready for p in fresh) + sum(p.ready for p in stale) - desired
    out = []
    for pod in sorted(stale, key=_least_missed):
        if pod.ready:
            if spare <= 0:
                break
            spare -= 1
        cause = _stale(pod, template_hash, now, max_age)
        assert cause is not None
        out.append(Deletion(pod.name, pod.uid, cause))
    return out


def _free_indices(pods: Sequence[JudgePod], count: int, template_hash: str) -> tuple[int, ...]:
    """Return the lowest indices whose pod name is free. A pod that is being deleted still occupies its name."""
    taken = {p.index for p in pods if p.template_hash == template_hash}
    out: list[int] = []
    index = 0
    while len(out) < count:
        if index not in taken:
            out.append(index)
        index += 1
    return tuple(out)


def _least_missed(pod: JudgePod) -> tuple[bool, int, int]:
    """Order of deletion: unready first, then the fewest programs (unknown counts as one), then the highest index."""
    in_hand = pod.load.busy + pod.load.queued if pod.load is not None else 1
    return pod.ready, in_hand, -pod.index
