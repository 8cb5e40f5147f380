"""What a pass asks the API server: nothing that makes no difference, since a thousand runs ask it each some seconds."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import plan_world
import pytest
from plan_world import START, Cluster

from deepcoder_contracts.api.run import FINALIZER, DeepCoderRun
from deepcoder_contracts.api.stage import WorkerGroup
from deepcoder_operator.board import ProgressBoard
from deepcoder_operator.controllers import observe
from deepcoder_operator.controllers.observe import Children, Observer
from deepcoder_operator.domain.world import Problem, StorageView, StoredStage, World
from deepcoder_operator.storage.s3 import Credentials

PROBLEM = Problem("SecretNotFound", "create it")


@dataclass
class API:
    """Has little, and counts what is looked for."""

    asked: Counter[str] = field(default_factory=Counter)
    objects: dict[str, Any] = field(default_factory=dict)

    async def find(self, resource: Any, namespace: str, name: str) -> Any:
        self.asked[resource.kind] += 1
        return self.objects.get(name)


@dataclass
class Cache:
    """What a watch has told so far."""

    objects: list[Any] = field(default_factory=list)

    def get(self, namespace: str, name: str) -> None:
        return None

    def group(self, key: str) -> list[Any]:
        return list(self.objects)

    def observe(self, obj: Any) -> None:
        self.objects = [obj if o["metadata"]["name"] == obj["metadata"]["name"] else o for o in self.objects]


@dataclass
class Storage:
    problem: Problem | None = None
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    """Not set: it does not answer."""
    meanwhile: Callable[[], None] = lambda: None
    """Happens while it is asked."""
    asked: int = 0
    given_up: int = 0

    @asynccontextmanager
    async def aside(self) -> AsyncIterator[None]:
        yield

    async def credentials(self, *_: Any) -> Credentials:
        return Credentials("AKIDEXAMPLE", "the-secret-of-s3")

    async def answer(self, *_: Any) -> StorageView:
        self.asked += 1
        self.meanwhile()
        try:
            await self.answers.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return StorageView(problem=self.problem, stage=None if self.problem else StoredStage())


class Ground:
    def __init__(self) -> None:
        self.api, self.storage, self.now = API(), Storage(), START
        self.storage.answers.set()
        api: Any = self.api
        storage: Any = self.storage
        self.jobs, self.pods, self.others = Cache(), Cache(), Cache()
        jobs: Any = self.jobs
        pods: Any = self.pods
        others: Any = self.others
        self.observer = Observer(api, Children(jobs, others, pods, others), ProgressBoard(), storage)

    async def look(self, run: DeepCoderRun, *, outdated: bool = False) -> World:
        self.api.asked.clear()
        return await self.observer.observe(run, lambda: self.now, None, lambda: outdated)


@pytest.fixture
def ground() -> Ground:
    return Ground()


def make_run(**spec: Any) -> DeepCoderRun:
    """A run that has its finalizer."""
    run = plan_world.make_run(**spec)
    return run.model_copy(update={"metadata": run.metadata.model_copy(update={"finalizers": [FINALIZER]})})


async def test_run_that_is_seen_for_the_first_time_asks_nothing(ground: Ground) -> None:
    """Its first pass only sees to it that it cannot go unnoticed."""
    world = await ground.look(plan_world.make_run())
    assert world.storage is None
    assert ground.api.asked == {}


async def test_run_whose_bucket_is_not_as_it_should_be_is_looked_for_nowhere_else_but_at_its_pool(
    ground: Ground,
) -> None:
    ground.storage.problem = PROBLEM
    world = await ground.look(make_run())
    assert world.storage is not None
    assert (world.storage.problem, world.refusal) == (PROBLEM, None)
    assert ground.api.asked == {}
    ground.storage.problem = None
    await ground.look(make_run())
    assert ground.api.asked == {"SandboxPool": 1, "ConfigMap": 1, "ServiceAccount": 1, "NetworkPolicy": 1}


async def test_pool_that_a_waiting_run_refers_to_is_looked_for_live(ground: Ground) -> None:
    """It may have been made a moment ago, and the run would say that there is none."""
    ground.storage.problem = PROBLEM
    await ground.look(make_run(sandbox={"poolRef": {"name": "judges"}}))
    assert ground.api.asked == {"SandboxPool": 1}


async def test_suspended_run_asks_nothing(ground: Ground) -> None:
    world = await ground.look(make_run(suspend=True))
    assert world.storage is None
    assert ground.api.asked == {}


async def test_templates_are_built_once_for_each_version_of_the_spec(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []

    def check(run: DeepCoderRun) -> Problem:
        built.append(run.metadata.generation)
        return Problem("TemplateRefused", f"of version {run.metadata.generation}")

    monkeypatch.setattr(observe, "check_templates", check)
    run = make_run()
    for _ in range(3):
        world = await ground.look(run)
        assert world.refusal == Problem("TemplateRefused", "of version 1")
    newer = run.model_copy(update={"metadata": run.metadata.model_copy(update={"generation": 2})})
    assert (await ground.look(newer)).refusal == Problem("TemplateRefused", "of version 2")
    assert built == [1, 2]


async def test_templates_of_many_runs_are_remembered_within_bounds(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "_REMEMBERED", 3)
    run = make_run()
    for number in range(10):
        await ground.look(run.model_copy(update={"metadata": run.metadata.model_copy(update={"uid": f"u{number}"})}))
    assert list(ground.observer._checked) == ["u7", "u8", "u9"]


def job_object(cluster: Cluster, **spec: Any) -> dict[str, Any]:
    """The live attempt's RayJob, as the API server has it."""
    attempt = cluster.run.status.attempt
    assert attempt is not None
    uid = cluster.run.metadata.uid
    return {
        "metadata": {"name": attempt.name, "namespace": "ml", "uid": attempt.uid, "resourceVersion": "1",
                     "labels": {"deepcoder.dev/ordinal": "1"}, "ownerReferences": [{"uid": uid, "controller": True}]},
        "spec": spec,
        "status": {"jobStatus": "RUNNING"},
    }  # fmt: skip


