"""A trainer's last words, in its RayJob's message and in exit.json: quoted without secrets, or not at all."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from observe_harness import Harness, job_object, training
from plan_world import Cluster

from deepcoder_contracts.api.stage import Stage, WorkerGroup
from deepcoder_contracts.exit import ExitRecord
from deepcoder_operator.controllers import quotes
from deepcoder_operator.domain.world import StorageView, StoredStage


@pytest.fixture
def harness() -> Harness:
    return Harness()


def secret(**values: str) -> dict[str, Any]:
    return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}}


def crashed(harness: Harness, said: str) -> Cluster:
    """A run whose trainer has crashed, and what its RayJob says of that."""
    cluster = training(harness)
    harness.api.objects["s3"] = secret(AWS_SECRET_ACCESS_KEY="the-secret-of-s3")
    job = job_object(cluster, suspend=False)
    job["status"] = {"jobStatus": "FAILED", "message": said}
    harness.jobs.objects = [job]
    return cluster


async def test_last_words_of_a_trainer_are_quoted_without_secrets_wherever_they_are_cut(harness: Harness) -> None:
    template = {
        "spec": {"containers": [{"name": "ray-head", "env": [{"name": "TRACKER_TOKEN", "value": "a-literal"}]}]}
    }
    head = {"spec": {"containers": [{"name": "ray-head", "envFrom": [{"secretRef": {"name": "wandb"}}]}]}}
    secrets = ["the-secret-of-s3", "key-of-the-team", "a-literal", "hf_AbCdEfGhIjKlMnOpQrSt", "token-of-the-judges"]
    cluster = crashed(harness, "".join(f"{'x' * i} {s} " for i in range(40) for s in secrets))
    harness.api.objects["wandb"] = secret(key="key-of-the-team")
    stage = cluster.run.spec.stages[0]
    with_templates = stage.resources.model_copy(
        update={
            "head": stage.resources.head.model_copy(update={"template": head}),
            "samplers": WorkerGroup(template=template),
        }
    )
    spec = cluster.run.spec.model_copy(update={"stages": [stage.model_copy(update={"resources": with_templates})]})
    harness.api.objects["demo-sandbox-token"] = secret(token="token-of-the-judges")
    job = (await harness.look(cluster.run.model_copy(update={"spec": spec}))).rayjob
    assert job is not None
    assert "[redacted]" in job.message
    for value in secrets:
        parts = {value[i : i + 6] for i in range(len(value) - 5)}
        assert not [part for part in parts if part in job.message], value


async def test_last_words_are_left_out_where_a_secret_in_them_cannot_be_known(harness: Harness) -> None:
    cluster = crashed(harness, "login with the-secret-of-s3")
    del harness.api.objects["s3"]
    job = (await harness.look(cluster.run)).rayjob
    assert job is not None
    assert job.job_status == "FAILED"
    assert "the-secret" not in job.message
    assert job.message.endswith("Secret s3 is gone")
    harness.api.objects["s3"] = secret(AWS_SECRET_ACCESS_KEY="the-secret-of-s3")
    job = (await harness.look(cluster.run)).rayjob
    assert job is not None
    assert job.message == "login with [redacted]", "it is known again"


async def test_what_a_job_says_later_is_quoted_in_place_of_what_it_said(harness: Harness) -> None:
    cluster = crashed(harness, "Traceback")
    await harness.look(cluster.run)
    harness.jobs.objects[0]["status"]["message"] = "Traceback: out of memory"
    job = (await harness.look(cluster.run)).rayjob
    assert job is not None
    assert job.message == "Traceback: out of memory"


async def test_secrets_are_those_of_the_stage_that_the_attempt_is_of(harness: Harness) -> None:
    cluster = crashed(harness, "401 for key-of-second")
    stage = cluster.run.spec.stages[0]

    def reading(name: str) -> Stage:
        containers = [{"name": "ray-worker", "envFrom": [{"secretRef": {"name": name}}]}]
        group = WorkerGroup(template={"spec": {"containers": containers}})
        resources = stage.resources.model_copy(update={"samplers": group})
        return stage.model_copy(update={"name": name, "resources": resources})

    attempt = cluster.run.status.attempt
    assert attempt is not None
    status = cluster.run.status.model_copy(update={"attempt": attempt.model_copy(update={"stage_index": 1})})
    spec = cluster.run.spec.model_copy(update={"stages": [reading("first"), reading("second")]})
    run = cluster.run.model_copy(update={"spec": spec, "status": status})
    harness.api.objects |= {name: secret(key=f"key-of-{name}") for name in ("first", "second", "demo-sandbox-token")}
    job = (await harness.look(run)).rayjob
    assert job is not None
    assert job.message == "401 for [redacted]"
    record = ExitRecord(code=1, reason="Crashed", message="401 for key-of-second", step=3)
    answer = await harness.observer._quotes.exit(run, StorageView(stage=StoredStage(exit=record)))
    assert answer is not None
    assert answer.stage is not None
    assert answer.stage.exit is not None
    assert answer.stage.exit.message == "401 for [redacted]"


async def test_key_of_a_hosted_judge_is_not_quoted(harness: Harness) -> None:
    cluster = crashed(harness, "401 for key-of-together")
    status = cluster.run.status
    assert status.attempt is not None
    attempt = status.attempt.model_copy(update={"pool": None, "judge_secret": "together"})
    harness.api.objects["together"] = secret(TOGETHER_API_KEY="key-of-together")
    run = cluster.run.model_copy(update={"status": status.model_copy(update={"attempt": attempt})})
    job = (await harness.look(run)).rayjob
    assert job is not None
    assert job.message == "401 for [redacted]"


async def test_of_what_was_said_only_the_newest_is_remembered(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotes, "_REMEMBERED", 2)
    cluster = crashed(harness, "Traceback")
    for number in range(4):
        harness.jobs.objects[0]["metadata"]["uid"] = f"job-{number}"
        await harness.look(cluster.run)
    assert list(harness.observer._quotes._told) == ["job-2", "job-3"]


async def test_secrets_are_read_once_for_what_a_job_says(harness: Harness) -> None:
    cluster = crashed(harness, "Traceback")
    asked = []
    for _ in range(3):
        await harness.look(cluster.run)
        asked.append(harness.api.asked["Secret"])
    assert asked == [2, 0, 0], "the bucket's, and the judges' token"


async def test_of_what_a_thousand_jobs_have_said_only_what_may_be_quoted_is_kept(harness: Harness) -> None:
    """Ray puts up to twenty thousand letters of a driver's log into its job's message."""
    cluster = crashed(harness, "")
    job = harness.jobs.objects[0]
    for number in range(20):
        meta = job["metadata"] | {"uid": f"job-{number}"}
        harness.jobs.objects = [job | {"metadata": meta, "status": job["status"] | {"message": f"{number} " * 20_000}}]
        await harness.look(cluster.run)
    kept = harness.observer._quotes._told
    assert len(kept) == 20
    assert sum(len(part) for each in kept.values() for part in each) < 20 * 1000


async def test_error_that_a_worker_gave_the_trainer_is_quoted_without_the_workers_secrets(harness: Harness) -> None:
    """The trainer knows its own pod's Secrets only."""
    cluster = training(harness, drains=True)
    hub = {"spec": {"containers": [{"name": "ray-worker", "envFrom": [{"secretRef": {"name": "hub"}}]}]}}
    stage = cluster.run.spec.stages[0]
    resources = stage.resources.model_copy(update={"samplers": WorkerGroup(template=hub)})
    spec = cluster.run.spec.model_copy(update={"stages": [stage.model_copy(update={"resources": resources})]})
    run = cluster.run.model_copy(update={"spec": spec})
    harness.api.objects |= {name: secret(key=f"key-of-{name}") for name in ("s3", "demo-sandbox-token")}
    said = "sampler 0: 401 for key-of-hub at rank 0"
    harness.storage.stage = StoredStage(exit=ExitRecord(code=1, reason="Crashed", message=said, step=3))

    async def quoted() -> str:
        stored = (await harness.look(run)).stored
        assert stored is not None
        assert stored.exit is not None
        assert (stored.exit.code, stored.exit.reason, stored.exit.step) == (1, "Crashed", 3)
        return stored.exit.message

    assert "key-of" not in await quoted(), "the Secret is gone, so nothing is quoted"
    harness.api.objects["hub"] = secret(key="key-of-hub")
    assert await quoted() == "sampler 0: 401 for [redacted] at rank 0"
    assert harness.api.asked["Secret"] > 0
    assert await quoted() == "sampler 0: 401 for [redacted] at rank 0"
    assert harness.api.asked["Secret"] == 0, "read once for what was said"
