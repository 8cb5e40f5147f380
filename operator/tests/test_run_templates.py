"""A user's pod templates: how they are merged, and what they may not contain."""

from __future__ import annotations

from typing import Any

import pytest
from plan_world import make_run
from run_builds import groups, job, with_gpus
from run_manifests import TRAIN

from deepcoder_operator.builders.check import check_templates
from deepcoder_operator.domain.admission import check_spec
from deepcoder_operator.domain.policy import Policy


def test_template_is_merged_and_keeps_what_it_does_not_name() -> None:
    template = {
        "metadata": {"labels": {"team": "a"}},
        "spec": {
            "nodeSelector": {"zone": "a"},
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "ray-worker", "env": [{"name": "NCCL_DEBUG", "value": "WARN"}]}],
            "volumes": [{"name": "weights", "persistentVolumeClaim": {"claimName": "w"}}],
        },
    }
    stage = TRAIN | {"resources": {"learners": {"template": template}}}
    made = groups(job(make_run(stages=[stage])))["learners"]["template"]
    assert made["metadata"]["labels"]["team"] == "a"
    assert made["metadata"]["labels"]["deepcoder.dev/role"] == "learner"
    names = [e["name"] for e in made["spec"]["containers"][0]["env"]]
    assert {"NCCL_DEBUG", "AWS_ACCESS_KEY_ID", "POD_UID"} <= set(names)
    assert {"shm", "weights"} <= {v["name"] for v in made["spec"]["volumes"]}


def test_a_limit_without_a_request_is_what_the_pod_requests() -> None:
    """The operator's default beside it would have the scheduler keep 4 GiB for a learner that may use 800."""

    def made(resources: dict[str, Any]) -> dict[str, Any]:
        template = {"spec": {"containers": [{"name": "ray-worker", "resources": resources}]}}
        stage = TRAIN | {"resources": {"learners": {"template": template}}}
        built: dict[str, Any] = groups(job(make_run(stages=[stage])))["learners"]["template"]["spec"]["containers"][0]
        return built["resources"]

    limits = {"memory": "800Gi", "nvidia.com/gpu": 8}
    assert made({"limits": limits}) == {"limits": limits, "requests": {"cpu": "1"}}
    both = {"limits": limits, "requests": {"memory": "700Gi"}}
    assert made(both) == {"limits": limits, "requests": {"cpu": "1", "memory": "700Gi"}}
    assert made({"limits": {"memory": None}})["requests"] == {"cpu": "1", "memory": "4Gi"}


@pytest.mark.parametrize(
    ("group", "template", "field"),
    [
        ("learners", {"spec": {"restartPolicy": "Always"}}, "spec.restartPolicy"),
        ("learners", {"spec": {"serviceAccountName": "admin"}}, "spec.serviceAccountName"),
        ("learners", {"spec": {"automountServiceAccountToken": True}}, "spec.automountServiceAccountToken"),
        ("head", {"metadata": {"labels": {"deepcoder.dev/run-uid": "x"}}}, "deepcoder.dev/run-uid"),
        ("head", {"spec": {"containers": [{"name": "ray-head", "command": ["sh"]}]}}, "command"),
        ("samplers", {"spec": {"containers": [{"name": "ray-worker", "image": "other"}]}}, "image"),
    ],
)
def test_what_the_operator_owns_is_refused_by_name(group: str, template: dict[str, Any], field: str) -> None:
    stage = TRAIN | {"resources": {group: {"template": template}}}
    problem = check_templates(make_run(stages=[stage]))
    assert problem is not None
    assert field in problem.message
    assert f"resources.{group}.template" in problem.message


@pytest.mark.parametrize(
    ("template", "field"),
    [
        ({"spec": "x"}, "learners.template.spec must be a map"),
        ({"metadata": ["x"]}, "learners.template.metadata must be a map"),
        ({"metadata": {"labels": {"team": 1}}}, "metadata.labels[team] must be text"),
        ({"spec": {"containers": ["x"]}}, "spec.containers[0] must be a map"),
        ({"spec": {"containers": {"name": "ray-worker"}}}, "spec.containers must be a list"),
        ({"spec": {"containers": [{"image": "x"}]}}, "spec.containers[0] has no name"),
        ({"spec": {"containers": [{"name": "ray-worker", "env": ["A=1"]}]}}, "containers[ray-worker].env[0] must be"),
        ({"spec": {"containers": [{"name": "a", "resources": "8"}]}}, "containers[a].resources must be a map"),
        ({"spec": {"volumes": "w"}}, "spec.volumes must be a list"),
        (with_gpus("eight")["template"], "resources.limits[nvidia.com/gpu] must be a quantity"),
        (with_gpus("1500m")["template"], "resources.limits[nvidia.com/gpu] must be a whole number"),
        (with_gpus(True)["template"], "resources.limits[nvidia.com/gpu] must be a quantity"),
    ],
)
def test_malformed_template_is_refused_by_its_path_and_ends_no_pass(template: dict[str, Any], field: str) -> None:
    run = make_run(stages=[TRAIN | {"resources": {"learners": {"template": template}}}])
    for problem in (check_templates(run), check_spec(run, Policy())):
        assert problem is not None
        assert problem.reason == "TemplateMalformed"
        assert field in problem.message


def test_container_that_is_named_twice_is_refused_before_its_gpus_are_counted_twice() -> None:
    """The two would be merged into one pod's container of 8 GPUs, on which 16 ranks would wait for each other."""
    container = {"name": "ray-worker", "resources": {"limits": {"nvidia.com/gpu": 8}}}
    template = {"spec": {"containers": [container, container]}}
    run = make_run(stages=[TRAIN | {"resources": {"learners": {"template": template}}}])
    problem = check_spec(run, Policy())
    assert problem is not None
    where = "spec.stages[short].resources.learners.template.spec.containers"
    assert problem.message == f"{where} names ray-worker twice: make one element of the two"


def test_second_container_of_a_name_does_not_set_what_the_first_may_not() -> None:
    containers = [{"name": "judge"}, {"name": "judge", "command": ["sh"]}]
    problem = check_templates(make_run(sandbox={"template": {"template": {"spec": {"containers": containers}}}}))
    assert problem is not None
    assert "names judge twice" in problem.message


def test_malformed_template_of_the_runs_own_pool_is_refused_with_the_run() -> None:
    run = make_run(sandbox={"template": {"template": {"spec": {"containers": "judge"}}}})
    problem = check_spec(run, Policy())
    assert problem is not None
    assert "spec.sandbox.template.template.spec.containers must be a list" in problem.message


def test_what_a_judges_template_may_not_set_is_refused_with_the_run() -> None:
    run = make_run(sandbox={"template": {"template": {"spec": {"hostNetwork": True}}}})
    problem = check_templates(run)
    assert problem is not None
    assert "spec.sandbox.template.template.spec.hostNetwork" in problem.message


def test_null_in_a_template_removes_a_field_and_is_no_mistake() -> None:
    template = {"metadata": None, "spec": {"nodeSelector": None, "volumes": None, "containers": None}}
    run = make_run(stages=[TRAIN | {"resources": {"learners": {"template": template}}}])
    assert check_spec(run, Policy()) is None
