"""A small simulated cluster and bucket for the planner: values only, no client, no clock.

`Cluster.step` does what the glue does: plan, write the status, carry out each action. It may be stopped after any
number of actions, as a killed process is. What is deleted goes in steps, as in a cluster: a RayJob stays until KubeRay
has let it go, its pods are then deleted, and each stays until its kubelet has ended it (`Cluster.others_act`). Either
may be away.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from plan_values import Meter, checkpoint, roundtrip
from run_manifests import run_manifest

from deepcoder_contracts.api.condition import Condition
from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.run import FINALIZER, DeepCoderRun
from deepcoder_contracts.api.run_status import Phase, RunStatus
from deepcoder_contracts.base import Digest
from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.gate import GateRecord
from deepcoder_contracts.progress import ProgressReport, TrainerPhase
from deepcoder_contracts.stage import StageType
from deepcoder_operator.domain import draft as d
from deepcoder_operator.domain.bounds import END_SECONDS
from deepcoder_operator.domain.conditions import find_condition
from deepcoder_operator.domain.plan import plan
from deepcoder_operator.domain.policy import Policy
from deepcoder_operator.domain.query import rayjob_in_doubt, storage_query
from deepcoder_operator.domain.terminal import is_terminal
from deepcoder_operator.domain.world import (
    Beat,
    ClusterView,
    PodView,
    PoolView,
    Problem,
    RayJobView,
    StorageView,
    StoredStage,
    World,
)
from deepcoder_operator.progress_board import shows_life

START = datetime(2026, 1, 1, tzinfo=UTC)
POD_SECONDS = 330
"""Grace of a head's pod."""
PROVISIONED = ClusterView("c", True)
UID = "01234567-89ab-4cde-8f01-23456789abcd"


def make_run(**spec: Any) -> DeepCoderRun:
    """A run as it is after creation, parsed."""
    manifest = run_manifest("ml", **spec)
    manifest["metadata"] |= {"uid": UID, "generation": 1, "resourceVersion": "1"}
    return DeepCoderRun.model_validate(manifest)


