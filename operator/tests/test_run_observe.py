"""What a pass asks the API server: nothing that makes no difference, since a thousand runs ask it each some seconds."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import plan_world
import pytest
from observe_harness import Harness, head_object, job_object, make_run, training
from plan_world import Cluster

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.progress import ProgressReply, ProgressReport, TrainerPhase
from deepcoder_operator.controllers import observe
from deepcoder_operator.controllers.observe import run_group
from deepcoder_operator.domain.world import Problem
from deepcoder_operator.kube.informer import Informer
from deepcoder_operator.kube.resources import PODS, RAYJOBS
from deepcoder_operator.progress_board import Heartbeat, RunKey

PROBLEM = Problem("SecretNotFound", "create it")


@pytest.fixture
def harness() -> Harness:
    return Harness()


async def test_first_status_of_a_run_does_not_wait_for_a_slow_bucket(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run without a status looks as if there were no operator."""
    monkeypatch.setattr(observe, "LOOK_SECONDS", 0.05)
    harness.storage.answers.clear()
    world = await harness.look(plan_world.make_run())
    assert world.storage is None
    await asyncio.sleep(0)
    assert harness.storage.given_up == 1, "it is asked again by the next pass, which waits"
    assert harness.api.asked == {}
    harness.storage.answers.set()
    world = await harness.look(plan_world.make_run())
    assert world.storage is not None


async def test_run_whose_bucket_is_not_as_it_should_be_is_looked_for_nowhere_else_but_at_its_pool(
    harness: Harness,
) -> None:
    harness.storage.problem = PROBLEM
    world = await harness.look(make_run())
    assert world.storage is not None
    assert (world.storage.problem, world.refusal) == (PROBLEM, None)
    assert harness.api.asked == {}
    harness.storage.problem = None
    await harness.look(make_run())
    assert harness.api.asked == {"SandboxPool": 1, "ConfigMap": 1, "ServiceAccount": 1, "NetworkPolicy": 1}


