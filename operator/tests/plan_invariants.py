"""What holds of a run and its planner, whatever happens: told after each thing that does."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from math import ceil
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine, invariant
from plan_world import Cluster, make_run
from run_manifests import EVALUATE, LONGER, TRAIN
from state_walk import clone

from deepcoder_contracts.api.run_status import RunStatus, StagePhase
from deepcoder_contracts.base import Digest
from deepcoder_operator.domain.conditions import is_true
from deepcoder_operator.domain.significance import held_seconds
from deepcoder_operator.domain.terminal import is_terminal

STAGES = [TRAIN | {"hold": True}, LONGER, EVALUATE]
POLICY: dict[str, Any] = {
    "maxAttempts": 4,
    "rules": [{"name": "memory", "onReasons": ["OutOfMemory"], "action": "RetryIgnoreLimit"}],
}
SPEC: dict[str, Any] = {"stages": STAGES, "failurePolicy": POLICY, "cleanup": {"artifacts": "Delete"}}


class Invariants(RuleBasedStateMachine):
    """A run, and what it was seen to be so far."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster(make_run(**SPEC), gpus=8)
        self.ordinal = 0
        self.made_at_end: int | None = None
        self.recorded: dict[str, str] = {}
        self.with_head: set[str] = set()
        self.shown: set[Digest] = set()
        self.used = 0.0
        self.wasted = 0.0
        self.runs = 1
        self.clocks_differ = False
        """Or seem to, since nobody looked when pods were scheduled."""

    @property
    def status(self) -> RunStatus:
        return self.cluster.run.status

    @invariant()
    def at_most_one_attempt_is_alive(self) -> None:
        alive = [j for j in self.cluster.jobs.values() if not j.deleting]
        assert len(alive) <= 1, alive

    @invariant()
    def at_most_one_head_works_and_none_under_the_ordinal_of_another(self) -> None:
        heads = [p for p in self.cluster.pods.values() if p.role == "head"]
        assert len([h for h in heads if not h.deleting]) <= 1, heads
        assert len({h.ordinal for h in heads}) == len(heads), heads

    @invariant()
    def ordinals_never_fall_and_names_are_never_made_twice(self) -> None:
        assert self.status.ordinal >= self.ordinal
        self.ordinal = self.status.ordinal
        # A child that someone deleted before its uid was written down is made again under its intent's name.
        ordinals = [int(name.rsplit("a", 1)[1]) for name in self.cluster.made]
        assert ordinals == sorted(ordinals)

    @invariant()
    def a_name_is_never_used_for_two_jobs(self) -> None:
        attempt = self.status.attempt
        if attempt is not None and attempt.uid is not None:
            assert self.recorded.setdefault(attempt.name, attempt.uid) == attempt.uid

    @invariant()
    def nothing_is_made_after_the_end(self) -> None:
        if is_terminal(self.status):
            if self.made_at_end is None:
                self.made_at_end = len(self.cluster.made)
            assert len(self.cluster.made) == self.made_at_end

    @invariant()
    def every_child_was_intended_first(self) -> None:
        for job in self.cluster.jobs.values():
            assert job.ordinal <= self.status.ordinal or job.owner_uid != self.cluster.run.metadata.uid

    @invariant()
    def each_gpu_second_is_counted_once(self) -> None:
        usage = self.status.usage
        ended = [(e, e.ended_time) for e in usage.pods if e.ended_time]
        waiting = sum(e.gpus * max((end - e.scheduled_time).total_seconds(), 0.0) for e, end in ended)
        assert float(usage.gpu_seconds) + waiting == self.cluster.meter.seconds
        assert not usage.estimated or self.clocks_differ

    @invariant()
    def wasted_gpu_seconds_are_some_of_those_used_and_neither_falls(self) -> None:
        used, wasted = float(self.status.usage.gpu_seconds), float(self.status.usage.wasted_gpu_seconds)
        assert 0 <= wasted <= used
        assert used >= self.used
        assert wasted >= self.wasted
        self.used, self.wasted = used, wasted

    @invariant()
    def lineage_is_unbroken(self) -> None:
        """What the status shows is one chain, from the newest checkpoint to the run's first; and it is resumed from."""
        status = self.status
        shown = [c.digest for c in status.checkpoints]
        if shown:
            assert status.latest_checkpoint is not None
            assert shown[0] == status.latest_checkpoint.digest
            self.shown.update(shown)
            for newer, older in pairwise(shown):
                parent = self.cluster.parents[newer]
                assert parent == older or parent not in self.shown, "one that was never seen may lie between"
        if status.attempt and status.attempt.parent:
            assert status.attempt.parent.digest in shown

    @invariant()
    def a_complete_run_has_passed_each_of_its_stages(self) -> None:
        if is_true(self.status.conditions, "Complete"):
            assert {s.phase for s in self.status.stages} == {StagePhase.COMPLETE}

    @invariant()
    def nothing_is_waited_for_longer_than_its_bound(self) -> None:
        """Told by a plan at this moment, whatever the clock did before."""
        status, now = self.cluster.decide().status, self.cluster.now
        if status.attempt and status.attempt.drain_deadline:
            assert status.attempt.drain_deadline - now <= timedelta(seconds=300 + 60)
        if status.backoff:
            assert status.backoff.until - now <= timedelta(seconds=600)

    @invariant()
    def nothing_falls_due_before_the_next_look(self) -> None:
        """Of a run that rests: no event tells that time has passed, and GPUs may be held until somebody looks."""
        decided, later = self.cluster.decide(), clone(self.cluster)
        if decided.actions or decided.events or decided.status != self.status or decided.requeue_after <= 1:
            return
        later.advance(ceil(decided.requeue_after) - 1)
        then = later.decide()
        assert then.actions == then.events == ()
        assert held_seconds(self.status, then.status) > 0

    @invariant()
    def no_judge_is_paid_for_before_the_first_quota(self) -> None:
        status = self.status
        waits = status.attempt is not None and status.attempt.admitted_time is None
        if self.cluster.run.spec.scheduling.queue_name and waits and status.ordinal == 1:
            assert self.cluster.pool is None

    @invariant()
    def failures_are_bounded(self) -> None:
        assert all(s.failures <= 4 for s in self.status.stages)

    @invariant()
    def planning_twice_changes_nothing(self) -> None:
        first, second = self.cluster.decide(), self.cluster.decide()
        assert first == second