def head_object(cluster: Cluster) -> dict[str, Any]:
    """The live attempt's head."""
    head = cluster.pods[f"{cluster.name}-head"]
    labels = {"deepcoder.dev/ordinal": "1", "deepcoder.dev/role": "head"}
    return {"metadata": {"name": head.name, "uid": head.uid, "labels": labels}, "spec": {"containers": []},
            "status": {"phase": "Running"}}  # fmt: skip


def training(ground: Ground, *, drains: bool = False, admitted: bool = True) -> Cluster:
    """A run whose attempt runs and has been admitted, as the caches show it."""
    cluster = Cluster(make_run(scheduling={"queueName": "team"}))
    cluster.settle()
    cluster.start_job()
    if admitted:
        cluster.settle()
    if drains:
        cluster.edit(suspend=True)
        cluster.settle()
    ground.jobs.objects, ground.pods.objects = [job_object(cluster, suspend=False)], [head_object(cluster)]
    ground.api.objects = {cluster.name: ground.jobs.objects[0]}
    ground.now = cluster.now
    return cluster


@pytest.mark.parametrize("admitted", [True, False])
async def test_job_that_is_seen_suspended_beside_its_pods_is_read_live(ground: Ground, admitted: bool) -> None:
    """Its watch may lag behind that of pods: an attempt that was just admitted would pass for an evicted one."""
    cluster = training(ground, admitted=admitted)
    ground.jobs.objects = [job_object(cluster, suspend=True)]
    world = await ground.look(cluster.run)
    assert world.rayjob is not None
    assert not world.rayjob.suspended
    assert ground.api.asked["RayJob"] == 1
    await ground.look(cluster.run)
    assert ground.api.asked["RayJob"] == 0, "what was read is kept"


