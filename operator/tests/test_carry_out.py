"""What an action that cannot be done becomes: a problem with a reason and a mend, never an endless retry in silence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from carry_out_world import SETTINGS, Harness
from kuberay_standin import mounted_config_map
from prometheus_client import REGISTRY

from deepcoder_contracts.api.run import FINALIZER
from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.stage import StageConfig
from deepcoder_operator.controllers.postmortem import PostMortem
from deepcoder_operator.domain import draft as d
from deepcoder_operator.domain.bounds import END_SECONDS
from deepcoder_operator.domain.names import config_name
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.oversize import modest
from deepcoder_operator.storage.s3 import StorageProblem


@pytest.fixture
def harness() -> Harness:
    return Harness()


async def test_attempt_is_made_with_all_that_surrounds_it_once(harness: Harness) -> None:
    assert await harness.carry_out(harness.make) is None
    assert await harness.carry_out(harness.make) is None
    assert harness.jobs.seen == ["demo-s0-a1"]
    assert {kind for kind, _ in harness.api.objects} == {
        "ConfigMap", "ServiceAccount", "NetworkPolicy", "SandboxPool", "RayJob"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "error", "reason", "told"),
    [
        ("RayJob", errors.Forbidden("exceeded quota", 403), "RayJobForbidden", "exceeded quota"),
        ("RayJob", errors.Invalid("spec.x", 422), "RayJobInvalid", "spec.x"),
        ("RayJob", errors.NotFound("no matches", 404), "KubeRayNotFound", "install KubeRay"),
        ("SandboxPool", errors.Forbidden("exceeded quota", 403), "Forbidden", "EnsurePool"),
        ("ServiceAccount", errors.Invalid("metadata.name", 422), "Invalid", "metadata.name"),
        ("RayJob", errors.WebhookAway("mrayjob.kb.io", 500), "WebhookAway", "mrayjob.kb.io: check the webhook"),
        ("ConfigMap", errors.WebhookAway("kyverno", 500), "WebhookAway", "CreateAttempt"),
    ],
)
async def test_refusal_of_the_api_server_is_a_problem(
    harness: Harness, kind: str, error: Exception, reason: str, told: str
) -> None:
    harness.api.refuses[kind] = error
    problem = await harness.problem()
    assert problem.reason == reason
    assert told in problem.message
    assert problem.action == {"SandboxPool": "EnsurePool", "ServiceAccount": "EnsureRunObjects"}.get(
        kind, "CreateAttempt"
    )


async def test_job_is_not_made_where_kuberays_crds_would_drop_what_we_ask_of_it(harness: Harness) -> None:
    """An upgrade by Helm leaves CRDs as they are: Ray's dashboard, which runs any code, would ask for no token."""
    pods = "spec.rayClusterSpec.headGroupSpec.template.spec.tolerationz"
    harness.api.unknown = ["spec.rayClusterSpec.authOptions", pods]
    problem = await harness.problem()
    assert problem.reason == "KubeRayTooOld"
    assert "lack spec.rayClusterSpec.authOptions: upgrade KubeRay" in problem.message
    assert ("RayJob", "demo-s0-a1") not in harness.api.objects


async def test_what_kuberays_crds_drop_of_a_template_is_told_and_the_attempt_is_made(harness: Harness) -> None:
    harness.api.unknown = ["spec.rayClusterSpec.headGroupSpec.template.spec.tolerationz"]
    assert await harness.carry_out(harness.make) is None
    assert harness.jobs.seen == ["demo-s0-a1"]
    assert harness.told == ["TemplateFieldsDropped"]


async def test_object_of_somebody_else_is_left_alone_and_named(harness: Harness) -> None:
    theirs = {"kind": "ServiceAccount", "metadata": {"name": "demo-trainer", "ownerReferences": []}}
    harness.api.objects["ServiceAccount", "demo-trainer"] = theirs
    problem = await harness.problem()
    assert problem.reason == "NameConflict"
    assert "ServiceAccount demo-trainer" in problem.message
    assert harness.jobs.seen == []
    before = {"kind": "DeepCoderRun", "name": "demo", "uid": "before", "controller": True}
    theirs["metadata"] = {"name": "demo-trainer", "ownerReferences": [before]}
    problem = await harness.problem()
    assert problem.reason == "StillEnding", "a deleted namesake's: nobody has anything to do"
    assert "ServiceAccount demo-trainer" in problem.message
    assert harness.jobs.seen == []


