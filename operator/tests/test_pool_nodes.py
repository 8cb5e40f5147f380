"""Judges that do not start on a node: they move elsewhere, within bounds, and where there is no elsewhere they stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deepcoder_contracts.api.sandboxpool import MAX_AVOIDED_NODES, SandboxPoolStatus
from deepcoder_operator.domain.pool_nodes import (
    AVOIDED_SECONDS,
    CRASHING_SECONDS,
    LONGEST_START_SECONDS,
    Avoidance,
    NodesPlan,
    plan_nodes,
)
from deepcoder_operator.domain.pool_plan import Cause, JudgePod, plan_pods
from deepcoder_operator.domain.pool_status import JUDGES_REFUSE, PoolFacts, pool_status

NOW = 10_000.0
LANDLOCK = "exit code 64: the kernel has no Landlock"


def pod(name: str, node: str, **changes: Any) -> JudgePod:
    """A judge that serves."""
    return JudgePod(name, f"uid-{name}", 0, "h", NOW, **{"ready": True, "node": node} | changes)


def refusing(name: str, node: str, **changes: Any) -> JudgePod:
    told = {"ready": False, "trouble": "CrashLoopBackOff", "told": LANDLOCK, "refuses": True}
    return pod(name, node, **told | changes)


def planned(previous: SandboxPoolStatus, *pods: JudgePod, now: float = NOW, **more: Any) -> NodesPlan:
    return plan_nodes(previous, pods, template_hash="h", now=now, **more)


def served(**changes: Any) -> SandboxPoolStatus:
    """Of a pool with judges that serve."""
    return SandboxPoolStatus(ready_replicas=1, **changes)


def avoiding(*nodes: str, **changes: Any) -> SandboxPoolStatus:
    """Of such a pool which avoids nodes since now."""
    pods = [refusing(f"at-{node}", node) for node in nodes]
    status = served(**changes)
    for one in pods:
        plan = planned(status, pod("well", "good"), one)
        status = status.model_copy(update={"avoided_nodes": list(plan.avoided)})
    return status


def names(plan: NodesPlan) -> list[str]:
    return [n.name for n in plan.avoided]


def moved(plan: NodesPlan) -> list[str]:
    return [d.name for d in plan.moved]


def test_judge_that_refuses_where_others_serve_moves_and_its_node_is_avoided() -> None:
    plan = planned(served(), pod("well", "good"), refusing("p", "bad"))
    assert moved(plan) == ["p"]
    assert plan.moved[0].cause is Cause.MOVED
    assert plan.moved[0].failed
    assert "does not start on node bad, which is avoided for 60 min" in plan.moved[0].why
    assert LANDLOCK in plan.moved[0].why
    (node,) = plan.avoided
    assert (node.name, node.template_hash, node.since.timestamp()) == ("bad", "h", NOW)
    assert node.message == f"CrashLoopBackOff: {LANDLOCK}"
    assert plan.avoidance == Avoidance(("bad",), required=True)


def test_judge_that_crashes_moves_when_its_kubelet_has_had_its_time() -> None:
    def crashing(seconds: float, trouble: str = "CrashLoopBackOff") -> list[str]:
        crashes = refusing("p", "bad", refuses=False, trouble=trouble, unready_since=NOW - seconds)
        return moved(planned(served(), pod("well", "good"), crashes))

    assert crashing(CRASHING_SECONDS) == ["p"]
    assert crashing(CRASHING_SECONDS - 1) == []
    assert crashing(86_400, "ErrImagePull") == [], "that is no node's fault, mostly"


def test_judge_that_serves_between_its_crashes_stays_and_bars_no_node() -> None:
    """It waits for five minutes, too, before its kubelet starts it once more."""
    crashes = refusing("p", "node", refuses=False, unready_since=NOW - 86_400)
    after = replace(crashes, ran_seconds=LONGEST_START_SECONDS + 1)
    plan = planned(served(), pod("well", "good"), after)
    assert (moved(plan), names(plan)) == ([], [])
    assert moved(planned(served(), pod("well", "good"), replace(after, ran_seconds=LONGEST_START_SECONDS))) == ["p"]


def test_judges_move_one_at_a_time_and_none_while_replacement_backs_off() -> None:
    pods = (pod("well", "good"), refusing("p", "a"), refusing("q", "b"))
    assert len(moved(planned(served(), *pods))) == 1
    held = planned(avoiding("c"), *pods, may_move=False)
    assert (moved(held), names(held)) == ([], ["c"])


def test_judge_stays_on_a_node_where_another_serves() -> None:
    plan = planned(served(), pod("well", "node"), refusing("p", "node"))
    assert (moved(plan), names(plan)) == ([], [])


def test_judge_that_was_on_the_node_before_it_was_avoided_moves_too() -> None:
    plan = planned(avoiding("bad"), pod("well", "good"), refusing("q", "bad"))
    assert (moved(plan), names(plan)) == (["q"], ["bad"])


def test_nothing_moves_while_none_serves_and_not_all_have_refused() -> None:
    """All of them may, for what they are made from: that is said first, and at once."""
    plan = planned(SandboxPoolStatus(), refusing("p", "a"), pod("q", "b", ready=False))
    assert (moved(plan), names(plan)) == ([], [])


def test_judge_of_a_new_template_that_no_other_of_it_serves_beside_stays_and_says_why() -> None:
    """A rollout of what does not start would go from node to node, and in the end say that there is no room."""
    old = replace(pod("old", "good"), template_hash="before")
    plan = planned(served(), old, refusing("new", "another"))
    assert (moved(plan), names(plan)) == ([], [])


def test_judge_of_a_pool_whose_every_judge_refuses_is_tried_once_on_each_node() -> None:
    refused = SandboxPoolStatus(refused_template_hash="h")
    first = planned(refused, refusing("p", "a"))
    assert moved(first) == ["p"]
    assert not first.avoidance.required, "there may be no other node, and its words would be lost"
    after = refused.model_copy(update={"avoided_nodes": list(first.avoided)})
    again = planned(after, refusing("q", "a", avoids=first.avoidance.label))
    assert moved(again) == []
    assert moved(planned(after, refusing("q", "b", avoids=first.avoidance.label))) == ["q"]


def test_of_judges_that_all_refuse_one_looks_for_a_better_node_and_the_others_stay() -> None:
    """They are started again where they are, and it finds a node for all of them."""
    refused = SandboxPoolStatus(refused_template_hash="h")
    first = planned(refused, refusing("p", "a"), refusing("q", "b"), refusing("r", "b"))
    assert moved(first) == ["p"]
    assert names(first) == ["a", "b"], "those where judges stay are known, too"
    after = refused.model_copy(update={"avoided_nodes": list(first.avoided)})
    stay = (refusing("q", "b"), refusing("r", "b"))
    looks = pod("s", "c", ready=False, avoids=first.avoidance.label)
    assert moved(planned(after, looks, *stay)) == [], "it has not said yet"
    found_none = refusing("s", "a", avoids=first.avoidance.label)
    assert moved(planned(after, found_none, *stay)) == []
    in_an_hour = NOW + AVOIDED_SECONDS
    assert moved(planned(after, found_none, *stay, now=in_an_hour - 1)) == []
    assert moved(planned(after, found_none, *stay, now=in_an_hour)) == ["s"], "somebody may have mended one"


def test_node_is_avoided_until_its_time_is_over_another_template_comes_or_a_judge_serves_there() -> None:
    status, well = avoiding("bad"), pod("well", "good")
    assert names(planned(status, well, now=NOW + AVOIDED_SECONDS - 1)) == ["bad"]
    assert names(planned(status, well, now=NOW + AVOIDED_SECONDS)) == []
    assert names(plan_nodes(status, [well], template_hash="mended", now=NOW)) == []
    assert names(planned(status, well, pod("p", "bad"))) == []


def test_all_nodes_count_as_well_again_when_a_judge_serves_on_one_of_them_and_none_did() -> None:
    """What kept all of them from starting was no node's, and others could go nowhere for an hour."""
    none_served = avoiding("a", "b").model_copy(update={"ready_replicas": 0})
    assert names(planned(none_served, pod("p", "b"))) == []


