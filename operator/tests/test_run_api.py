"""DeepCoderRun at a real API server: what it takes, what it refuses, and that each refusal says how to mend it."""

from __future__ import annotations

from typing import Any

import pytest
from run_manifests import EVALUATE, LONGER, TRAIN, run_manifest

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import RUNS

pytestmark = pytest.mark.apiserver

TOGETHER: dict[str, Any] = {"credentialsSecretRef": {"name": "together"}}
S3 = {"bucket": "deepcoder", "credentialsSecretRef": {"name": "s3"}}


RATED: dict[str, Any] = {
    "name": "rated",
    "type": "Evaluate",
    "contextTokens": 64,
    "evaluate": {
        "datasets": [
            {"name": "cf", "uri": "/cf", "contests": "/contests", "since": "2024-08-01", "until": "2025-02-01"}
        ]
    },
    "promoteWhen": {"all": [{"metric": "eval/cf/rating", "op": "Ge", "value": 1900}]},
}


@pytest.fixture
def namespace(kept_namespace: str) -> str:
    """No operator is there, and nothing but runs and pools is made."""
    return kept_namespace


async def test_run_is_taken_and_read_back(kube: Kube, namespace: str) -> None:
    run = DeepCoderRun.model_validate(await kube.create(run_manifest(namespace)))
    assert [s.name for s in run.spec.stages] == ["short", "long", "final"]
    assert run.spec.checkpoint.drain_seconds == 300
    assert run.spec.failure_policy.max_attempts == 3


async def test_evaluation_may_have_a_window_and_be_gated_on_a_rating(kube: Kube, namespace: str) -> None:
    run = DeepCoderRun.model_validate(await kube.create(run_manifest(namespace, stages=[TRAIN, RATED])))
    stage = run.spec.stages[1]
    assert stage.evaluate is not None
    assert stage.evaluate.datasets[0].until == "2025-02-01"
    assert stage.promote_when is not None
    assert stage.promote_when.all[0].metric == "eval/cf/rating"


async def test_recipe_stores_only_what_was_given(kube: Kube, namespace: str) -> None:
    stored = await kube.create(run_manifest(namespace, recipe={"groupSize": 4}))
    assert stored["spec"]["recipe"] == {"groupSize": 4}