async def test_folder_is_claimed_before_anything_is_made(harness: Harness) -> None:
    harness.storage.problem = StorageProblem("CredentialsRefused", "may not write")
    assert (await harness.problem()).reason == "CredentialsRefused"
    assert harness.api.objects == {}
    assert (await harness.problem(d.DeleteArtifacts())).reason == "CredentialsRefused"


async def test_lost_config_is_made_again_by_the_release_that_resolved_it_and_by_no_other(harness: Harness) -> None:
    assert await harness.carry_out(harness.make) is None
    key = ("ConfigMap", config_name("demo"))
    kept = harness.api.objects.pop(key)
    assert await harness.carry_out(harness.make) is None
    assert harness.api.objects.pop(key) == kept
    provenance = harness.run.status.provenance
    assert provenance is not None
    older = provenance.model_copy(update={"config_digest": "sha256:" + "0" * 64})
    status = harness.run.status.model_copy(update={"provenance": older})
    harness.run = harness.run.model_copy(update={"status": status})
    problem = await harness.problem()
    assert problem.reason == "ConfigLost"
    assert "is gone" in problem.message
    assert key not in harness.api.objects, "another config under the name would hide that the old one is lost"


async def test_nothing_is_made_for_a_run_that_is_gone_before_it_is_held(harness: Harness) -> None:
    harness.api.refuses["DeepCoderRun"] = errors.NotFound("gone", 404)
    assert await harness.carry_out([d.AddFinalizer(), *harness.make]) is None
    assert harness.api.objects == {}


@pytest.mark.parametrize("ordinal", [1, 2])
async def test_config_that_somebody_has_edited_is_not_trained_with(harness: Harness, ordinal: int) -> None:
    assert await harness.carry_out(harness.make) is None
    config = harness.api.objects["ConfigMap", config_name("demo")]["data"]
    config["config.json"] = config["config.json"] + " "
    del harness.api.objects["RayJob", "demo-s0-a1"]
    status = harness.run.status.model_copy(update={"ordinal": ordinal})
    harness.run = harness.run.model_copy(update={"status": status})
    problem = await harness.problem()
    assert problem.reason == "ConfigLost"
    assert "was replaced by another" in problem.message
    assert ("RayJob", "demo-s0-a1") not in harness.api.objects