@pytest.mark.parametrize(
    ("owner", "reason"),
    [
        ({"kind": "DeepCoderRun", "name": "demo"}, "StillEnding"),
        ({"kind": "DeepCoderRun", "name": "other"}, "NameConflict"),
        ({"kind": "Job", "name": "demo"}, "NameConflict"),
        (None, "NameConflict"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("ConfigMap", "demo-config"), ("ServiceAccount", "demo-trainer"),
        ("NetworkPolicy", "demo-trainer"), ("SandboxPool", "demo-sandbox"),
    ],
)  # fmt: skip
async def test_name_that_a_run_needs_is_another_owners_or_a_deleted_namesakes_for_a_moment(
    harness: Harness, owner: dict[str, Any] | None, reason: str, kind: str, name: str
) -> None:
    """Whoever replaces a run (kubectl replace --force) has nothing to delete and needs no other name."""
    owners = [owner | {"uid": "another", "controller": True}] if owner else []
    harness.api.kinds[kind, name] = {"metadata": {"name": name, "ownerReferences": owners}}
    refusal = (await harness.look(make_run())).refusal
    assert refusal is not None
    assert refusal.reason == reason
    assert f"{kind} {name}" in refusal.message


async def test_pool_that_a_waiting_run_refers_to_is_looked_for_live(harness: Harness) -> None:
    """It may have been made a moment ago, and the run would say that there is none."""
    harness.storage.problem = PROBLEM
    await harness.look(make_run(sandbox={"poolRef": {"name": "judges"}}))
    assert harness.api.asked == {"SandboxPool": 1}


async def test_pool_of_a_live_attempt_is_seen_though_the_spec_names_other_judges(harness: Harness) -> None:
    cluster = training(harness)
    hosted = make_run(sandbox={"together": {"credentialsSecretRef": {"name": "together"}}}).spec.sandbox
    cluster.edit(sandbox=hosted)
    harness.api.kinds["SandboxPool", "demo-sandbox"] = {"metadata": {"name": "demo-sandbox", "uid": "p"}}
    world = await harness.look(cluster.run)
    assert world.pool is not None
    assert world.pool.name == "demo-sandbox"


async def test_suspended_run_asks_nothing(harness: Harness) -> None:
    world = await harness.look(make_run(suspend=True))
    assert world.storage is None
    assert harness.api.asked == {}


async def test_templates_are_built_once_for_each_version_of_the_spec(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []

    def check(run: DeepCoderRun) -> Problem:
        built.append(run.metadata.generation)
        return Problem("TemplateRefused", f"of version {run.metadata.generation}")

    monkeypatch.setattr(observe, "check_templates", check)
    run = make_run()
    for _ in range(3):
        world = await harness.look(run)
        assert world.refusal == Problem("TemplateRefused", "of version 1")
    newer = run.model_copy(update={"metadata": run.metadata.model_copy(update={"generation": 2})})
    assert (await harness.look(newer)).refusal == Problem("TemplateRefused", "of version 2")
    assert built == [1, 2]


async def test_templates_of_many_runs_are_remembered_within_bounds(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "_REMEMBERED", 3)
    run = make_run()
    for number in range(10):
        await harness.look(run.model_copy(update={"metadata": run.metadata.model_copy(update={"uid": f"u{number}"})}))
    assert list(harness.observer._checked) == ["u7", "u8", "u9"]


@pytest.mark.parametrize("admitted", [True, False])
async def test_job_that_is_seen_suspended_beside_its_pods_is_read_live(harness: Harness, admitted: bool) -> None:
    """Its watch may lag behind that of pods: an attempt that was just admitted would pass for an evicted one."""
    cluster = training(harness, admitted=admitted)
    harness.jobs.objects = [job_object(cluster, suspend=True)]
    world = await harness.look(cluster.run)
    assert world.rayjob is not None
    assert not world.rayjob.suspended
    assert harness.api.asked["RayJob"] == 1
    await harness.look(cluster.run)
    assert harness.api.asked["RayJob"] == 0, "what was read is kept"


async def test_pod_that_has_the_heads_name_is_the_runs_own_or_none_of_its(harness: Harness) -> None:
    """What is left of attempts that are over is ended: another run's may have got the name since."""
    cluster = training(harness)
    head, harness.pods.objects = head_object(cluster), []
    assert cluster.run.status.attempt is not None
    assert cluster.run.status.attempt.head_pod == head["metadata"]["name"]
    for uid, seen in ((cluster.run.metadata.uid, 1), ("another-run", 0)):
        labels = head["metadata"]["labels"] | {"deepcoder.dev/run-uid": uid}
        harness.api.objects[head["metadata"]["name"]] = head | {"metadata": head["metadata"] | {"labels": labels}}
        assert len((await harness.look(cluster.run)).pods) == seen


async def test_what_another_namespace_labels_as_the_runs_is_none_of_its(harness: Harness) -> None:
    """Whoever knows the run's UID and creates pods elsewhere could else end its attempts, with a head that failed."""
    cluster = training(harness)
    kube: Any = None
    informers = {r: Informer(kube, r, "", lambda _: None, index=run_group) for r in (RAYJOBS, PODS)}
    harness.observer.children.rayjobs, harness.observer.children.pods = informers[RAYJOBS], informers[PODS]
    label = {"deepcoder.dev/run-uid": cluster.run.metadata.uid}
    for resource, own in ((RAYJOBS, job_object(cluster)), (PODS, head_object(cluster))):
        own["metadata"] |= {"labels": own["metadata"]["labels"] | label, "namespace": "ml", "resourceVersion": "1"}
        foreign = own["metadata"] | {"namespace": "other", "uid": "theirs", "resourceVersion": "2"}
        informers[resource].observe(own)
        informers[resource].observe(own | {"metadata": foreign})
    world = await harness.look(cluster.run)
    assert world.rayjob is not None
    assert world.rayjob.uid != "theirs"
    assert world.strays == ()
    assert [pod.uid for pod in world.pods] == [head_object(cluster)["metadata"]["uid"]]


async def test_copy_of_a_job_with_the_runs_labels_is_none_of_the_runs_nor_are_its_pods(harness: Harness) -> None:
    """Somebody looks into a failure with it. What of it counted as the run's would be ended, again and again."""
    cluster = training(harness)
    job, head = job_object(cluster), head_object(cluster)
    own = job["metadata"]["ownerReferences"]

    def named(obj: dict[str, Any], name: str, owners: list[Any]) -> dict[str, Any]:
        return obj | {"metadata": obj["metadata"] | {"name": name, "uid": f"uid of {name}", "ownerReferences": owners}}

    def under(name: str) -> list[Any]:
        return [{"uid": f"uid of {name}", "controller": True}]

    orphaned = named(job, cluster.name, [])  # the attempt's own, of a run that is deleted with --cascade=orphan
    harness.jobs.objects = [orphaned, named(job, "copy", []), named(job, "left", own)]
    owners = ("copy", "left", cluster.name, "a job that is not known")
    harness.others.objects = [named(job, f"cluster of {owner}", under(owner)) for owner in owners]
    made = [*(f"cluster of {owner}" for owner in owners), "a cluster that is not known"]
    harness.pods.objects = [named(head, f"pod of {name}", under(name)) for name in made]
    world = await harness.look(cluster.run)
    assert [job.name for job in world.strays] == ["left"]
    assert {pod.name for pod in world.pods} == {f"pod of {name}" for name in made[1:]}


async def test_job_that_is_suspended_indeed_is_seen_so(harness: Harness) -> None:
    cluster = training(harness)
    harness.jobs.objects = [job_object(cluster, suspend=True)]
    harness.api.objects = {cluster.name: harness.jobs.objects[0]}
    world = await harness.look(cluster.run)
    assert world.rayjob is not None
    assert world.rayjob.suspended
    harness.api.objects = {}
    assert (await harness.look(cluster.run)).rayjob is None


def stopped(cluster: Cluster, note: str, *, at: str, uid: str | None = None) -> dict[str, Any]:
    """Kueue's event on a RayJob."""
    attempt = cluster.run.status.attempt
    assert attempt is not None
    return {"metadata": {"creationTimestamp": at}, "reason": "Stopped", "note": note,
            "regarding": {"name": attempt.name, "uid": uid or attempt.uid}}  # fmt: skip


async def test_what_a_queue_says_of_an_attempt_that_it_stopped_before_it_ran_is_read_once_it_is_gone(
    harness: Harness,
) -> None:
    cluster = Cluster(make_run(scheduling={"queueName": "team"}))
    cluster.settle()
    cluster.change_job(suspended=False)
    cluster.settle()
    cluster.change_job(suspended=True)
    cluster.step()
    harness.api.events = [
        stopped(cluster, "Not admitted by cluster queue", at="2026-01-01T00:00:00Z"),
        stopped(cluster, "Exceeded the PodsReady timeout", at="2026-01-01T00:05:00Z"),
        stopped(cluster, "of a job before", at="2026-01-01T00:09:00Z", uid="another"),
    ]
    world = await harness.look(cluster.run)
    assert world.withdrawal == "Exceeded the PodsReady timeout"
    assert harness.api.asked["Event"] == 1
    harness.api.events = None
    assert (await harness.look(cluster.run)).withdrawal == "", "it settles without what cannot be read"


async def test_queued_job_without_pods_is_believed(harness: Harness) -> None:
    cluster = Cluster(make_run(scheduling={"queueName": "team"}))
    cluster.settle()
    harness.jobs.objects = [job_object(cluster, suspend=True)]
    await harness.look(cluster.run)
    assert harness.api.asked["RayJob"] == 0


async def test_children_are_seen_as_they_are_after_storage_has_answered(harness: Harness) -> None:
    cluster = training(harness, drains=True)

    def ends() -> None:
        harness.pods.objects = []
        harness.now += timedelta(seconds=100)

    harness.storage.meanwhile = ends
    world = await harness.look(cluster.run)
    assert harness.storage.asked == 1
    assert world.storage is not None
    assert world.pods == ()
    assert world.seen_at == cluster.now + timedelta(seconds=100)


async def test_eviction_is_seen_while_storage_does_not_answer(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its queue could admit the same RayJob again, and a second head would write under the ordinal."""
    monkeypatch.setattr(observe, "LOOK_SECONDS", 0.01)
    harness.storage.answers.clear()
    cluster = training(harness)
    suspended = job_object(cluster, suspend=True)

    def evict() -> None:
        harness.jobs.objects, harness.api.objects = [suspended], {cluster.name: suspended}

    harness.storage.meanwhile = evict
    harness.now += timedelta(days=1)  # Long enough to be stalled: storage is asked before the verdict.
    async with asyncio.timeout(60):
        world = await harness.look(cluster.run)
    await asyncio.sleep(0)
    assert (harness.storage.asked, harness.storage.given_up) == (1, 1)
    assert world.storage is None
    assert world.rayjob is not None
    assert world.rayjob.suspended
    harness.storage.meanwhile = lambda: None
    async with asyncio.timeout(60):
        await harness.look(cluster.run)
    assert harness.storage.asked == 1, "what is decided without storage does not ask it"


async def test_drain_ends_at_its_deadline_while_storage_does_not_answer(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "LOOK_SECONDS", 0.01)
    harness.storage.answers.clear()
    cluster = training(harness, drains=True)
    attempt = cluster.run.status.attempt
    assert attempt is not None
    assert attempt.drain_deadline is not None
    looking = asyncio.ensure_future(harness.look(cluster.run))
    harness.now = attempt.drain_deadline
    await asyncio.sleep(0.1)
    assert not looking.done()
    harness.now += timedelta(seconds=observe.LAST_LOOK_SECONDS)
    async with asyncio.timeout(60):
        world = await looking
    assert (world.storage, world.seen_at) == (None, harness.now)


async def test_run_that_was_edited_meanwhile_does_not_wait_for_storage(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "LOOK_SECONDS", 0.01)
    harness.storage.answers.clear()
    cluster = training(harness, drains=True)
    async with asyncio.timeout(60):
        world = await harness.look(cluster.run, outdated=True)
    assert world.storage is None


async def test_node_that_is_not_reached_is_told_by_its_pods_condition(harness: Harness) -> None:
    cluster = training(harness)
    for status, unreachable in (("True", False), ("False", False), ("Unknown", True)):
        head = head_object(cluster)
        head["status"]["conditions"] = [{"type": "Ready", "status": status}]
        harness.pods.objects = [head]
        assert [p.unreachable for p in (await harness.look(cluster.run)).pods] == [unreachable]


async def test_job_and_head_that_a_cache_lacks_are_gone_only_if_the_api_server_says_so(harness: Harness) -> None:
    """Otherwise a watch that is behind would have a second attempt made beside the first."""
    cluster = training(harness)
    attempt = cluster.run.status.attempt
    assert attempt is not None
    head = head_object(cluster)
    head["metadata"]["labels"]["deepcoder.dev/run-uid"] = cluster.run.metadata.uid
    harness.api.objects[head["metadata"]["name"]] = head
    harness.jobs.objects = []
    before = head | {"metadata": head["metadata"] | {"uid": "of-the-name-before"}}
    for cached in ([], [before]):
        harness.pods.objects = list(cached)
        world = await harness.look(cluster.run)
        assert world.rayjob is not None
        assert [seen.uid for seen in world.pods] == [attempt.head_uid]
    harness.api.objects.clear()
    assert (await harness.look(cluster.run)).rayjob is None


async def test_run_with_a_hosted_judge_asks_for_no_gpu_until_its_key_is_there(harness: Harness) -> None:
    run = make_run(sandbox={"together": {"credentialsSecretRef": {"name": "together"}}})

    async def reason() -> str | None:
        refusal = (await harness.look(run)).refusal
        return refusal.reason if refusal else None

    assert await reason() == "SecretNotFound"
    harness.api.objects["together"] = {"data": {}}
    assert await reason() == "CredentialsInvalid"
    harness.api.objects["together"] = {"data": {"TOGETHER_API_KEY": "a2V5"}}
    assert await reason() is None


async def test_pod_that_a_report_came_from_is_seen_with_it(harness: Harness) -> None:
    """The report of a head that is gone says nothing of the next one."""
    cluster = training(harness)
    key = RunKey("ml", "demo")
    harness.observer.board.post(key, run_uid="u", ordinal=1, reply=ProgressReply(), pool=None)
    report = ProgressReport(
        ordinal=1, stage="short", phase=TrainerPhase.TRAINING, step=1, max_steps=2, sent_at=harness.now
    )
    harness.observer.board.receive(key, Heartbeat(report, harness.now.timestamp(), "the-head"))
    beat = (await harness.look(cluster.run)).beat
    assert beat is not None
    assert beat.pod_uid == "the-head"