def test_node_stays_avoided_when_the_only_judge_has_moved_and_serves_elsewhere() -> None:
    """Forgotten, it would get the next one again, and the run's attempt would end for it."""
    none_served = avoiding("a", "b").model_copy(update={"ready_replicas": 0})
    assert names(planned(none_served, pod("p", "c"))) == ["a", "b"]


def test_no_more_nodes_are_avoided_than_a_few() -> None:
    status = avoiding(*(f"n{i}" for i in range(MAX_AVOIDED_NODES)))
    assert len(status.avoided_nodes) == MAX_AVOIDED_NODES
    plan = planned(status, pod("well", "good"), refusing("p", "another"))
    assert (moved(plan), len(plan.avoided)) == ([], MAX_AVOIDED_NODES)


def test_judge_that_waits_for_a_place_is_made_anew_when_it_may_go_where_it_might_not() -> None:
    waits = pod("p", "", ready=False, trouble="Unschedulable", avoids=Avoidance(("bad",), required=True).label)
    well, status = pod("well", "good"), avoiding("bad")
    assert moved(planned(status, well, waits)) == []
    assert moved(planned(status, well, waits, now=NOW + AVOIDED_SECONDS)) == ["p"]
    anew = planned(status, waits)
    assert moved(anew) == ["p"], "none serves any more: it is better there than nowhere"
    assert not anew.moved[0].failed, "it is no failure, after which others would be made more slowly"
    for avoids in ("", Avoidance(("another",)).label):
        stays = planned(status, well, replace(waits, avoids=avoids))
        assert moved(stays) == [], "which might go anywhere, and has no room at all"