async def test_pod_templates_keep_fields_that_we_do_not_know(kube: Kube, namespace: str) -> None:
    template = {"spec": {"containers": [{"name": "ray-worker", "resources": {"limits": {"nvidia.com/gpu": 8}}}]}}
    stage = TRAIN | {"resources": {"learners": {"template": template}}}
    stored = await kube.create(run_manifest(namespace, stages=[stage]))
    assert stored["spec"]["stages"][0]["resources"]["learners"]["template"] == template


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sandbox": {}}, "give exactly one of sandbox.poolRef"),
        ({"sandbox": {"poolRef": {"name": "1judges"}}}, "starts with a letter"),
        ({"sandbox": {"poolRef": {"name": "my.judges"}}}, "spec.sandbox.poolRef.name"),
        ({"sandbox": {"poolRef": {"name": "j" * 47}}}, "has at most 46 characters"),
        ({"sandbox": {"poolRef": {"name": "p"}, "template": {}}}, "give exactly one of sandbox.poolRef"),
        ({"sandbox": {"poolRef": {"name": "p"}, "together": TOGETHER}}, "and sandbox.together"),
        ({"sandbox": {"template": {}, "together": TOGETHER}}, "and sandbox.together"),
        ({"sandbox": {"together": {}}}, "sandbox.together.credentialsSecretRef"),
        ({"sandbox": {"together": TOGETHER | {"endpoint": "http://api.together.ai/v1"}}}, "sandbox.together.endpoint"),
        ({"sandbox": {"together": TOGETHER | {"endpoint": "https://key@host/v1"}}}, "sandbox.together.endpoint"),
        ({"sandbox": {"together": TOGETHER | {"concurrency": 0}}}, "sandbox.together.concurrency"),
        ({"stages": [LONGER, TRAIN]}, "order the stages by context length"),
        ({"stages": [TRAIN, TRAIN]}, "Duplicate value"),
        ({"stages": []}, "spec.stages"),
        ({"stages": [{"name": "s", "contextTokens": 64}]}, "a Train stage needs maxSteps"),
        ({"stages": [{"name": "s", "type": "Evaluate", "contextTokens": 64}]}, "an Evaluate stage needs evaluate"),
        ({"stages": [TRAIN | {"name": "Eval"}]}, "spec.stages[0].name"),
        ({"stages": [TRAIN | {"contextTokens": 0}]}, "contextTokens"),
        ({"stages": [TRAIN | {"type": "Distill"}]}, 'supported values: "Train", "Evaluate"'),
        ({"stages": [EVALUATE | {"resources": {"learners": {}}}]}, "remove resources.learners"),
        ({"stages": [TRAIN | {"placement": "Colocated", "resources": {"samplers": {}}}]}, "remove resources.samplers"),
        ({"stages": [TRAIN | {"placement": "Colocated"}]}, "set recipe.maxOffPolicy: 0, or placement: Separate"),
        (
            {
                "stages": [TRAIN | {"placement": "Colocated"}],
                "recipe": {"maxOffPolicy": 0, "tensorParallel": 2},
            },
            "set recipe.tensorParallel: 1, or placement: Separate",
        ),
        ({"stages": [TRAIN | {"evaluate": EVALUATE["evaluate"]}]}, "evaluate.targets is for Evaluate stages"),
        (
            {"stages": [TRAIN | {"promoteWhen": {"all": [{"metric": "eval/x/pass_at_1", "op": "Ge", "value": 0.5}]}}]},
            "add the dataset to evaluate.datasets",
        ),
        (
            {"stages": [RATED | {"evaluate": RATED["evaluate"] | {"datasets": [{"name": "cf", "uri": "/cf"}]}}]},
            "contests",
        ),
        (
            {"stages": [RATED | {"evaluate": {"datasets": [{"name": "cf", "uri": "/cf", "since": "1 August"}]}}]},
            "spec.stages[0].evaluate.datasets[0].since",
        ),
        ({"stages": [TRAIN | {"promoteWhen": {"all": [{"metric": "speed", "op": "Ge", "value": 1}]}}]}, "metric"),
        ({"dataset": None}, "set dataset.uri"),
        ({"dataset": {"uri": "ftp://x"}}, "spec.dataset.uri"),
        ({"approvedStages": ["nope"]}, "use the names of spec.stages"),
        ({"checkpoint": {"s3": S3 | {"prefix": "a/../b"}}}, "prefix may not contain '..'"),
        ({"checkpoint": {"s3": {"bucket": "deepcoder"}}}, "credentialsSecretRef is required"),
        ({"checkpoint": {"s3": S3 | {"serviceAccountName": "sa"}}}, "serviceAccountName is not supported yet"),
        ({"checkpoint": {"s3": S3 | {"bucket": "Bad_Bucket"}}}, "spec.checkpoint.s3.bucket"),
        ({"recipe": {"order": "Window", "maxOffPolicy": 0}}, "set maxOffPolicy: 1, or order: Strict"),
        ({"recipe": {"deterministic": True, "order": "Window"}}, "deterministic needs order: Strict"),
        ({"recipe": {"promptsPerStep": 7}}, "make promptsPerStep a multiple"),
        ({"stages": [TRAIN | {"recipe": {"promptsPerStep": 7}}]}, "that the stage omits comes from spec.recipe"),
        ({"stages": [TRAIN | {"recipe": {"groupSize": 1}}]}, "recipe.groupSize"),
        ({"stages": [EVALUATE | {"recipe": {"learningRate": 1e-5}}]}, "an Evaluate stage trains nothing"),
        ({"recipe": {"temperature": 0}}, "spec.recipe.temperature"),
        ({"scheduling": {"gang": True}}, "gang is not supported yet: set queueName"),
        ({"failurePolicy": {"backoff": {"initialSeconds": 60, "maxSeconds": 5}}}, "maxSeconds is below initialSeconds"),
        ({"model": {"uri": "/m", "credentialsSecretRef": {"name": "hf"}}}, "is for hf:// models"),
        ({"image": ""}, "spec.image"),
    ],
)
async def test_bad_run_is_refused_with_the_field_or_the_mend(
    kube: Kube, namespace: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(errors.Invalid) as refusal:
        await kube.create(run_manifest(namespace, **change))
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("r" * 37, "shorten it"), ("1run", "starts with a letter"), ("my.run", "starts with a letter")],
)
async def test_names_that_would_overflow_children_are_refused(
    kube: Kube, namespace: str, name: str, message: str
) -> None:
    with pytest.raises(errors.Invalid) as refusal:
        await kube.create(run_manifest(namespace, name))
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"uri": "/models/other"}}, "model is immutable"),
        ({"recipe": {"groupSize": 16}}, "recipe is immutable"),
        ({"dataset": {"uri": "/data/other.jsonl"}}, "dataset is immutable"),
        ({"from": {"uri": "s3://deepcoder/x/step-000001.a001"}}, "dataset, from and managedBy are immutable"),
        ({"managedBy": "kueue.x-k8s.io/multikueue"}, "dataset, from and managedBy are immutable"),
        ({"checkpoint": {"s3": {"bucket": "another"}}}, "checkpoint.s3 is immutable"),
        ({"sandbox": {"template": {"maxReplicas": 3}}}, "sandbox.template is immutable"),
        (
            {"sandbox": {"template": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}}},
            "sandbox.template is immutable",
        ),
        ({"sandbox": {"poolRef": {"name": "shared"}, "template": None}}, "sandbox.template is immutable"),
        ({"sandbox": {"together": TOGETHER, "template": None}}, "sandbox.template is immutable"),
    ],
)
async def test_what_decides_the_result_cannot_be_edited(
    kube: Kube, namespace: str, change: dict[str, Any], message: str
) -> None:
    await kube.create(run_manifest(namespace))
    with pytest.raises(errors.Invalid) as refusal:
        await kube.patch(RUNS, namespace, "demo", {"spec": change})
    assert message in str(refusal.value)


