"""What is built for a run: RayJob, pods, stage config, and network policy."""

from __future__ import annotations

import json

import pytest
from plan_world import UID, make_run
from run_builds import SETTINGS, config, groups, head, job, pods, resources_of, with_gpus
from run_manifests import EVALUATE, LONGER, TRAIN, run_manifest

from deepcoder_contracts.api.run import MAX_NAME_LENGTH, DeepCoderRun
from deepcoder_contracts.api.run_spec import MAX_STAGES
from deepcoder_contracts.rope import RopeScaling, RopeType
from deepcoder_contracts.sizing import pod_gpus
from deepcoder_contracts.stage import StageConfig
from deepcoder_operator.builders.run_objects import build_network_policy, build_pool
from deepcoder_operator.domain.admission import check_spec
from deepcoder_operator.domain.names import MAX_ORDINAL, attempt_name
from deepcoder_operator.domain.policy import Policy

MONITORING = {"kubernetes.io/metadata.name": "monitoring"}


def test_kuberay_never_retries_by_itself() -> None:
    rayjob = job(make_run())
    assert rayjob["metadata"]["annotations"] == {"ray.io/disable-provisioned-head-restart": "true"}
    spec = rayjob["spec"]
    assert (spec["backoffLimit"], spec["shutdownAfterJobFinishes"], spec["submissionMode"]) == (0, True, "HTTPMode")
    assert all(p["restartPolicy"] == "Never" for p in pods(rayjob))
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["suspend"] is False


def test_queue_owns_suspend_and_sees_its_label() -> None:
    rayjob = job(make_run(scheduling={"queueName": "team"}))
    assert rayjob["spec"]["suspend"] is True
    assert rayjob["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"


def test_a_runs_priority_in_its_queue_is_its_jobs_and_no_other_label_is() -> None:
    """Kueue reads it from the RayJob, on which a user sets nothing."""
    run = make_run(scheduling={"queueName": "team"})
    labels = {"kueue.x-k8s.io/priority-class": "nightly", "team": "rl"}
    run = run.model_copy(update={"metadata": run.metadata.model_copy(update={"labels": labels})})
    made = job(run)["metadata"]["labels"]
    assert made["kueue.x-k8s.io/priority-class"] == "nightly"
    assert "team" not in made


def test_pods_meet_the_restricted_standard() -> None:
    for pod in pods(job(make_run())):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }


