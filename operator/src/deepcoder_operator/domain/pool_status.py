"""Computes a pool's status: a pure function of what was observed and decided.

Load changes with every program, so changes of load alone are written only now and then; everything else is written at
once.

If every judge refuses to start, the status remembers that until a judge serves or the template changes. Without this
memory, runs would request GPUs in vain while a judge is tried on another node, or while the pool has no judges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from deepcoder_contracts.api.condition import Condition
from deepcoder_contracts.api.sandboxpool import AvoidedNode, SandboxPoolStatus
from deepcoder_operator.domain.conditions import find_condition, set_condition
from deepcoder_operator.domain.pool_names import selector
from deepcoder_operator.domain.pool_plan import JudgePod

LOAD_WRITE_SECONDS = 15.0
"""Shortest time between two status writes that differ only in load."""

JUDGES_REFUSE = "JudgesRefuseToStart"
"""Reason of an unready pool: all of its judges refuse to start."""

IDLE = "Idle"
"""Reason of a pool that is ready without judges: it is scaled to zero, and nothing is known to prevent a start."""

POD_INVALID = "PodInvalid"
"""Reason of a pool whose judges' pods are not valid for the API server, with fields that only it checks. A quota or a
webhook may change its mind, but such a pod can never be created."""

STUCK_REASONS = frozenset({JUDGES_REFUSE, "NameConflict", "InvalidTemplate", "InvalidSpec", POD_INVALID, "Invalid"})
"""Reasons of an unready pool that does not recover by itself: somebody has to fix the cause."""

_LAST_TRIED = "no judge could start when one was last tried"
_LOAD_FIELDS = {"busy_slots", "queue_depth", "longest_wait_seconds"}


@dataclass(frozen=True)
class Refusal:
    """Why a pool cannot be acted upon."""

    reason: str
    """Reason in CamelCase: InvalidTemplate, NameConflict, …"""

    message: str
    """What is wrong and how to fix it."""


@dataclass(frozen=True)
class PoolFacts:
    """Findings of one pass."""

    name: str
    """Name of the pool."""

    generation: int
    """Generation of its spec."""

    desired: int
    """Desired number of judges."""

    wanted_without_bound: int
    """Number of judges that the load alone would require."""

    template_hash: str
    """Hash of the current template. Empty if the template could not be built."""

    refusal: Refusal | None = None
    """Set if the pool cannot be acted upon."""

    ignored_replicas: int = 0
    """spec.replicas, if `kubectl scale` or an autoscaler set it without effect; 0 otherwise."""

    avoided: tuple[AvoidedNode, ...] = ()
    """Nodes that new judges avoid."""

    polled: bool = True
    """Whether the judges were asked for their load. If not, the figures of the previous status stay."""


def pool_status(
    previous: SandboxPoolStatus, facts: PoolFacts, pods: Sequence[JudgePod], now: float
) -> SandboxPoolStatus:
    """Return the status after a pass over these pods."""
    live = [p for p in pods if not p.deleting and not p.ended]
    ready = [p for p in live if p.ready]
    figures = _figures(ready) if facts.polled or not ready else _figures_of(previous)
    conditions: list[Condition] = list(previous.conditions)
    at = datetime.fromtimestamp(int(now), UTC)
    refused = _refused(previous, facts, live, ready)
    for kind, status, reason, message in (
        _accepted(facts),
        _ready(facts, live, ready, _words_before(previous) if refused else None),
        _scaling(facts, live, ready),
        _up_to_date(facts, live),
    ):
        conditions = set_condition(conditions, kind, status, reason, message, generation=facts.generation, now=at)
    return SandboxPoolStatus(
        observed_generation=facts.generation,
        replicas=len(live),
        desired_replicas=facts.desired,
        ready_replicas=len(ready),
        slots=figures.slots,
        busy_slots=figures.busy_slots,
        queue_depth=figures.queue_depth,
        longest_wait_seconds=figures.longest_wait_seconds,
        selector=selector(facts.name),
        refused_template_hash=refused,
        avoided_nodes=list(facts.avoided),
        conditions=conditions,
    )


def worth_writing(old: SandboxPoolStatus, new: SandboxPoolStatus, seconds_since_write: float) -> bool:
    """Whether the new status should be written now."""
    if old == new:
        return False
    if old.model_dump(exclude=_LOAD_FIELDS) != new.model_dump(exclude=_LOAD_FIELDS):
        return True
    return seconds_since_write >= LOAD_WRITE_SECONDS


class _Figures(NamedTuple):
    """Sums over the ready judges, named as in the status."""

    slots: int
    busy_slots: int
    queue_depth: int
    longest_wait_seconds: int


def _figures(ready: Sequence[JudgePod]) -> _Figures:
    loads = [p.load for p in ready if p.load is not None]
    return _Figures(
        slots=sum(load.slots for load in loads),
        busy_slots=sum(load.busy for load in loads),
        queue_depth=sum(load.queued for load in loads),
        longest_wait_seconds=int(max((load.longest_wait for load in loads), default=0)),
    )


def _figures_of(status: SandboxPoolStatus) -> _Figures:
    return _Figures(status.slots, status.busy_slots, status.queue_depth, status.longest_wait_seconds)


_Row = tuple[str, bool, str, str]


def _accepted(facts: PoolFacts) -> _Row:
    if facts.refusal is not None:
        return "Accepted", False, facts.refusal.reason, facts.refusal.message
    return "Accepted", True, "Valid", ""


def _ready(facts: PoolFacts, live: Sequence[JudgePod], ready: Sequence[JudgePod], refused: str | None) -> _Row:
    """`refused` is the message about judges that refuse to start, if no judge gives one now. None if they do not."""
    if ready:
        return "Ready", True, "JudgesReady", f"{len(ready)} of {facts.desired} judges are ready"
    trouble = _trouble(live)
    if facts.refusal is not None:
        # No pod can report that pods are refused, and a run quotes only this condition of the pool. A pool that was
        # never acted upon has no desired judges yet, and must not be mistaken for one that was scaled to zero.
        may_come = facts.refusal.reason in STUCK_REASONS and not all(p.refuses for p in live)
        reason = "NoJudgeReady" if may_come else facts.refusal.reason
        if refused is None or reason in STUCK_REASONS:
            return "Ready", False, reason, f"no judge is ready; {facts.refusal.message}"
        # The refusal may resolve itself, but judges refuse as before, so runs must not request GPUs.
        words = f"no judge can start; {trouble.text}" if trouble else _LAST_TRIED
        return "Ready", False, JUDGES_REFUSE, f"{words}; {facts.refusal.message}"
    if refused is not None:
        return "Ready", False, JUDGES_REFUSE, f"no judge can start; {trouble.text}" if trouble else refused
    if facts.desired == 0:
        return "Ready", True, IDLE, "scaled to zero: the first programs wait until a judge has started"
    if trouble:
        return "Ready", False, trouble.reason, f"no judge is ready; {trouble.text}"
    return "Ready", False, "NoJudgeReady", "no judge is ready yet"


def _refused(previous: SandboxPoolStatus, facts: PoolFacts, live: Sequence[JudgePod], ready: Sequence[JudgePod]) -> str:
    """Return the hash of the template with which no judge can start: all desired judges refuse, or did before."""
    if ready:
        return ""
    if not facts.template_hash or previous.refused_template_hash == facts.template_hash:
        return previous.refused_template_hash
    current = [p for p in live if p.template_hash == facts.template_hash]
    refuse = bool(live) and len(current) >= facts.desired and all(p.refuses for p in live)
    return facts.template_hash if refuse else ""


def _words_before(previous: SandboxPoolStatus) -> str:
    found = find_condition(previous.conditions, "Ready")
    said = found is not None and found.reason == JUDGES_REFUSE and not found.message.startswith(_LAST_TRIED)
    return found.message if found and said else _LAST_TRIED


def _scaling(facts: PoolFacts, live: Sequence[JudgePod], ready: Sequence[JudgePod]) -> _Row:
    if len(live) < facts.desired or len(ready) < facts.desired:
        why = facts.refusal.message if facts.refusal else (trouble.text if (trouble := _trouble(live)) else "")
        more = f"; {why}" if why else ""
        return "Scaling", True, "ScalingUp", f"{facts.desired} judges are wanted, {len(ready)} are ready{more}"
    if len(live) > facts.desired:
        return "Scaling", True, "ScalingDown", f"{facts.desired} judges are wanted, {len(live)} exist"
    if facts.wanted_without_bound > facts.desired:
        return "Scaling", False, "AtMaximum", "the load requires more judges: raise spec.maxReplicas"
    if facts.ignored_replicas:
        text = f"spec.replicas ({facts.ignored_replicas}) has no effect with scaling.mode QueueDepth: "
        text += "set minReplicas and maxReplicas, or scaling.mode: External"
        return "Scaling", False, "AsDesired", text
    return "Scaling", False, "AsDesired", ""


class _Trouble(NamedTuple):
    reason: str
    text: str


def _trouble(live: Sequence[JudgePod]) -> _Trouble | None:
    """Return the most frequent trouble of the unready judges, with the output of one of them."""
    troubled = [p for p in live if p.trouble is not None and not p.ready]
    if not troubled:
        return None
    count = Counter(p.trouble for p in troubled)
    first = max(troubled, key=lambda p: (count[p.trouble], p.trouble, p.told != ""))
    told = f": {first.told}" if first.told else ""
    assert first.trouble is not None
    return _Trouble(first.trouble, f"{count[first.trouble]} of {len(live)} pods: {first.trouble}{told}")


def _up_to_date(facts: PoolFacts, live: Sequence[JudgePod]) -> _Row:
    if not facts.template_hash:
        return "UpToDate", False, "Refused", "the template cannot be built: see the condition Accepted"
    old = sum(p.template_hash != facts.template_hash for p in live)
    if old:
        return "UpToDate", False, "RollingOut", f"{old} judges use an older template"
    return "UpToDate", True, "Current", ""