async def test_a_hosted_judge_may_take_the_place_of_a_shared_pool_from_the_next_attempt_on(
    kube: Kube, namespace: str
) -> None:
    await kube.create(run_manifest(namespace, sandbox={"poolRef": {"name": "shared"}}))
    changed = await kube.patch(RUNS, namespace, "demo", {"spec": {"sandbox": {"poolRef": None, "together": TOGETHER}}})
    assert changed["spec"]["sandbox"] == {
        "together": TOGETHER | {"endpoint": "https://api.together.ai/v1", "concurrency": 64}
    }
    assert DeepCoderRun.model_validate(changed).spec.sandbox.together is not None


async def test_started_stages_are_fixed_and_later_ones_are_not(kube: Kube, namespace: str) -> None:
    await kube.create(run_manifest(namespace, stages=[TRAIN, LONGER]))
    started = [
        {"name": "short", "index": 0, "phase": "Active", "startTime": "2026-01-01T00:00:00Z"},
        {"name": "long", "index": 1, "phase": "Pending"},
    ]
    await kube.patch(RUNS, namespace, "demo", {"status": {"stages": started}}, "status")
    mend = "append a new stage"
    for stages in ([TRAIN | {"maxSteps": 21}, LONGER], [LONGER], [TRAIN | {"name": "zero"}, TRAIN, LONGER]):
        with pytest.raises(errors.Invalid) as refusal:
            await kube.patch(RUNS, namespace, "demo", {"spec": {"stages": stages}})
        assert mend in str(refusal.value)
    changed = [TRAIN, LONGER | {"maxSteps": 30}, LONGER | {"name": "longest", "contextTokens": 512}]
    stored = await kube.patch(RUNS, namespace, "demo", {"spec": {"stages": changed}})
    assert [s["maxSteps"] for s in stored["spec"]["stages"]] == [20, 30, 10]