async def test_pod_that_has_the_heads_name_is_the_runs_own_or_none_of_its(ground: Ground) -> None:
    """What is left of attempts that are over is ended: another run's may have got the name since."""
    cluster = training(ground)
    head, ground.pods.objects = head_object(cluster), []
    assert cluster.run.status.attempt is not None
    assert cluster.run.status.attempt.head_pod == head["metadata"]["name"]
    for uid, seen in ((cluster.run.metadata.uid, 1), ("another-run", 0)):
        labels = head["metadata"]["labels"] | {"deepcoder.dev/run-uid": uid}
        ground.api.objects[head["metadata"]["name"]] = head | {"metadata": head["metadata"] | {"labels": labels}}
        assert len((await ground.look(cluster.run)).pods) == seen


async def test_job_that_is_suspended_indeed_is_seen_so(ground: Ground) -> None:
    cluster = training(ground)
    ground.jobs.objects = [job_object(cluster, suspend=True)]
    ground.api.objects = {cluster.name: ground.jobs.objects[0]}
    world = await ground.look(cluster.run)
    assert world.rayjob is not None
    assert world.rayjob.suspended
    ground.api.objects = {}
    assert (await ground.look(cluster.run)).rayjob is None


async def test_queued_job_without_pods_is_believed(ground: Ground) -> None:
    cluster = Cluster(make_run(scheduling={"queueName": "team"}))
    cluster.settle()
    ground.jobs.objects = [job_object(cluster, suspend=True)]
    await ground.look(cluster.run)
    assert ground.api.asked["RayJob"] == 0


async def test_children_are_seen_as_they_are_after_storage_has_answered(ground: Ground) -> None:
    cluster = training(ground, drains=True)

    def ends() -> None:
        ground.pods.objects = []
        ground.now += timedelta(seconds=100)

    ground.storage.meanwhile = ends
    world = await ground.look(cluster.run)
    assert ground.storage.asked == 1
    assert world.storage is not None
    assert world.pods == ()
    assert world.seen_at == cluster.now + timedelta(seconds=100)