@pytest.mark.parametrize("fixed", [True, False])
def test_user_and_groups_are_ours_or_the_clusters(fixed: bool) -> None:
    for pod in pods(job(make_run(), fixed_user=fixed)):
        context = pod["securityContext"]
        named = {name: context[name] for name in ("runAsUser", "runAsGroup", "fsGroup") if name in context}
        assert named == ({"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000} if fixed else {})
        assert context["runAsNonRoot"] is True


def test_a_mesh_puts_no_proxy_into_a_run_unless_a_template_says_so() -> None:
    """The proxy of a head that is evicted would end while the head still saves."""
    wanted = {"metadata": {"labels": {"sidecar.istio.io/inject": "true"}}}
    rayjob = job(make_run(stages=[TRAIN | {"resources": {"samplers": {"template": wanted}}}]))
    templates = [head(rayjob), *(group["template"] for group in groups(rayjob).values())]
    assert [t["metadata"]["labels"]["sidecar.istio.io/inject"] for t in templates] == ["false", "true", "false"]
    assert {t["metadata"]["annotations"]["linkerd.io/inject"] for t in templates} == {"disabled"}


def test_only_the_head_has_a_token_and_it_is_bound_to_our_audience() -> None:
    rayjob = job(make_run())
    assert all(p["automountServiceAccountToken"] is False for p in pods(rayjob))
    tokens = [json.dumps(p["volumes"]).count("serviceAccountToken") for p in pods(rayjob)]
    assert tokens == [1, 0, 0]
    sources = next(v for v in head(rayjob)["spec"]["volumes"] if v["name"] == "config")["projected"]["sources"]
    token = next(s for s in sources if "serviceAccountToken" in s)["serviceAccountToken"]
    assert token["audience"] == "deepcoder-operator"
    assert next(s for s in sources if "secret" in s)["secret"]["name"] == "demo-sandbox-token"


def test_head_and_learners_drain_before_they_end_and_samplers_do_not() -> None:
    rayjob = job(make_run())
    head_pod, sampler, learner = pods(rayjob)
    for pod in (head_pod, learner):
        hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert hook == ["deepcoder-trainer", "drain", "--wait"]
        assert pod["terminationGracePeriodSeconds"] == 330
    assert "lifecycle" not in sampler["containers"][0]


def test_a_pod_is_ready_as_soon_as_ray_answers_and_a_template_may_have_another_probe() -> None:
    """A job starts when every pod is ready, and KubeRay would ask each after ten seconds for the first time."""
    for pod in pods(job(make_run())):
        probe = pod["containers"][0]["readinessProbe"]
        assert probe["httpGet"] == {"path": "/api/healthz", "port": 52365}
        assert probe["periodSeconds"] <= 2
        assert "initialDelaySeconds" not in probe
    own = {"exec": {"command": ["true"]}, "initialDelaySeconds": 30}
    template = {"spec": {"containers": [{"name": "ray-head", "readinessProbe": own}]}}
    made = head(job(make_run(stages=[TRAIN | {"resources": {"head": {"template": template}}}])))
    assert made["spec"]["containers"][0]["readinessProbe"] == own


def test_ray_gives_a_driver_that_it_is_told_to_stop_the_time_to_save() -> None:
    """KubeRay tells it so when a RayJob is deleted; unasked, Ray kills the driver after three seconds."""
    rayjob = job(make_run(checkpoint=run_manifest("ml")["spec"]["checkpoint"] | {"drainSeconds": 120}))
    told = [{e["name"]: e.get("value") for e in p["containers"][0]["env"]} for p in pods(rayjob)]
    assert [env.get("RAY_JOB_STOP_WAIT_TIME_S") for env in told] == ["150", None, None]


def test_no_group_may_grow_or_shrink_by_itself() -> None:
    """Ray's autoscaler would add pods that no quota was asked for."""
    stage = TRAIN | {"resources": {"samplers": {"replicas": 3}, "learners": {"replicas": 2}}}
    spec = job(make_run(stages=[stage]))["spec"]["rayClusterSpec"]
    assert not spec.get("enableInTreeAutoscaling")
    groups = {g["groupName"]: (g["minReplicas"], g["replicas"], g["maxReplicas"]) for g in spec["workerGroupSpecs"]}
    assert groups == {"samplers": (3, 3, 3), "learners": (2, 2, 2)}


def test_processes_follow_from_the_gpus_of_the_pods() -> None:
    stage = TRAIN | {"resources": {"samplers": with_gpus(8, 2), "learners": with_gpus(8, 2)}}
    run = make_run(stages=[stage], recipe={"tensorParallel": 2})
    made = groups(job(run))
    assert resources_of(made["samplers"]) == {"sampler": 4}
    assert resources_of(made["learners"]) == {"learner": 8}
    asked = config(run).stage.resources
    assert (asked.samplers, asked.learners, asked.accelerators) == (8, 16, True)


def test_kuberay_can_read_a_pods_resources_without_which_it_does_not_tell_ray_of_its_gpus() -> None:
    """KubeRay takes the outer quotes off and parses JSON. If that fails, it leaves out `--num-gpus` as well, and Ray
    counts the GPUs that the driver shows it (`addWellKnownAcceleratorResources` in KubeRay 1.6)."""
    stage = TRAIN | {"resources": {"samplers": with_gpus(8), "learners": with_gpus(8)}}
    made = groups(job(make_run(stages=[stage], recipe={"tensorParallel": 2})))
    read = {name: json.loads(group["rayStartParams"]["resources"].strip("'\"` ")) for name, group in made.items()}
    assert read == {"samplers": {"sampler": 4}, "learners": {"learner": 8}}


def test_a_slice_of_a_gpu_is_a_gpu_and_a_pod_has_one_since_a_process_sees_no_other() -> None:
    """Without it the trainer would compute on CPUs, in a pod that holds the slice for nothing."""

    def sliced(count: int) -> DeepCoderRun:
        limits = {"nvidia.com/mig-3g.40gb": count, "example.com/migrations": 7}
        container = {"name": "ray-worker", "resources": {"limits": limits}}
        learners = {"replicas": 2, "template": {"spec": {"containers": [container]}}}
        return make_run(image="trainer:1", stages=[TRAIN | {"resources": {"learners": learners}}])

    asked = config(sliced(1)).stage.resources
    assert (asked.learners, asked.accelerators) == (2, True)
    assert check_spec(sliced(1), Policy()) is None
    problem = check_spec(sliced(2), Policy())
    assert problem is not None
    assert "resources.learners requests 2 GPUs per pod, MIG devices among them" in problem.message


@pytest.mark.parametrize("device", ["mig-1g.10gb.me", "mig-1c.3g.40gb"])
def test_a_slice_that_nobody_counts_as_a_gpu_is_refused_by_name(device: str) -> None:
    container = {"name": "ray-worker", "resources": {"limits": {f"nvidia.com/{device}": 1}}}
    learners = {"template": {"spec": {"containers": [container]}}}
    run = make_run(image="trainer:1", stages=[TRAIN | {"resources": {"learners": learners}}])
    problem = check_spec(run, Policy())
    assert problem is not None
    assert f"limits[nvidia.com/{device}]: KubeRay does not count a device of this name as a GPU" in problem.message


@pytest.mark.parametrize("gpus", [0, 8])
def test_devices_that_pods_claim_beside_their_gpus_are_theirs_and_gpus_that_they_claim_are_refused(gpus: int) -> None:
    """Claims of network devices are common beside GPUs; of GPUs nothing would be seen, and CPUs would compute."""
    group = with_gpus(gpus) if gpus else {"replicas": 1, "template": {"spec": {"containers": []}}}
    group["template"]["spec"]["resourceClaims"] = [{"name": "device", "resourceClaimTemplateName": "device"}]
    run = make_run(image="trainer:1", stages=[TRAIN | {"resources": {"learners": group}}])
    problem = check_spec(run, Policy())
    assert (problem.reason if problem else "") == ("" if gpus else "ClaimedGPUsNotSupported")
    assert problem is None or "resources.learners claims devices (resourceClaims)" in problem.message


def test_without_gpus_a_pod_is_one_process() -> None:
    run = make_run()
    assert {name: resources_of(g) for name, g in groups(job(run)).items()} == {
        "samplers": {"sampler": 1},
        "learners": {"learner": 1},
    }
    asked = config(run).stage.resources
    assert (asked.samplers, asked.learners, asked.accelerators) == (1, 1, False)


def test_colocated_stage_has_one_group_with_both_roles_on_each_gpu() -> None:
    stage = TRAIN | {"placement": "Colocated", "resources": {"learners": with_gpus(8, 2)}}
    run = make_run(stages=[stage], recipe={"maxOffPolicy": 0})
    made = groups(job(run))
    assert {name: resources_of(g) for name, g in made.items()} == {"learners": {"learner": 8, "sampler": 8}}
    [pods] = made.values()
    assert pods["replicas"] * pod_gpus(pods["template"]["spec"]) == 16, "each GPU is asked for once"
    asked = config(run).stage
    assert asked.colocated
    assert (asked.resources.samplers, asked.resources.learners, asked.resources.accelerators) == (16, 16, True)


def test_evaluate_stage_has_no_learners() -> None:
    run = make_run(stages=[TRAIN, LONGER, EVALUATE])
    assert list(groups(job(run, 2))) == ["samplers"]
    assert config(run, 2).stage.resources.learners == 0


def test_a_stages_own_batch_reaches_the_trainer_and_no_other_stage() -> None:
    run = make_run(stages=[TRAIN | {"recipe": {"promptsPerStep": 6, "learningRate": 1e-5}}, LONGER])
    here, there = config(run).recipe, config(run, 1).recipe
    assert (here.prompts_per_step, here.learning_rate) == (6, 1e-5)
    assert here == there.model_copy(update={"prompts_per_step": 6, "learning_rate": 1e-5})
    assert there.prompts_per_step == run.spec.recipe.prompts_per_step != 6


def test_scaled_positions_reach_the_trainer() -> None:
    rope = {"type": "Yarn", "factor": 4, "originalPositions": 32768}
    made = config(make_run(stages=[TRAIN | {"rope": rope}]))
    assert made.stage.rope == RopeScaling(type=RopeType.YARN, factor=4, original_positions=32768)


def test_stage_config_says_where_everything_is() -> None:
    made = config(make_run(), 1)
    assert made.storage.uri == f"s3://deepcoder/ml/demo-{UID[:8]}"
    assert made.judge.host == "demo-sandbox-judge.ml.svc"
    assert made.judge.token_file == "/etc/deepcoder/judge/token"
    assert made.progress is not None
    assert made.progress.url == "https://operator.deepcoder.svc:8443/v1/runs/ml/demo/progress"
    assert made.earlier_stages == ["short"]
    assert StageConfig.from_json(made.to_json()) == made


def test_the_key_of_a_hosted_judge_goes_to_the_head_alone_as_a_file_and_no_pool_is_named() -> None:
    together = {"credentialsSecretRef": {"name": "team"}, "endpoint": "https://proxy/v1", "concurrency": 7}
    run = make_run(sandbox={"together": together})
    made = config(run)
    assert (made.judge.backend, made.judge.host, made.judge.token_file) == ("Together", None, None)
    assert made.judge.together is not None
    assert (made.judge.together.endpoint, made.judge.together.concurrency) == ("https://proxy/v1", 7)
    assert made.judge.together.key_file == "/etc/deepcoder/judge/token"
    rayjob = job(run)
    assert [json.dumps(p).count('"team"') for p in pods(rayjob)] == [1, 0, 0]
    assert "TOGETHER" not in json.dumps([c["env"] for p in pods(rayjob) for c in p["containers"]])
    sources = next(v for v in head(rayjob)["spec"]["volumes"] if v["name"] == "config")["projected"]["sources"]
    secret = next(s for s in sources if "secret" in s)["secret"]
    assert secret == {"name": "team", "items": [{"key": "TOGETHER_API_KEY", "path": "judge/token"}]}
    assert "demo-sandbox" not in json.dumps(rayjob) + made.to_json().decode()
    assert build_pool(run) is None


def test_longest_context_counts_evaluation_within_the_stage() -> None:
    evaluate = {"datasets": [{"name": "d", "uri": "/d"}], "contextTokens": 4096}
    assert config(make_run(stages=[TRAIN | {"evaluate": evaluate}])).longest_context_tokens == 4096


def test_certificate_of_the_s3_server_reaches_every_pod() -> None:
    for pod in pods(job(make_run(), s3_ca=True)):
        env = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
        assert env["AWS_CA_BUNDLE"] == "/etc/deepcoder-s3/ca.crt"
        assert any(m["mountPath"] == "/etc/deepcoder-s3" for m in pod["containers"][0]["volumeMounts"])


def test_hub_is_offline_unless_something_comes_from_it() -> None:
    def names(run: DeepCoderRun) -> list[str]:
        return [e["name"] for e in head(job(run))["spec"]["containers"][0]["env"]]

    assert "HF_HUB_OFFLINE" in names(make_run())
    assert "HF_HUB_OFFLINE" not in names(make_run(model={"uri": "hf://org/model"}))


def test_no_secret_value_is_in_any_object() -> None:
    env = head(job(make_run()))["spec"]["containers"][0]["env"]
    for entry in env:
        if "SECRET" in entry["name"] or "TOKEN" in entry["name"]:
            assert "value" not in entry


def test_dashboard_is_open_to_kuberay_alone() -> None:
    rules = build_network_policy(make_run(), SETTINGS)["spec"]["ingress"]
    (rule,) = [r for r in rules if {"port": 8265, "protocol": "TCP"} in r.get("ports", [])]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}}}]


def test_monitoring_reaches_the_port_on_which_the_head_serves_the_trainers_metrics() -> None:
    served = [
        int(e["value"]) for p in pods(job(make_run())) for e in p["containers"][0]["env"] if "METRICS_PORT" in e["name"]
    ]
    rules = build_network_policy(make_run(), SETTINGS)["spec"]["ingress"]
    (rule,) = [r for r in rules if r["from"][0].get("namespaceSelector", {}).get("matchLabels", {}) == MONITORING]
    assert len(served) == 1, "the head alone serves them"
    assert served[0] in [p["port"] for p in rule["ports"]]


def test_own_pool_is_what_the_user_wrote_and_a_shared_one_is_not_made() -> None:
    made = build_pool(make_run(sandbox={"template": {"maxReplicas": 7}}))
    assert made is not None
    assert made["metadata"]["name"] == "demo-sandbox"
    assert made["spec"]["maxReplicas"] == 7
    assert build_pool(make_run(sandbox={"poolRef": {"name": "shared"}})) is None


def test_longest_names_fit_kuberays_limit() -> None:
    assert len(attempt_name("r" * MAX_NAME_LENGTH, MAX_STAGES - 1, MAX_ORDINAL)) <= 47