STARTED = [{"name": "short", "index": 0, "phase": "Active", "startTime": "2026-01-01T00:00:00Z"}]
LIVE = {"ordinal": 1, "stageIndex": 0, "name": "demo-s0-a1", "intendedTime": "2026-01-01T00:00:00Z"}
ELSEWHERE = {"resources": {"learners": {"template": {"spec": {"nodeSelector": {"zone": "b"}}}}}}


async def test_template_edit_of_a_started_stage_is_refused_while_an_attempt_has_pods_of_it(
    kube: Kube, namespace: str
) -> None:
    """The template is not in the schema; its change must be seen all the same."""
    await kube.create(run_manifest(namespace, stages=[TRAIN]))
    await kube.patch(RUNS, namespace, "demo", {"status": {"stages": STARTED, "attempt": LIVE}}, "status")
    with pytest.raises(errors.Invalid, match="edit them while the run is Suspended, and resume it"):
        await kube.patch(RUNS, namespace, "demo", {"spec": {"stages": [TRAIN | ELSEWHERE]}})


async def test_a_started_stage_gets_other_pods_between_attempts_and_nothing_else(kube: Kube, namespace: str) -> None:
    """Too little memory, or a node selector that fits no node, is no reason to begin another run."""
    await kube.create(run_manifest(namespace, stages=[TRAIN]))
    await kube.patch(RUNS, namespace, "demo", {"status": {"stages": STARTED}}, "status")
    stored = await kube.patch(RUNS, namespace, "demo", {"spec": {"stages": [TRAIN | ELSEWHERE]}})
    template = stored["spec"]["stages"][0]["resources"]["learners"]["template"]
    assert template["spec"]["nodeSelector"] == {"zone": "b"}
    for change in ({"contextTokens": 65}, {"hold": True}, {"maxSteps": 21}, {"recipe": {"learningRate": 1e-5}}):
        with pytest.raises(errors.Invalid, match="append a new stage"):
            await kube.patch(RUNS, namespace, "demo", {"spec": {"stages": [TRAIN | ELSEWHERE | change]}})


async def test_pods_of_a_deterministic_runs_started_stage_are_fixed(kube: Kube, namespace: str) -> None:
    """It repeats to the bit only with as many processes as it began with, and would fail for good with others."""
    await kube.create(run_manifest(namespace, stages=[TRAIN], recipe={"deterministic": True}))
    await kube.patch(RUNS, namespace, "demo", {"status": {"stages": STARTED}}, "status")
    with pytest.raises(errors.Invalid, match="and not with recipe"):
        await kube.patch(RUNS, namespace, "demo", {"spec": {"stages": [TRAIN | ELSEWHERE]}})


async def test_deadlines_of_a_started_stage_can_be_extended_while_it_runs(kube: Kube, namespace: str) -> None:
    await kube.create(run_manifest(namespace, stages=[TRAIN]))
    await kube.patch(RUNS, namespace, "demo", {"status": {"stages": STARTED, "attempt": LIVE}}, "status")
    longer = {"stallSeconds": 7200, "activeDeadlineSeconds": 86400, "preRunningDeadlineSeconds": 7200}
    stored = await kube.patch(RUNS, namespace, "demo", {"spec": {"stages": [TRAIN | longer]}})
    assert stored["spec"]["stages"][0].items() >= longer.items()


async def test_suspend_and_approval_can_be_edited_while_a_stage_runs(kube: Kube, namespace: str) -> None:
    await kube.create(run_manifest(namespace, stages=[TRAIN, LONGER]))
    stored = await kube.patch(RUNS, namespace, "demo", {"spec": {"suspend": True, "approvedStages": ["short"]}})
    assert stored["spec"]["suspend"] is True
