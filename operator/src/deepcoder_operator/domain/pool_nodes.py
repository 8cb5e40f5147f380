"""Decides which judges move to another node because they do not start on theirs, and which nodes new judges avoid.

A kubelet restarts a container on the same node forever. With a kernel without Landlock, or a broken disk, that judge
would be lost for good, and the scheduler, which spreads judges, would put the next one on the same node. So a judge
that refuses to start, or that has crashed for minutes without serving, is recreated with a node affinity that keeps it
off the node.

If other judges of the same template serve, the node is at fault. The judge must then go elsewhere, and waits if it fits
nowhere. If no judge serves, the template itself may be wrong. Then no judge moves before all have refused. After that
only one of them searches for a better node: it is recreated with a preference against all nodes on which a judge has
refused, until it lands on such a node again, which means that there is no other. The other judges stay where they are,
are restarted by their kubelets, and report why they cannot start. So as long as nobody fixes the cause, one pod is
recreated per hour, and once more for each node without a judge, where the cause may be fixed.

A node is avoided for an hour and then tried again. It is tried sooner if a judge serves on it, or if the template
changes. If no judge served before, and one now serves on an avoided node, no node was at fault, and all are tried. The
pool's status lists the avoided nodes, and each judge's label says what it was created to avoid.
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
"""How long a crashing judge is left to its kubelet, which has then restarted it about five times."""

LONGEST_START_SECONDS = 180.0
"""A judge that has run for longer had started: its startup probe allows one minute, and its end takes another. If a
judge serves between crashes, with up to five minutes until the kubelet restarts it, its node is not at fault."""

_MESSAGE_LENGTH = 512
_REQUIRED, _PREFERRED = "required", "preferred"


@dataclass(frozen=True)
class Avoidance:
    """The nodes that a new judge avoids."""

    nodes: tuple[str, ...] = ()
    """Names of the nodes."""

    required: bool = False
    """Whether it must avoid them. If false, it only prefers other nodes."""

    @property
    def label(self) -> str:
        """Label value of its pod. Empty if nothing is avoided."""
        if not self.nodes:
            return ""
        digest = hashlib.sha256("\n".join(self.nodes).encode()).hexdigest()[:8]
        return f"{_REQUIRED if self.required else _PREFERRED}-{digest}"


NOTHING_AVOIDED = Avoidance()


class NodesPlan(NamedTuple):
    """Decisions about nodes."""

    avoided: tuple[AvoidedNode, ...] = ()
    """Nodes to avoid from now on."""

    avoidance: Avoidance = NOTHING_AVOIDED
    """What new judges avoid."""

    moved: tuple[Deletion, ...] = ()
    """Judges to delete and recreate elsewhere: one that does not start, and those that are unschedulable because they
    must avoid nodes other than those avoided now."""


def plan_nodes(
    previous: SandboxPoolStatus, pods: Sequence[JudgePod], *, template_hash: str, now: float, may_move: bool = True
) -> NodesPlan:
    """Decide which nodes are avoided and which judge moves: one at a time, none while replacement backs off."""
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
        Deletion(
            p.name, p.uid, Cause.MOVED, "which was unschedulable while it avoided other nodes than are avoided now"
        )
        for p in live
        if p.trouble == "Unschedulable" and p.avoids.startswith(_REQUIRED) and p.avoids != avoidance.label
    ]
    return NodesPlan(tuple(avoided), avoidance, tuple(moved))


def _may_leave(pod: JudgePod, avoided: Sequence[AvoidedNode], avoidance: Avoidance) -> bool:
    """Whether a judge that does not start, while others serve, may move to another node."""
    if pod.node in avoidance.nodes:
        return pod.avoids != avoidance.label
    return len(avoided) < MAX_AVOIDED_NODES


def _looks(pod: JudgePod, avoidance: Avoidance, now: float) -> bool:
    """Whether a judge is being tried, or was created within the hour to avoid these nodes and found no other."""
    return pod.trouble is None or (pod.avoids == avoidance.label and now - pod.created_at < AVOIDED_SECONDS)


def _note(stuck: Iterable[JudgePod], avoided: list[AvoidedNode], template_hash: str, now: float) -> None:
    """Also avoid the nodes of these judges, as long as the list has room."""
    at = datetime.fromtimestamp(int(now), UTC)
    for pod in stuck:
        if len(avoided) < MAX_AVOIDED_NODES and all(n.name != pod.node for n in avoided):
            said = ending(pod)[:_MESSAGE_LENGTH]
            avoided.append(AvoidedNode(name=pod.node, template_hash=template_hash, since=at, message=said))


def _still_avoided(previous: SandboxPoolStatus, serving: set[str], template_hash: str, now: float) -> list[AvoidedNode]:
    if not previous.ready_replicas and any(n.name in serving for n in previous.avoided_nodes):
        return []  # no node was at fault for the failed starts
    return [
        n
        for n in previous.avoided_nodes
        if n.template_hash == template_hash and now - n.since.timestamp() < AVOIDED_SECONDS and n.name not in serving
    ]


def _avoidance(avoided: Sequence[AvoidedNode], serving: set[str]) -> Avoidance:
    return Avoidance(tuple(sorted(n.name for n in avoided)), required=bool(serving))


def _cannot_start(pod: JudgePod, now: float) -> bool:
    """Whether a judge has shown that it does not start on its node."""
    if pod.ready or not pod.node:
        return False
    crashing = pod.trouble == "CrashLoopBackOff" and pod.ran_seconds <= LONGEST_START_SECONDS
    return pod.refuses or (crashing and now - (pod.unready_since or now) >= CRASHING_SECONDS)


def _why(pod: JudgePod) -> str:
    minutes = AVOIDED_SECONDS / 60
    return f"which does not start on node {pod.node}, which is avoided for {minutes:.0f} min ({ending(pod)})"