@dataclass
class Nodes:
    """Nodes with room for any number of judges, on some of which none starts, and a scheduler that likes the first."""

    good: frozenset[str]
    bad: frozenset[str]
    pods: dict[str, JudgePod] = field(default_factory=dict)
    status: SandboxPoolStatus = field(default_factory=SandboxPoolStatus)
    made: int = 0
    moves: int = 0
    now: float = NOW

    def place(self, avoidance: Avoidance) -> str:
        every = sorted(self.good | self.bad, key=lambda n: (n in self.good, n))  # bad ones first
        off = [n for n in every if n not in avoidance.nodes]
        return next(iter(off or ([] if avoidance.required else every)), "")

    def step(self, desired: int) -> None:
        """A pass; then each judge that was made has its node, and serves or has refused three times."""
        pods: Sequence[JudgePod] = list(self.pods.values())
        nodes = plan_nodes(self.status, pods, template_hash="h", now=self.now)
        plan = plan_pods(pods, desired=desired, template_hash="h", now=self.now, moved=nodes.moved)
        self.moves += len(nodes.moved)
        for deletion in plan.delete:
            del self.pods[deletion.name]
        for index in plan.create:
            name, node, self.made = f"p{self.made}", self.place(nodes.avoidance), self.made + 1
            label = nodes.avoidance.label
            if not node:
                new = pod(name, "", ready=False, trouble="Unschedulable", avoids=label)
            else:
                new = (pod if node in self.good else refusing)(name, node, avoids=label)
            self.pods[name] = replace(new, index=index, created_at=self.now)
        facts = PoolFacts("judges", 1, desired, desired, "h", avoided=nodes.avoided)
        self.status = pool_status(self.status, facts, list(self.pods.values()), self.now)

    def hours(self, count: int, desired: int) -> int:
        """A pass each minute; judges moved meanwhile."""
        before = self.moves
        for _ in range(60 * count):
            self.now += 60
            self.step(desired)
        return self.moves - before

    def mend(self, node: str) -> None:
        """Judges start there from now on, those that are there at the next try of their kubelet."""
        self.good, self.bad = self.good | {node}, self.bad - {node}
        here = {name: p for name, p in self.pods.items() if p.node == node}
        self.pods |= {name: replace(pod(name, node), index=p.index) for name, p in here.items()}


@given(st.integers(0, 3), st.integers(0, 6), st.integers(1, 6))
def test_pool_comes_to_rest_with_all_judges_serving_if_there_is_a_node_for_them(
    good: int, bad: int, desired: int
) -> None:
    assume(good + bad > 0)
    world = Nodes(frozenset(f"g{i}" for i in range(good)), frozenset(f"b{i}" for i in range(bad)))
    for _ in range(200):
        before = world.made
        world.step(desired)
        if world.made == before:
            break
    else:
        raise AssertionError(f"no rest: {world.moves} moves")
    assert world.moves <= (desired * (bad + 1) if good else bad + 1)
    ready = next(c for c in world.status.conditions if c.type == "Ready")
    if good:
        assert all(p.ready for p in world.pods.values())
    else:
        assert ready.reason == JUDGES_REFUSE
        assert LANDLOCK in ready.message


@pytest.mark.parametrize(("bad", "desired"), [(1, 1), (2, 1), (6, 1), (3, 3), (2, 5), (6, 3)])
def test_pool_whose_every_judge_refuses_makes_few_of_them_anew_and_still_finds_the_node_that_somebody_mends(
    bad: int, desired: int
) -> None:
    world = Nodes(frozenset(), frozenset(f"b{i}" for i in range(bad)))
    for _ in range(4):
        assert world.hours(1, desired) <= bad + 1, "each node is tried, and one judge moves for that"
    world.mend(f"b{bad - 1}")
    world.hours(2, desired)
    assert all(p.ready for p in world.pods.values())
