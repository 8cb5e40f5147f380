"""All phases that the planner takes a run through, found by walking it: what docs/state-machine.md shows.

From a new run, each event that may happen is tried in each situation that is not known yet, until there is no new one.
A situation is what decides what may follow: the phase, the attempt's state, what the user and storage do. Nothing here
says where an event leads; only the planner does.

    python operator/tests/state_walk.py --write    puts the diagram and its table into the page
"""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from plan_values import Meter
from plan_world import Cluster, make_run
from run_manifests import LONGER, TRAIN

from deepcoder_contracts.api.run_status import Phase
from deepcoder_operator.domain.world import Problem

PAGE = Path(__file__).parents[2] / "docs" / "state-machine.md"
BEGIN, END = "<!-- begin: written by operator/tests/state_walk.py -->", "<!-- end -->"
GONE = "gone"

Edges = Mapping[tuple[str, str], set[str]]

SPEC = {
    "stages": [TRAIN | {"stallSeconds": 100}, LONGER | {"hold": True}, LONGER | {"name": "longest"}],
    "failurePolicy": {"maxAttempts": 2},
    "scheduling": {"queueName": "team"},
}


def has_job(cluster: Cluster) -> bool:
    attempt = cluster.run.status.attempt
    return attempt is not None and attempt.name in cluster.jobs and not cluster.jobs[attempt.name].deleting


def has_head(cluster: Cluster) -> bool:
    return has_job(cluster) and f"{cluster.name}-head" in cluster.pods


def is_queued(cluster: Cluster) -> bool:
    return has_job(cluster) and cluster.jobs[cluster.name].suspended


def is_held(cluster: Cluster) -> bool:
    return cluster.run.status.phase is Phase.HELD


def evict(cluster: Cluster) -> None:
    name = f"{cluster.name}-head"
    cluster.pods[name] = replace(cluster.pods[name], disruption="EvictionByEvictionAPI")
    cluster.end_pod(name)


def succeed(cluster: Cluster) -> None:
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")


def save(cluster: Cluster) -> None:
    cluster.save(5)
    cluster.leave(75, "Drained")


def alive(cluster: Cluster) -> bool:
    return cluster.run.metadata.deletion_timestamp is None


EVENTS: dict[str, tuple[Callable[[Cluster], bool], Callable[[Cluster], None]]] = {
    "its queue admits it": (is_queued, lambda c: c.change_job(suspended=False)),
    "its queue takes the quota back": (has_head, lambda c: c.change_job(suspended=True, job_status="")),
    "its program runs": (lambda c: has_job(c) and not is_queued(c) and not has_head(c), Cluster.start_job),
    "its job succeeds, its manifest verifies": (has_head, succeed),
    "its job succeeds without a manifest": (has_head, lambda c: c.leave(0, "Completed")),
    "its program crashes": (has_head, lambda c: c.leave(1)),
    "its configuration is refused (exit 64)": (has_head, lambda c: c.leave(64, "BadConfig")),
    "its head is evicted": (has_head, evict),
    "its head is lost": (has_head, lambda c: c.pods.clear()),
    "its trainer saves and leaves": (lambda c: c.run.status.phase is Phase.DRAINING and has_head(c), save),
    "suspend: true": (lambda c: alive(c) and not c.run.spec.suspend, lambda c: c.edit(suspend=True)),
    "suspend: false": (lambda c: alive(c) and c.run.spec.suspend, lambda c: c.edit(suspend=False)),
    "its stage is approved": (is_held, lambda c: c.edit(approved_stages=["long"])),
    "it is deleted": (alive, Cluster.delete),
    "a bound passes (pause, stall, drain, start)": (lambda c: True, lambda c: c.advance(4000)),
    "storage is away": (lambda c: c.storage_problem is None, lambda c: away(c, "no route")),
    "storage is back": (lambda c: c.storage_problem is not None, lambda c: away(c, None)),
    "no judge can start": (
        lambda c: is_well(c) and has_job(c) and not is_queued(c),
        lambda c: judges(c, "NameConflict"),
    ),
    "a judge is ready": (lambda c: c.pool is not None and c.pool.stuck_reason != "", lambda c: judges(c, "")),
    "pods do not end": (lambda c: c.kubelet and bool(c.pods), lambda c: setattr(c, "kubelet", False)),
    "pods end": (lambda c: not c.kubelet, lambda c: setattr(c, "kubelet", True)),
}