@dataclass
class Cluster:
    """Everything outside of the planner."""

    run: DeepCoderRun
    now: datetime = START
    jobs: dict[str, RayJobView] = field(default_factory=dict)
    pods: dict[str, PodView] = field(default_factory=dict)
    stored: dict[str, StoredStage] = field(default_factory=dict)
    exits: dict[int, ExitRecord] = field(default_factory=dict)
    beat: Beat | None = None
    storage_problem: Problem | None = None
    slow_bucket: bool = False
    """Whether the bucket's first answer comes too late for a new run's first status."""
    pool: PoolView | None = None
    foundation: int = 0
    made: list[str] = field(default_factory=list)
    deleted_run: bool = False
    artifacts_deleted: bool = False
    heads: int = 0
    ended: list[str] = field(default_factory=list)
    kuberay: bool = True
    """Whether KubeRay acts."""
    kubelet: bool = True
    """Whether the nodes' kubelets act."""
    seen_jobs: dict[str, RayJobView] | None = None
    """RayJobs as their watch, which is behind, has told of them; None: it is not. Pods have a watch of their own."""
    watching_since: datetime = START - timedelta(days=1)
    """When the operator's process began."""
    listening_since: datetime | None = START - timedelta(days=1)
    """When it first took the live attempt's reports."""
    heard: datetime | None = None
    """When a report of another run last came, where there are others."""
    provisioned: ClusterView = PROVISIONED
    """How KubeRay has its RayCluster."""
    obstacle: Problem | None = None
    """What the bucket refuses of what is carried out: the folder's deletion."""
    refused: Problem | None = None
    """What the pass before met of it."""
    events: list[d.EventRecord] = field(default_factory=list)
    post_mortems: list[d.SavePostMortem] = field(default_factory=list)
    parents: dict[Digest, Digest | None] = field(default_factory=dict)
    """Each checkpoint that was ever committed, and what it was made from."""
    questions: int = 0
    """Asked of storage."""
    meter: Meter = field(default_factory=Meter)
    withdrawal: str = ""
    """What the queue says when it takes its quota back."""
    gpus: int = 0
    """GPUs of each attempt's learner; none: an attempt has no such pod."""

    def world(self) -> World:
        """What a pass observes."""
        attempt = self.run.status.attempt
        name = attempt.name if attempt else None
        jobs = self.jobs if self.seen_jobs is None else self.seen_jobs
        mine = {n: j for n, j in jobs.items() if j.owner_uid == self.run.metadata.uid}
        world = World(
            rayjob=mine.get(name or "") or self.jobs.get(name or ""),
            strays=tuple(j for n, j in mine.items() if n != name),
            cluster=self.provisioned if name in self.jobs and not self.jobs[name].suspended else None,
            pods=tuple(self.pods.values()),
            pool=self.pool,
            beat=self.beat,
            watching_since=self.watching_since,
            listening_since=self.listening_since,
            heard=self.heard,
            obstacle=self.refused,
        )
        if attempt and rayjob_in_doubt(attempt, world):
            world = replace(world, rayjob=self.jobs.get(attempt.name))
        query = storage_query(self.run, world, self.now)
        if query is None:
            return world
        self.questions += 1
        if self.slow_bucket and FINALIZER not in self.run.metadata.finalizers:
            return world
        if self.storage_problem:
            return replace(world, storage=StorageView(problem=self.storage_problem), withdrawal=self.withdrawal)
        stage = None
        if query.stage_index is not None:
            found = self.stored.get(self.run.spec.stages[query.stage_index].name, StoredStage())
            stage = replace(found, exit=self.exits.get(query.ordinal or 0))
        return replace(world, storage=StorageView(stage=stage), withdrawal=self.withdrawal)

    def decide(self) -> d.Plan:
        """One plan, nothing carried out."""
        return plan(self.run, self.world(), self.now, Policy(operator_version="test"))

    def step(self, actions: int | None = None, *, lose_status: bool = False) -> d.Plan:
        """One pass; `actions` stops it after so many, `lose_status` before the status is written."""
        decided = self.decide()
        if any(e.reason == "Evicted" for e in decided.events):
            assert self.jobs[self.name].suspended, "it has its quota"
        if lose_status:
            return decided
        if decided.status != self.run.status:
            self.run = self.run.model_copy(update={"status": roundtrip(decided.status)})
        self.meter.read(self.pods.values(), self.now)
        self.events.extend(decided.events)
        self.refused = None
        for action in decided.actions[:actions]:
            if isinstance(action, d.DeleteArtifacts) and self.obstacle is not None:
                self.refused = self.obstacle
                break
            self.carry_out(action)
        return decided

    def carry_out(self, action: d.Action) -> None:
        """What the API server and the bucket would do."""
        meta = self.run.metadata
        match action:
            case d.AddFinalizer():
                self.run = self.run.model_copy(update={"metadata": meta.model_copy(update={"finalizers": [FINALIZER]})})
            case d.RemoveFinalizer():
                self.run = self.run.model_copy(update={"metadata": meta.model_copy(update={"finalizers": []})})
                assert all(j.deleting for j in self.jobs.values() if j.owner_uid == meta.uid), "let go while it works"
            case d.EnsureRunObjects():
                self.foundation += 1
            case d.EnsurePool():
                if self.run.spec.sandbox.template is not None:
                    self.pool = self.pool or PoolView(
                        "demo-sandbox", True, uid=f"pool-{self.foundation}-{self.heads}", owner_uid=meta.uid
                    )
            case d.CreateAttempt(attempt):
                assert not is_terminal(self.run.status), "a child after the end"
                if attempt.name not in self.jobs:
                    self.made.append(attempt.name)
                    self.jobs[attempt.name] = RayJobView(
                        attempt.name, f"{meta.uid}-{len(self.made)}", meta.uid, attempt.ordinal,
                        deployment_status="Initializing", suspended=bool(self.run.spec.scheduling.queue_name),
                        queue=self.run.spec.scheduling.queue_name or "",
                        asked_queue=self.run.spec.scheduling.queue_name or "",
                    )  # fmt: skip
                    if self.seen_jobs is not None:
                        self.seen_jobs[attempt.name] = self.jobs[attempt.name]
            case d.SavePostMortem():
                self.post_mortems.append(action)
            case d.DeleteRayJob(name, uid):
                if name in self.jobs and self.jobs[name].uid == uid:
                    self.jobs[name] = replace(self.jobs[name], deleting=True)
            case d.EndPods(pods):
                self.ended = [*self.ended, *(name for name, _ in pods)]
                for name, uid in pods:
                    if name in self.pods and self.pods[name].uid == uid:
                        self.end_pod(name, END_SECONDS)
            case d.DeletePool(name, uid):
                if self.pool is not None and (self.pool.name, self.pool.uid) == (name, uid):
                    self.pool = replace(self.pool, deleting=True)
            case d.DeleteArtifacts():
                self.artifacts_deleted = True
            case d.DeleteRun():
                self.deleted_run = True

    def end_pod(self, name: str, grace: int = POD_SECONDS) -> None:
        """Somebody deletes a pod; grace only ever shrinks."""
        pod = self.pods.get(name)
        if pod is not None:
            known = pod.grace if pod.deleting and pod.grace is not None else grace
            self.pods[name] = replace(pod, deleting=True, grace=min(grace, known))

    def others_act(self) -> bool:
        """KubeRay and the kubelets do one thing each, if there is one; whether there was."""
        ending = [n for n, p in self.pods.items() if p.deleting] if self.kubelet else []
        for name in ending:
            del self.pods[name]
        acted = bool(ending)
        known = {j.ordinal for j in self.jobs.values()}
        for name in [n for n, p in self.pods.items() if p.ordinal not in known and not p.deleting]:
            self.end_pod(name)  # what a job of before has left is garbage
            acted = True
        going = [n for n, j in self.jobs.items() if j.deleting or j.suspended] if self.kuberay else []
        if self.pool is not None and self.pool.deleting:
            self.pool, acted = None, True
        for name in going:
            job = self.jobs[name]
            for pod in [n for n, p in self.pods.items() if p.ordinal == job.ordinal and not p.deleting]:
                self.end_pod(pod)
                acted = True
            if job.deleting:
                del self.jobs[name]
                acted = True
        return acted

    def settle(self, limit: int = 30) -> None:
        """Passes until nothing changes at this moment."""
        for _ in range(limit):
            before = self.run
            decided = self.step()
            acted = self.others_act()
            if self.run == before and not decided.actions and not acted:
                return
        raise AssertionError(f"no rest after {limit} passes: {self.run.status}")

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    @property
    def name(self) -> str:
        """The live attempt's RayJob."""
        assert self.run.status.attempt is not None
        return self.run.status.attempt.name

    def change_job(self, **changes: Any) -> None:
        """KubeRay writes the RayJob's status."""
        self.jobs[self.name] = replace(self.jobs[self.name], **changes)

    def start_job(self) -> None:
        """KubeRay makes the cluster and starts the job."""
        attempt = self.run.status.attempt
        assert attempt is not None
        self.heads += 1
        name = f"{attempt.name}-head"
        if name in self.pods:
            name += f"-{self.heads}"
        self.pods[name] = PodView(name, f"head-{self.heads}", "head", attempt.ordinal, phase="Running", ready=True)
        if self.gpus:
            worker = f"{attempt.name}-learner-{self.heads}"
            self.pods[worker] = PodView(
                worker, f"learner-{self.heads}", "learner", attempt.ordinal, phase="Running", ready=True,
                gpus=self.gpus, scheduled=self.now,
            )  # fmt: skip
        self.change_job(job_status="RUNNING", deployment_status="Running", suspended=False)

    def report(
        self,
        step: int,
        *,
        pod: PodView | None = None,
        phase: TrainerPhase = TrainerPhase.TRAINING,
        **metrics: float,
    ) -> None:
        """The trainer sends a heartbeat, from the head that it runs on."""
        attempt = self.run.status.attempt
        assert attempt is not None
        stage = self.run.spec.stages[attempt.stage_index]
        report = ProgressReport(
            ordinal=attempt.ordinal, stage=stage.name, phase=phase, step=step,
            max_steps=stage.max_steps or 0, metrics=metrics, sent_at=self.now,
        )  # fmt: skip
        head = pod or self.pods.get(f"{attempt.name}-head")
        uid = head.uid if head else None
        before = self.beat if self.beat and self.beat.pod_uid == uid else None
        alive = self.now if before is None or shows_life(before.report, report) else before.alive
        self.beat = Beat(report, self.now, uid, alive)

    def save(self, step: int, *, final: bool = False, gate: GateRecord | None = None, **metrics: float) -> None:
        """The trainer commits a checkpoint (or the results of an evaluation)."""
        attempt = self.run.status.attempt
        assert attempt is not None
        stage = self.run.spec.stages[attempt.stage_index]
        if stage.type is StageType.EVALUATE:
            self.stored[stage.name] = StoredStage(evaluated=True, metrics=metrics)
            return
        before = self.stored[stage.name].newest if stage.name in self.stored else None
        if before is not None:
            parent = before.parent_digest if (before.step, before.ordinal) == (step, attempt.ordinal) else before.digest
        else:
            parent = attempt.parent.digest if attempt.parent else None
        made = checkpoint(stage.name, step, attempt.ordinal, final=final, at=self.now, parent=parent)
        self.parents[made.digest] = parent
        self.stored[stage.name] = StoredStage(newest=made, gate=gate, metrics=metrics)

    def leave(self, code: int, reason: str = "Crashed") -> None:
        """The trainer writes exit.json and ends; KubeRay sees it."""
        attempt = self.run.status.attempt
        assert attempt is not None
        self.write_exit(code, reason)
        self.change_job(
            job_status="FAILED" if code else "SUCCEEDED", deployment_status="Failed" if code else "Complete"
        )

    def write_exit(self, code: int, reason: str = "Crashed") -> None:
        """The trainer writes exit.json from the head that it runs on; the RayJob's status says nothing yet."""
        attempt = self.run.status.attempt
        assert attempt is not None
        head = self.pods.get(f"{attempt.name}-head")
        self.exits[attempt.ordinal] = ExitRecord(code=code, reason=reason, pod_uid=head.uid if head else None)

    def finish_stage(self, **metrics: float) -> None:
        """Run the live attempt to its stage's end, and settle."""
        self.start_job()
        self.settle()
        self.save(20, final=True, gate=None, **metrics)
        self.leave(0, "Completed")
        self.settle()

    def edit(self, **spec: Any) -> None:
        """A user edits the spec."""
        meta = self.run.metadata.model_copy(update={"generation": self.run.metadata.generation + 1})
        self.run = self.run.model_copy(update={"spec": self.run.spec.model_copy(update=spec), "metadata": meta})

    def delete(self) -> None:
        """A user deletes the run."""
        stamp = self.now.isoformat()
        self.run = self.run.model_copy(
            update={"metadata": self.run.metadata.model_copy(update={"deletion_timestamp": stamp})}
        )

    def create_again(self, uid: str) -> None:
        """A user makes a run of the same name; what is left of the old one is not seen but in its way."""
        meta = {"uid": uid, "generation": 1, "finalizers": [], "deletion_timestamp": None}
        self.run = self.run.model_copy(
            update={"metadata": self.run.metadata.model_copy(update=meta), "status": RunStatus()}
        )
        self.pods, self.stored, self.exits, self.beat, self.pool, self.meter = {}, {}, {}, None, None, Meter()
        self.parents = {}
        self.made = []


def running(**spec: object) -> Cluster:
    """A run whose first attempt runs."""
    cluster = Cluster(make_run(**spec))
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    return cluster


def condition_of(cluster: Cluster, kind: str) -> Condition:
    """What the run says of itself."""
    found = find_condition(cluster.run.status.conditions, kind)
    assert found is not None
    return found


def reason(cluster: Cluster, condition: str = "Progressing") -> str:
    """Why a condition is as it is."""
    return condition_of(cluster, condition).reason


def failed_of(cluster: Cluster) -> FailureReason:
    """What the last attempt failed of."""
    assert cluster.run.status.backoff is not None, cluster.run.status.phase
    return cluster.run.status.backoff.reason
