"""Whatever happens, in whatever order, and wherever the operator is killed: the planner's invariants hold.

Hypothesis drives a run through crashes between any two writes, lost and repeated passes, evictions, deletions, broken
storage and clock jumps.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from plan_world import Cluster, make_run
from run_manifests import EVALUATE, LONGER, TRAIN

from deepcoder_contracts.exit import ExitRecord
from deepcoder_operator.api.run_status import RunStatus
from deepcoder_operator.domain.terminal import is_terminal
from deepcoder_operator.domain.world import Problem

STAGES = [TRAIN | {"hold": True}, LONGER, EVALUATE]
POLICY = {"maxAttempts": 4, "rules": [{"name": "memory", "onReasons": ["OutOfMemory"], "action": "RetryIgnoreLimit"}]}


class Chaos(RuleBasedStateMachine):
    """A run and everything that can happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster(make_run(stages=STAGES, failurePolicy=POLICY, cleanup={"artifacts": "Delete"}))
        self.ordinal = 0
        self.made_at_end: int | None = None
        self.gone = False
        self.recorded: dict[str, str] = {}

    @property
    def status(self) -> RunStatus:
        return self.cluster.run.status

    def has_job(self) -> bool:
        attempt = self.status.attempt
        return attempt is not None and attempt.name in self.cluster.jobs

    def head(self) -> str | None:
        attempt = self.status.attempt
        name = f"{attempt.name}-head" if attempt else ""
        return name if name in self.cluster.pods else None

    @rule(actions=st.integers(0, 3))
    def operator_is_killed_within_a_pass(self, actions: int) -> None:
        self.cluster.step(actions)

    @rule()
    def operator_is_killed_before_its_status_write(self) -> None:
        self.cluster.step(lose_status=True)

    @rule(count=st.integers(1, 6))
    def passes_are_made(self, count: int) -> None:
        for _ in range(count):
            self.cluster.step()

    @rule()
    def actions_are_repeated(self) -> None:
        decided = self.cluster.step()
        for action in decided.actions:
            if not is_terminal(self.status):
                self.cluster.carry_out(action)

    @rule(seconds=st.sampled_from([1, 20, 400, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.cluster.advance(seconds)

    @precondition(has_job)
    @rule()
    def job_starts(self) -> None:
        if self.head() is None:
            self.cluster.start_job()

    @precondition(has_job)
    @rule(step=st.integers(1, 20), final=st.booleans())
    def trainer_saves(self, step: int, final: bool) -> None:
        self.cluster.save(step, final=final)

    @precondition(has_job)
    @rule(step=st.integers(0, 20))
    def trainer_reports(self, step: int) -> None:
        self.cluster.report(step, reward_mean=0.5)

    @precondition(has_job)
    @rule()
    def attempt_does_all_it_should(self) -> None:
        if self.head() is None:
            self.cluster.start_job()
        self.cluster.step()
        if self.has_job():
            self.cluster.save(20, final=True)
            self.cluster.leave(0, "Completed")

    @precondition(has_job)
    @rule(code=st.sampled_from([0, 1, 75, 137]))
    def trainer_ends(self, code: int) -> None:
        self.cluster.leave(code)

    @precondition(has_job)
    @rule()
    def job_is_deleted_by_someone(self) -> None:
        del self.cluster.jobs[self.cluster.name]

    @precondition(has_job)
    @rule(suspended=st.booleans())
    def queue_evicts_or_admits(self, suspended: bool) -> None:
        self.cluster.change_job(suspended=suspended)

    @rule()
    def pods_vanish(self) -> None:
        self.cluster.pods = {}

    @precondition(lambda self: self.head() is not None)
    @rule(how=st.sampled_from(["restart", "replace", "preempt", "oom"]))
    def head_breaks(self, how: str) -> None:
        name = self.head()
        assert name is not None
        pod = self.cluster.pods[name]
        changes = {
            "restart": {"restarts": 1},
            "replace": {"uid": pod.uid + "x"},
            "preempt": {"disruption": "PreemptionByScheduler", "deleting": True},
            "oom": {"terminated": "OOMKilled", "phase": "Failed"},
        }
        self.cluster.pods[name] = replace(pod, **changes[how])

    @rule(broken=st.sampled_from([False, False, True]))
    def storage_breaks_or_heals(self, broken: bool) -> None:
        self.cluster.storage_problem = Problem("StorageUnreachable", "no route") if broken else None

    @rule(suspend=st.sampled_from([False, False, False, True]))
    def user_suspends_or_resumes(self, suspend: bool) -> None:
        self.cluster.edit(suspend=suspend)

    @rule()
    def user_approves(self) -> None:
        self.cluster.edit(approved_stages=["short"])

    @rule(dice=st.integers(0, 99))
    def user_deletes(self, dice: int) -> None:
        if dice == 50 and self.cluster.run.metadata.deletion_timestamp is None:
            self.cluster.delete()

    @invariant()
    def at_most_one_attempt_is_alive(self) -> None:
        assert len(self.cluster.jobs) <= 1, self.cluster.jobs

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
            assert job.ordinal <= self.status.ordinal

    @invariant()
    def failures_are_bounded(self) -> None:
        assert all(s.failures <= 4 for s in self.status.stages)

    @invariant()
    def planning_twice_changes_nothing(self) -> None:
        first, second = self.cluster.decide(), self.cluster.decide()
        assert first == second

    @invariant()
    def deletion_waits_for_no_attempt(self) -> None:
        meta = self.cluster.run.metadata
        if meta.deletion_timestamp and not meta.finalizers and self.ordinal:
            assert not self.cluster.jobs

    def teardown(self) -> None:
        """From wherever it is, the run converges once things hold still and time passes."""
        cluster = self.cluster
        cluster.storage_problem = None
        cluster.edit(suspend=False, approved_stages=["short"])
        for _ in range(60):
            cluster.settle()
            if is_terminal(self.status) or (
                cluster.run.metadata.deletion_timestamp and not cluster.run.metadata.finalizers
            ):
                break
            if self.has_job() and self.status.attempt is not None and self.status.attempt.state != "Leaving":
                cluster.change_job(suspended=False)
                if self.head() is None:
                    cluster.start_job()
                cluster.settle()
                if self.has_job():
                    attempt = self.status.attempt
                    assert attempt is not None
                    cluster.save(20, final=True)
                    cluster.exits[attempt.ordinal] = ExitRecord(code=0, reason="Completed")
                    cluster.change_job(job_status="SUCCEEDED", deployment_status="Complete")
            cluster.settle()
            cluster.now += timedelta(seconds=700)
        assert is_terminal(self.status) or cluster.run.metadata.deletion_timestamp, self.status
        cluster.settle()
        assert not cluster.jobs


def test_invariants_hold_and_runs_converge_through_any_chaos() -> None:
    chosen = settings(
        max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    run_state_machine_as_test(Chaos, settings=chosen)