async def test_first_attempt_makes_the_resolved_config_without_looking_for_it(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    find = harness.api.find

    async def noted(resource: Any, namespace: str, name: str) -> Any:
        asked.append(name)
        return await find(resource, namespace, name)

    monkeypatch.setattr(harness.api, "find", noted)
    assert await harness.carry_out(harness.make) is None
    assert asked == []
    assert ("ConfigMap", config_name("demo")) in harness.api.objects


async def test_first_attempt_goes_on_with_the_config_that_an_earlier_release_resolved(harness: Harness) -> None:
    """The operator was upgraded between the first attempt's config and its RayJob; this release resolves another."""
    assert await harness.carry_out(harness.make) is None
    key = ("ConfigMap", config_name("demo"))
    stored = harness.api.objects[key]
    text = stored["data"]["config.json"] + "\n"
    stored["data"]["config.json"] = text
    provenance = harness.run.status.provenance
    assert provenance is not None
    accepted = provenance.model_copy(update={"config_digest": sha256_digest(text.encode())})
    status = harness.run.status.model_copy(update={"provenance": accepted})
    harness.run = harness.run.model_copy(update={"status": status})
    del harness.api.objects["RayJob", "demo-s0-a1"]
    assert await harness.carry_out(harness.make) is None
    assert harness.api.objects[key]["data"]["config.json"] == text
    assert ("RayJob", "demo-s0-a1") in harness.api.objects


async def test_config_of_somebody_else_is_not_taken_for_the_first_attempts(harness: Harness) -> None:
    theirs = {"kind": "ConfigMap", "metadata": {"name": config_name("demo"), "ownerReferences": []}}
    harness.api.objects["ConfigMap", config_name("demo")] = theirs
    problem = await harness.problem()
    assert problem.reason == "NameConflict"
    assert ("RayJob", "demo-s0-a1") not in harness.api.objects


async def test_job_mounts_the_config_that_it_was_made_with_and_not_one_that_was_left_behind(harness: Harness) -> None:
    """An operator died between the two; the next one has another authority, and the run was edited meanwhile."""
    harness.api.refuses["RayJob"] = errors.Unavailable("the operator dies here")
    with pytest.raises(errors.Unavailable):
        await harness.carry_out(harness.make)
    left = {name for kind, name in harness.api.objects if kind == "ConfigMap" and name != config_name("demo")}
    del harness.api.refuses["RayJob"]
    harness.executor.settings = replace(SETTINGS, ca_bundle="another")
    checkpoint = harness.run.spec.checkpoint.model_copy(update={"drain_seconds": 77})
    harness.run = harness.run.model_copy(
        update={"spec": harness.run.spec.model_copy(update={"checkpoint": checkpoint})}
    )
    assert await harness.carry_out(harness.make) is None
    job = harness.api.objects["RayJob", "demo-s0-a1"]["spec"]["rayClusterSpec"]
    name = mounted_config_map(job["headGroupSpec"]["template"]["spec"])
    assert name not in left
    mounted = harness.api.objects["ConfigMap", name]["data"]
    assert mounted["ca.crt"] == "another"
    assert StageConfig.from_json(mounted["stage.json"]).storage.drain_seconds == 77


async def test_config_of_an_attempt_goes_with_its_job(harness: Harness) -> None:
    """A run that is preempted often would fill its namespace's quota of ConfigMaps."""
    assert await harness.carry_out(harness.make) is None
    job = harness.api.objects["RayJob", "demo-s0-a1"]
    job["metadata"]["uid"] = "job"
    (name,) = {name for kind, name in harness.api.objects if kind == "ConfigMap"} - {config_name("demo")}
    harness.api.objects["ConfigMap", name]["metadata"]["uid"] = "map"
    assert await harness.carry_out([d.DeleteRayJob("demo-s0-a1", "another")]) is None
    assert ("ConfigMap", name) in harness.api.objects, "it is a later job's"
    assert await harness.carry_out([d.DeleteRayJob("demo-s0-a1", "job")]) is None
    assert ("RayJob", "demo-s0-a1") not in harness.api.objects
    assert [n for kind, n in harness.api.objects if kind == "ConfigMap"] == [config_name("demo")]


@pytest.mark.parametrize("error", [errors.Forbidden("no right", 403), errors.WebhookAway("gatekeeper", 500)])
async def test_job_ends_though_its_config_may_not_be_deleted(harness: Harness, error: Exception) -> None:
    """Roles of the cluster's own (rbac.create: false) may lack the right. GPUs are not held for a ConfigMap."""
    assert await harness.carry_out(harness.make) is None
    for obj in harness.api.objects.values():
        obj["metadata"]["uid"] = "uid"
    harness.api.undeletable["ConfigMap"] = error
    assert await harness.carry_out([d.DeleteRayJob("demo-s0-a1", "uid")]) is None
    assert ("RayJob", "demo-s0-a1") not in harness.api.objects


async def test_config_that_somebody_has_a_job_mount_is_left_to_them(harness: Harness) -> None:
    """Whoever may edit RayJobs is not to have the operator delete ConfigMaps for them."""
    assert await harness.carry_out(harness.make) is None
    job = harness.api.objects["RayJob", "demo-s0-a1"]
    job["metadata"]["uid"] = "job"
    volumes = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    (config,) = [v for v in volumes if v["name"] == "config"]
    config["projected"]["sources"][0]["configMap"]["name"] = "theirs"
    theirs = {"kind": "ConfigMap", "metadata": {"name": "theirs", "uid": "map"}}
    harness.api.objects["ConfigMap", "theirs"] = theirs
    assert await harness.carry_out([d.DeleteRayJob("demo-s0-a1", "job")]) is None
    assert ("RayJob", "demo-s0-a1") not in harness.api.objects
    assert harness.api.objects["ConfigMap", "theirs"] == theirs


async def test_post_mortem_in_part_is_told_in_an_event_and_counted(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [("PostMortemPartly", "s3://b/k lacks the log of the head", True), ("PostMortemSaved", "s3://b/k", False)]

    async def save(*_: Any) -> tuple[str, str, bool]:
        return answers.pop(0)

    monkeypatch.setattr(PostMortem, "save", save)
    name = "deepcoder_operator_warnings_total"
    labels = {"namespace": harness.run.metadata.namespace, "reason": "PostMortemPartly"}
    before = REGISTRY.get_sample_value(name, labels) or 0
    attempt = harness.run.status.attempt
    assert attempt is not None
    assert await harness.carry_out([d.SavePostMortem(attempt)]) is None
    assert harness.told == ["PostMortemPartly"]
    assert REGISTRY.get_sample_value(name, labels) == before + 1
    assert await harness.carry_out([d.SavePostMortem(attempt)]) is None
    assert REGISTRY.get_sample_value(name, labels | {"reason": "PostMortemSaved"}) is None, "no warning"


async def test_what_passes_by_itself_is_raised_and_what_follows_is_not_tried(harness: Harness) -> None:
    harness.api.refuses["DeepCoderRun"] = errors.Conflict("changed", 409)
    with pytest.raises(errors.Conflict):
        await harness.carry_out([d.AddFinalizer(), *harness.make])
    assert harness.api.objects == {}


async def test_run_that_was_given_its_finalizer_is_handed_on_and_one_that_is_let_go_is_not(harness: Harness) -> None:
    """Its next pass needs no event; what is let go may be gone, and must not be planned for as if it were there."""
    await harness.carry_out([d.AddFinalizer()])
    assert [o["metadata"]["finalizers"][-1] for o in harness.adopted] == [FINALIZER]
    await harness.carry_out([d.RemoveFinalizer()])
    harness.api.refuses["DeepCoderRun"] = errors.NotFound("gone", 404)
    await harness.carry_out([d.AddFinalizer()])
    assert len(harness.adopted) == 1


async def test_pods_verify_a_bucket_by_the_authority_that_its_secret_names(harness: Harness) -> None:
    harness.storage.ca = "-----BEGIN CERTIFICATE-----"
    assert await harness.carry_out(harness.make) is None
    spec = harness.api.objects["RayJob", "demo-s0-a1"]["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert "AWS_CA_BUNDLE" in str(group["template"]), group


@pytest.mark.parametrize("held_by", [[], ["backup.example/hold"]], ids=["nobody", "another controller"])
async def test_finalizers_of_others_stay_and_the_version_that_was_planned_from_is_sent(
    harness: Harness, held_by: list[str]
) -> None:
    meta = harness.run.metadata.model_copy(update={"finalizers": held_by, "resource_version": "7"})
    harness.run = harness.run.model_copy(update={"metadata": meta})
    await harness.carry_out([d.AddFinalizer()])
    held = meta.model_copy(update={"finalizers": [*held_by, FINALIZER]})
    harness.run = harness.run.model_copy(update={"metadata": held})
    await harness.carry_out([d.RemoveFinalizer()])
    assert harness.api.patches == [
        {"metadata": {"resourceVersion": "7", "finalizers": [*held_by, FINALIZER]}},
        {"metadata": {"resourceVersion": "7", "finalizers": held_by}},
    ]


async def test_finalizers_of_others_stay_even_if_they_are_too_many_to_be_cached(harness: Harness) -> None:
    held_by = [f"backup.example/{i}" for i in range(1000)]
    harness.api.objects["DeepCoderRun", "demo"] = {"metadata": {"finalizers": [*held_by, FINALIZER]}}
    cached = modest({"finalizers": [*held_by, FINALIZER]})["finalizers"]
    meta = harness.run.metadata.model_copy(update={"finalizers": cached, "resource_version": "7"})
    harness.run = harness.run.model_copy(update={"metadata": meta})
    await harness.carry_out([d.RemoveFinalizer()])
    assert harness.api.patches == [{"metadata": {"resourceVersion": "7", "finalizers": held_by}}]


async def test_policy_of_an_earlier_release_is_replaced_unless_it_has_changed_meanwhile(harness: Harness) -> None:
    """An upgrade may have moved the operator; who applies over a version that it did not see may be no leader."""
    assert await harness.carry_out(harness.make) is None
    assert harness.api.applied == []
    harness.api.objects["NetworkPolicy", "demo-trainer"]["metadata"]["resourceVersion"] = "9"
    harness.executor.settings = replace(SETTINGS, kuberay_namespace="another")
    assert await harness.carry_out([d.EnsureRunObjects()]) is None
    [policy] = harness.api.applied
    assert policy["metadata"]["resourceVersion"] == "9"
    assert "another" in str(policy["spec"])


async def test_run_and_pool_that_came_under_the_name_of_one_to_be_deleted_are_left_alone(harness: Harness) -> None:
    for kind, name, uid in (("DeepCoderRun", "demo", "new"), ("SandboxPool", "demo-sandbox", "new")):
        harness.api.objects[kind, name] = {"kind": kind, "metadata": {"name": name, "uid": uid}}
    assert await harness.carry_out([d.DeletePool("demo-sandbox", "old"), d.DeleteRun()]) is None
    assert len(harness.api.objects) == 2


async def test_pod_that_came_under_the_name_of_one_to_be_ended_is_left_alone(harness: Harness) -> None:
    for name, uid in (("head", "old"), ("worker", "new")):
        harness.api.objects["Pod", name] = {"kind": "Pod", "metadata": {"name": name, "uid": uid}}
    assert await harness.carry_out([d.EndPods((("head", "old"), ("worker", "old")))]) is None
    assert list(harness.api.objects) == [("Pod", "worker")]
    assert harness.api.graces == [("head", END_SECONDS), ("worker", END_SECONDS)], "a pod's own may be hours"
