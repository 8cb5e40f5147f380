"""Whatever can happen to a run, as rules of hypothesis; and that it converges from wherever it is."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from plan_invariants import SPEC, Invariants
from plan_world import UID, Cluster, make_run
from run_manifests import EVALUATE, LONGER

from deepcoder_contracts.api.run_status import CheckpointStatus
from deepcoder_contracts.api.stage import Stage
from deepcoder_contracts.exit import ExitRecord
from deepcoder_operator.domain.terminal import is_terminal
from deepcoder_operator.domain.usage import SEEN_SECONDS
from deepcoder_operator.domain.world import Problem

DATASETS = {"datasets": EVALUATE["evaluate"]["datasets"]}
LATER = [Stage.model_validate(s) for s in (LONGER, LONGER | {"name": "longest"}, EVALUATE | {"evaluate": DATASETS})]


class Chaos(Invariants):
    """A run and everything that can happen to it."""

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

    @rule(count=st.integers(1, 4))
    def others_act(self, count: int) -> None:
        for _ in range(count):
            self.cluster.others_act()

    @rule(kuberay=st.sampled_from([True, True, False]), kubelet=st.sampled_from([True, True, False]))
    def others_go_away_or_come_back(self, kuberay: bool, kubelet: bool) -> None:
        self.cluster.kuberay, self.cluster.kubelet = kuberay, kubelet

    @rule(behind=st.sampled_from([False, False, True]))
    def watch_of_jobs_falls_behind_or_catches_up(self, behind: bool) -> None:
        """Pods have a watch of their own, which is not."""
        self.cluster.seen_jobs = dict(self.cluster.jobs) if behind else None

    @rule(slow=st.booleans())
    def bucket_is_slow_or_quick(self, slow: bool) -> None:
        self.cluster.slow_bucket = slow

    @rule(seconds=st.sampled_from([1, 20, 400, 4000]))
    def time_passes(self, seconds: int) -> None:
        known = {p.name for p in self.status.usage.pods}
        self.clocks_differ |= seconds > SEEN_SECONDS and any(
            p.gpus and p.name not in known for p in self.cluster.pods.values()
        )
        self.cluster.advance(seconds)

    @rule(seconds=st.integers(-4000, 4000))
    def clock_jumps(self, seconds: int) -> None:
        """As it may between one process of the operator and the next; within one it does not, see `clock`."""
        self.clocks_differ = True
        self.cluster.advance(seconds)

    def may_start(self) -> bool:
        """Whether KubeRay starts the job's head: one head for each time that its queue admits it."""
        job = self.cluster.jobs[self.cluster.name] if self.has_job() else None
        return job is not None and not job.deleting and not job.suspended and job.uid not in self.with_head

    def start(self) -> None:
        self.with_head.add(self.cluster.jobs[self.cluster.name].uid)
        self.cluster.start_job()

    @precondition(may_start)
    @rule()
    def job_starts(self) -> None:
        self.start()

    def goes_well(self, seconds: int, steps: int, behind: bool) -> None:
        """Everybody acts, the job gets its quota and trains on for a while: without it no run would come far."""
        self.cluster.kuberay = self.cluster.kubelet = True
        self.cluster.storage_problem = None
        if self.cluster.run.spec.suspend:
            self.cluster.edit(suspend=False)
        for _ in range(6):
            self.cluster.step()
            self.cluster.others_act()
        self.watch_of_jobs_falls_behind_or_catches_up(behind)
        self.queue_admits()
        if self.may_start():
            self.start()
        self.cluster.step()
        self.watch_of_jobs_falls_behind_or_catches_up(False)
        self.cluster.advance(seconds)
        if self.head() is not None and self.has_job():
            self.cluster.report(steps, reward_mean=0.5)
            self.trainer_saves(steps, final=False)
        self.cluster.step()

    quiet, behind = st.sampled_from([30, 300, 700]), st.booleans()
    it_goes_well = rule(seconds=quiet, steps=st.integers(1, 3), behind=behind)(goes_well)
    it_goes_well_again = rule(seconds=quiet, steps=st.integers(1, 3), behind=behind)(goes_well)
    it_goes_well_for_long = rule(seconds=st.just(1000), steps=st.integers(1, 3), behind=behind)(goes_well)

    @precondition(has_job)
    @rule(steps=st.integers(0, 5), final=st.booleans())
    def trainer_saves(self, steps: int, final: bool) -> None:
        attempt = self.status.attempt
        assert attempt is not None
        stored = self.cluster.stored.get(self.cluster.run.spec.stages[attempt.stage_index].name)
        step = stored.newest.step if stored and stored.newest else 0
        self.cluster.save(min(step + steps, 20), final=final)

    def losable(self) -> list[CheckpointStatus]:
        """The newest checkpoints of a stage, where there are two that are known."""
        known = self.status.checkpoints
        return list(known[:2]) if len(known) > 1 and known[0].stage == known[1].stage else []

    @precondition(lambda self: bool(self.losable()))
    @rule()
    def storage_loses_the_newest_checkpoint(self) -> None:
        stage = self.losable()[0].stage
        self.cluster.stored[stage] = replace(self.cluster.stored[stage], newest=self.losable()[1])

    @rule()
    def a_pod_ends_by_itself(self) -> None:
        for name in sorted(self.cluster.meter.running)[:1]:
            if name in self.cluster.pods:
                self.cluster.pods[name] = replace(self.cluster.pods[name], finished=self.cluster.now)

    @precondition(has_job)
    @rule(step=st.integers(0, 20))
    def trainer_reports(self, step: int) -> None:
        self.cluster.report(step, reward_mean=0.5)

    @precondition(has_job)
    @rule(passes=st.sampled_from([0, 8]))
    def attempt_does_all_it_should(self, passes: int) -> None:
        self.queue_admits()
        if self.may_start():
            self.start()
        self.cluster.step()
        if self.has_job():
            self.cluster.save(20, final=True)
            self.cluster.leave(0, "Completed")
        for _ in range(passes):
            self.cluster.step()
            self.cluster.others_act()

    @precondition(has_job)
    @rule(code=st.sampled_from([0, 1, 75, 137]))
    def trainer_ends(self, code: int) -> None:
        self.cluster.leave(code)

    @precondition(has_job)
    @rule()
    def job_is_deleted_by_someone(self) -> None:
        del self.cluster.jobs[self.cluster.name]

    @rule()
    def queue_admits(self) -> None:
        if self.has_job() and not self.cluster.jobs[self.cluster.name].deleting:
            self.cluster.change_job(suspended=False)

    @precondition(has_job)
    @rule()
    def queue_evicts_and_admits_again(self) -> None:
        """Seen by the operator in between: a queue needs longer for it than an event takes."""
        self.watch_of_jobs_falls_behind_or_catches_up(False)
        job = self.cluster.jobs[self.cluster.name]
        self.cluster.change_job(suspended=True)
        self.cluster.step()
        if self.has_job() and not self.cluster.jobs[self.cluster.name].deleting:
            self.queue_admits()
            self.with_head.discard(job.uid)

    @precondition(has_job)
    @rule()
    def deletion_of_a_job_begins(self) -> None:
        self.cluster.change_job(deleting=True)

    @rule()
    def pods_vanish(self) -> None:
        self.cluster.pods = {}

    @precondition(lambda self: self.head() is not None)
    @rule(how=st.sampled_from(["restart", "replace", "preempt", "oom"]))
    def head_breaks(self, how: str) -> None:
        name = self.head()
        assert name is not None
        pod = self.cluster.pods[name]
        changes: dict[str, dict[str, Any]] = {
            "restart": {"restarts": 1},
            "replace": {"uid": pod.uid + "x"},
            "preempt": {"disruption": "PreemptionByScheduler", "deleting": True, "grace": 330},
            "oom": {"terminated": "OOMKilled", "phase": "Failed"},
        }
        self.cluster.pods[name] = replace(pod, **changes[how])

    @rule(broken=st.sampled_from([False, False, True]))
    def storage_breaks_or_heals(self, broken: bool) -> None:
        self.cluster.storage_problem = Problem("StorageUnreachable", "no route") if broken else None

    @rule(suspend=st.sampled_from([False, False, False, True]))
    def user_suspends_or_resumes(self, suspend: bool) -> None:
        self.cluster.edit(suspend=suspend)

    @initialize(hold=st.booleans(), queue=st.booleans())
    def run_is_made(self, hold: bool, queue: bool) -> None:
        self.cluster = Cluster(make_run(**SPEC, scheduling={"queueName": "team"} if queue else {}), gpus=8)
        self.cluster.settle()
        if not hold:
            self.user_approves()

    @rule()
    def user_approves(self) -> None:
        self.cluster.edit(approved_stages=["short"])

    def started(self) -> int:
        """Stages that the API server holds fixed."""
        return sum(s.start_time is not None for s in self.status.stages)

    @precondition(lambda self: self.cluster.run.metadata.deletion_timestamp is None)
    @rule(later=st.lists(st.sampled_from(LATER), unique_by=lambda s: s.name, max_size=3))
    def user_edits_stages_that_have_not_started(self, later: list[Stage]) -> None:
        fixed = self.cluster.run.spec.stages[: max(self.started(), 1)]
        names = {s.name for s in fixed}
        self.cluster.edit(stages=[*fixed, *(s for s in later if s.name not in names)])

    @rule(dice=st.integers(0, 19))
    def user_deletes(self, dice: int) -> None:
        if dice == 10 and self.cluster.run.metadata.deletion_timestamp is None:
            self.cluster.delete()

    def is_gone(self) -> bool:
        meta = self.cluster.run.metadata
        return meta.deletion_timestamp is not None and not meta.finalizers

    @precondition(is_gone)
    @rule()
    def user_makes_the_run_again(self) -> None:
        self.runs += 1
        self.cluster.create_again(f"{UID[:-1]}{self.runs % 10}")
        self.ordinal, self.made_at_end, self.recorded = 0, None, {}
        self.used = self.wasted = 0.0
        self.shown = set()

    def teardown(self) -> None:
        """From wherever it is, the run converges once things hold still and time passes."""
        cluster = self.cluster
        cluster.storage_problem = cluster.seen_jobs = None
        cluster.kuberay = cluster.kubelet = True
        cluster.edit(suspend=False, approved_stages=["short"])
        for _ in range(60):
            cluster.settle()
            if is_terminal(self.status) or self.is_gone():
                break
            if self.has_job() and self.status.attempt is not None and self.status.attempt.state != "Leaving":
                self.queue_admits()
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