def away(cluster: Cluster, why: str | None) -> None:
    cluster.storage_problem = Problem("StorageUnreachable", why) if why else None


def is_well(cluster: Cluster) -> bool:
    """Whether nothing else is amiss: all that can be at once would be many more situations, and lead nowhere else."""
    wishes = cluster.run.spec.suspend or not alive(cluster)
    return cluster.storage_problem is None and cluster.kubelet and not wishes and cluster.pool is not None


def judges(cluster: Cluster, stuck_reason: str) -> None:
    assert cluster.pool is not None
    cluster.pool = replace(cluster.pool, ready=not stuck_reason, stuck_reason=stuck_reason)


def situation(cluster: Cluster) -> tuple[object, ...]:
    """What tells situations apart; ordinals and times do not."""
    status = cluster.run.status
    attempt = status.attempt
    return (
        phase(cluster), attempt and (attempt.state, attempt.drain_cause, attempt.outcome), cluster.run.spec.suspend,
        cluster.storage_problem is None, cluster.kubelet, is_queued(cluster), has_head(cluster),
        cluster.pool is not None and cluster.pool.stuck_reason,
        status.current_stage and status.current_stage.index,
        sum(s.failures for s in status.stages),
    )  # fmt: skip


def phase(cluster: Cluster) -> str:
    """The phase, or that the run is gone."""
    meta = cluster.run.metadata
    return GONE if meta.deletion_timestamp and not meta.finalizers else str(cluster.run.status.phase)


def clone(cluster: Cluster) -> Cluster:
    """All that it holds is immutable but the collections."""
    return replace(
        cluster, jobs=dict(cluster.jobs), pods=dict(cluster.pods), stored=dict(cluster.stored),
        exits=dict(cluster.exits), made=list(cluster.made), ended=[], events=[], post_mortems=[],
        parents=dict(cluster.parents), meter=Meter(),
    )  # fmt: skip


def passes(cluster: Cluster, limit: int = 12) -> Iterator[str]:
    """The phases of passes until nothing changes."""
    for _ in range(limit):
        before = cluster.run
        decided = cluster.step()
        yield phase(cluster)
        if not cluster.others_act() and cluster.run == before and not decided.actions:
            return


def walk() -> Edges:
    """From phase to phase, by which events: the first change that an event brings, and what follows by itself."""
    edges: dict[tuple[str, str], set[str]] = defaultdict(set)
    first = Cluster(make_run(**SPEC))
    known = {situation(first)}
    waiting = deque([first])
    while waiting:
        start = waiting.popleft()
        for name, (may, happen) in EVENTS.items():
            if phase(start) == GONE or not may(start):
                continue
            cluster = clone(start)
            happen(cluster)
            at, why = phase(start), name
            for reached in passes(cluster):
                if reached != at:
                    edges[at, reached].add(why)
                    at, why = reached, "by itself"
            if situation(cluster) not in known:
                known.add(situation(cluster))
                waiting.append(cluster)
    return edges


def rendered(edges: Edges) -> str:
    """The diagram, and the events of each of its arrows."""
    order = [*map(str, Phase), GONE]
    pairs = sorted(edges, key=lambda e: (order.index(e[0]), order.index(e[1])))
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> Pending"]
    lines += [f"    {a} --> {'[*]' if b == GONE else b}" for a, b in pairs]
    lines += ["```", "", "| from | to | when |", "|---|---|---|"]
    lines += [f"| {a} | {b} | {'; '.join(sorted(edges[a, b] - {'by itself'})) or 'by itself'} |" for a, b in pairs]
    return "\n".join(lines)


def with_diagram(page: str, diagram: str) -> str:
    """The page with another diagram between its marks."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n{diagram}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    text = with_diagram(PAGE.read_text(), rendered(walk()))
    if "--write" in sys.argv:
        PAGE.write_text(text)
    else:
        print(text)