async def test_eviction_is_seen_while_storage_does_not_answer(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its queue could admit the same RayJob again, and a second head would write under the ordinal."""
    monkeypatch.setattr(observe, "LOOK_SECONDS", 0.01)
    ground.storage.answers.clear()
    cluster = training(ground)
    suspended = job_object(cluster, suspend=True)

    def evict() -> None:
        ground.jobs.objects, ground.api.objects = [suspended], {cluster.name: suspended}

    ground.storage.meanwhile = evict
    ground.now += timedelta(days=1)  # Long enough to be stalled: storage is asked before the verdict.
    async with asyncio.timeout(5):
        world = await ground.look(cluster.run)
    await asyncio.sleep(0)
    assert (ground.storage.asked, ground.storage.given_up) == (1, 1)
    assert world.storage is None
    assert world.rayjob is not None
    assert world.rayjob.suspended
    ground.storage.meanwhile = lambda: None
    async with asyncio.timeout(5):
        await ground.look(cluster.run)
    assert ground.storage.asked == 1, "what is decided without storage does not ask it"


async def test_drain_ends_at_its_deadline_while_storage_does_not_answer(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "LOOK_SECONDS", 0.01)
    ground.storage.answers.clear()
    cluster = training(ground, drains=True)
    attempt = cluster.run.status.attempt
    assert attempt is not None
    assert attempt.drain_deadline is not None
    looking = asyncio.ensure_future(ground.look(cluster.run))
    ground.now = attempt.drain_deadline
    await asyncio.sleep(0.1)
    assert not looking.done()
    ground.now += timedelta(seconds=observe.LAST_LOOK_SECONDS)
    async with asyncio.timeout(5):
        world = await looking
    assert (world.storage, world.seen_at) == (None, ground.now)


async def test_run_that_was_edited_meanwhile_does_not_wait_for_storage(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "LOOK_SECONDS", 0.01)
    ground.storage.answers.clear()
    cluster = training(ground, drains=True)
    async with asyncio.timeout(5):
        world = await ground.look(cluster.run, outdated=True)
    assert world.storage is None


async def test_node_that_is_not_reached_is_told_by_its_pods_condition(ground: Ground) -> None:
    cluster = training(ground)
    for status, unreachable in (("True", False), ("False", False), ("Unknown", True)):
        head = head_object(cluster)
        head["status"]["conditions"] = [{"type": "Ready", "status": status}]
        ground.pods.objects = [head]
        assert [p.unreachable for p in (await ground.look(cluster.run)).pods] == [unreachable]


def secret(**values: str) -> dict[str, Any]:
    return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}}


def crashed(ground: Ground, said: str) -> Cluster:
    """A run whose trainer has crashed, and what its RayJob says of that."""
    cluster = training(ground)
    ground.api.objects["s3"] = secret(AWS_SECRET_ACCESS_KEY="the-secret-of-s3")
    job = job_object(cluster, suspend=False)
    job["status"] = {"jobStatus": "FAILED", "message": said}
    ground.jobs.objects = [job]
    return cluster


async def test_last_words_of_a_trainer_are_quoted_without_secrets_wherever_they_are_cut(ground: Ground) -> None:
    template = {
        "spec": {"containers": [{"name": "ray-head", "env": [{"name": "TRACKER_TOKEN", "value": "a-literal"}]}]}
    }
    head = {"spec": {"containers": [{"name": "ray-head", "envFrom": [{"secretRef": {"name": "wandb"}}]}]}}
    secrets = ["the-secret-of-s3", "key-of-the-team", "a-literal", "hf_AbCdEfGhIjKlMnOpQrSt", "token-of-the-judges"]
    cluster = crashed(ground, "".join(f"{'x' * i} {s} " for i in range(40) for s in secrets))
    ground.api.objects["wandb"] = secret(key="key-of-the-team")
    stage = cluster.run.spec.stages[0]
    with_templates = stage.resources.model_copy(
        update={
            "head": stage.resources.head.model_copy(update={"template": head}),
            "samplers": WorkerGroup(template=template),
        }
    )
    spec = cluster.run.spec.model_copy(update={"stages": [stage.model_copy(update={"resources": with_templates})]})
    ground.api.objects["demo-sandbox-token"] = secret(token="token-of-the-judges")
    job = (await ground.look(cluster.run.model_copy(update={"spec": spec}))).rayjob
    assert job is not None
    assert "[redacted]" in job.message
    for value in secrets:
        parts = {value[i : i + 6] for i in range(len(value) - 5)}
        assert not [part for part in parts if part in job.message], value


async def test_last_words_are_left_out_where_a_secret_in_them_cannot_be_known(ground: Ground) -> None:
    cluster = crashed(ground, "login with the-secret-of-s3")
    del ground.api.objects["s3"]
    job = (await ground.look(cluster.run)).rayjob
    assert job is not None
    assert job.job_status == "FAILED"
    assert "the-secret" not in job.message
    assert job.message.endswith("Secret s3 is gone")
    ground.api.objects["s3"] = secret(AWS_SECRET_ACCESS_KEY="the-secret-of-s3")
    job = (await ground.look(cluster.run)).rayjob
    assert job is not None
    assert job.message == "login with [redacted]", "it is known again"


async def test_secrets_are_read_once_for_what_a_job_says(ground: Ground) -> None:
    cluster = crashed(ground, "Traceback")
    asked = []
    for _ in range(3):
        await ground.look(cluster.run)
        asked.append(ground.api.asked["Secret"])
    assert asked == [2, 0, 0], "the bucket's, and the judges' token"


async def test_of_what_a_thousand_jobs_have_said_only_what_may_be_quoted_is_kept(ground: Ground) -> None:
    """Ray puts up to twenty thousand letters of a driver's log into its job's message."""
    cluster = crashed(ground, "")
    job = ground.jobs.objects[0]
    for number in range(20):
        meta = job["metadata"] | {"uid": f"job-{number}"}
        ground.jobs.objects = [job | {"metadata": meta, "status": job["status"] | {"message": f"{number} " * 20_000}}]
        await ground.look(cluster.run)
    kept = ground.observer._told
    assert len(kept) == 20
    assert sum(len(part) for each in kept.values() for part in each) < 20 * 1000
