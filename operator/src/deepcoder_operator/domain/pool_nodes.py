"""Judges that do not start on the node they are on, and may on another: which of them move, and which nodes they avoid.

A kubelet starts a container anew on its node for ever, however often it ends: a kernel without Landlock, or a broken
disk, is then a judge less for good, and the scheduler, which spreads judges, would put the next one there again. So a
judge that refuses to start, or has crashed for minutes without serving, is made anew with a node affinity that keeps it
off that node. While others of its template serve it must go elsewhere, and where it fits nowhere it waits: the node is
at fault. While none does it may be what judges are made from that is wrong. Then none moves before all have refused;
and of those one alone looks for a better node, made anew with a preference against all on which one has refused, until
it has come to such a node again: there is no other. The rest stay where they are, are started again by their kubelets,
and say why they cannot. So as long as nobody mends anything, a pod is made anew once an hour, and once more for each
node without a judge on which it may find that somebody has.

A node is avoided for an hour, then tried again; and sooner if a judge serves on it, or if judges are made from another
template. If none served before and one now does where none was to be, no node was at fault, and all are tried. What is
avoided is in the pool's status, and on each judge's label what it was made to avoid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from deepcoder_contracts.api.sandboxpool import MAX_AVOIDED_NODES, AvoidedNode, SandboxPoolStatus
from deepcoder_operator.domain.pool_plan import Cause, Deletion, JudgePod, ending

AVOIDED_SECONDS = 3600.0
"""How long a node is avoided."""

CRASHING_SECONDS = 300.0
"""How long a judge that crashes is left to its kubelet, which has then started it five times or so."""

LONGEST_START_SECONDS = 180.0
"""A judge that has run for longer had started: its startup probe gives it one minute, and its end takes another. Of one
that serves between its crashes, which its kubelet starts anew after up to five minutes, no node is at fault."""

_MESSAGE_LENGTH = 512
_REQUIRED, _PREFERRED = "required", "preferred"


@dataclass(frozen=True)
class Avoidance:
    """What keeps a judge that is made now off nodes."""

    nodes: tuple[str, ...] = ()
    """Their names."""

    required: bool = False
    """Whether it must go elsewhere; if not, it should."""

    @property
    def label(self) -> str:
        """What its pod is told by; empty if nothing is avoided."""
        if not self.nodes:
            return ""
        digest = hashlib.sha256("\n".join(self.nodes).encode()).hexdigest()[:8]
        return f"{_REQUIRED if self.required else _PREFERRED}-{digest}"


NOTHING_AVOIDED = Avoidance()


class NodesPlan(NamedTuple):
    """What to do about nodes."""

    avoided: tuple[AvoidedNode, ...] = ()
    """Nodes that are avoided from now on."""

    avoidance: Avoidance = NOTHING_AVOIDED
    """For judges that are made now."""

    moved: tuple[Deletion, ...] = ()
    """Judges to let go, which are made anew elsewhere: one that does not start, and those that wait for a place where
    they had to avoid other nodes than now."""


def plan_nodes(
    previous: SandboxPoolStatus, pods: Sequence[JudgePod], *, template_hash: str, now: float, may_move: bool = True
) -> NodesPlan:
    """Which nodes are avoided, and which judge moves: one at a time, and none while replacement backs off."""
    live = [p for p in pods if not p.deleting and not p.ended and p.template_hash == template_hash]
    serving = {p.node for p in live if p.ready}
    avoided = _still_avoided(previous, serving, template_hash, now)
    if not may_move:
        return NodesPlan(tuple(avoided), _avoidance(avoided, serving))
    stuck = [p for p in live if _cannot_start(p, now) and p.node not in serving]
    mover: JudgePod | None = None
    if serving:
        mover = next((p for p in stuck if _may_leave(p, avoided, _avoidance(avoided, serving))), None)
        _note([mover] if mover else [], avoided, template_hash, now)
    elif previous.refused_template_hash == template_hash:
        _note(stuck, avoided, template_hash, now)
        looked = any(_looks(p, _avoidance(avoided, serving), now) for p in live)
        mover = stuck[0] if stuck and not looked else None
    avoidance = _avoidance(avoided, serving)
    moved = [Deletion(mover.name, mover.uid, Cause.MOVED, _why(mover), failed=True)] if mover else []
    moved += [
        Deletion(p.name, p.uid, Cause.MOVED, "which waited for a place off other nodes than are avoided now")
        for p in live
        if p.trouble == "Unschedulable" and p.avoids.startswith(_REQUIRED) and p.avoids != avoidance.label
    ]
    return NodesPlan(tuple(avoided), avoidance, tuple(moved))


def _may_leave(pod: JudgePod, avoided: Sequence[AvoidedNode], avoidance: Avoidance) -> bool:
    """Whether a judge that does not start where others serve may come to another node than its own."""
    if pod.node in avoidance.nodes:
        return pod.avoids != avoidance.label
    return len(avoided) < MAX_AVOIDED_NODES


def _looks(pod: JudgePod, avoidance: Avoidance, now: float) -> bool:
    """Whether a judge is being tried, or was made within the hour to avoid all of these nodes: it found no other."""
    return pod.trouble is None or (pod.avoids == avoidance.label and now - pod.created_at < AVOIDED_SECONDS)


def _note(stuck: Iterable[JudgePod], avoided: list[AvoidedNode], template_hash: str, now: float) -> None:
    """Avoid the nodes of these judges, too, as long as there is room for them."""
    at = datetime.fromtimestamp(int(now), UTC)
    for pod in stuck:
        if len(avoided) < MAX_AVOIDED_NODES and all(n.name != pod.node for n in avoided):
            said = ending(pod)[:_MESSAGE_LENGTH]
            avoided.append(AvoidedNode(name=pod.node, template_hash=template_hash, since=at, message=said))


def _still_avoided(previous: SandboxPoolStatus, serving: set[str], template_hash: str, now: float) -> list[AvoidedNode]:
    if not previous.ready_replicas and any(n.name in serving for n in previous.avoided_nodes):
        return []  # what kept all of them from starting was no node's
    return [
        n
        for n in previous.avoided_nodes
        if n.template_hash == template_hash and now - n.since.timestamp() < AVOIDED_SECONDS and n.name not in serving
    ]


def _avoidance(avoided: Sequence[AvoidedNode], serving: set[str]) -> Avoidance:
    return Avoidance(tuple(sorted(n.name for n in avoided)), required=bool(serving))


def _cannot_start(pod: JudgePod, now: float) -> bool:
    """Whether a judge that has a node has shown that it does not start there."""
    if pod.ready or not pod.node:
        return False
    crashing = pod.trouble == "CrashLoopBackOff" and pod.ran_seconds <= LONGEST_START_SECONDS
    return pod.refuses or (crashing and now - (pod.unready_since or now) >= CRASHING_SECONDS)


def _why(pod: JudgePod) -> str:
    minutes = AVOIDED_SECONDS / 60
    return f"which does not start on node {pod.node}, avoided for {minutes:.0f} min now ({ending(pod)})"
