"""The RayJob of an attempt.

KubeRay's own retries would start from nothing and reuse the name, so they are disabled: `backoffLimit: 0`, pods are
never restarted, and the head is never recreated. HTTPMode needs no submitter pod, which would count against the quota
and could fail by itself. With a queue, the RayJob is created suspended, and Kueue owns `suspend` from then on.
"""

from __future__ import annotations

import json

from deepcoder_contracts.api.attempt_status import AttemptStatus
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.api.stage import Stage, WorkerGroup
from deepcoder_contracts.sizing import per_pod
from deepcoder_contracts.stage import Placement, StageType
from deepcoder_operator.builders.meta import Object, metadata
from deepcoder_operator.builders.stage_config import CONFIG_DIRECTORY, STAGE_FILE
from deepcoder_operator.builders.trainer_pod import CONFIG_VOLUME, AttemptPods
from deepcoder_operator.domain.names import (
    HEAD,
    LABEL_ASKED_QUEUE,
    LABEL_ORDINAL,
    LABEL_STAGE,
    LEARNER,
    QUEUE_LABEL,
    SAMPLER,
)

RAY_VERSION = "2.60.0"
TTL_SECONDS = 60
"""Time, in seconds, that the cluster outlives its job, so that the last states of its pods can be observed. The
operator usually deletes it sooner."""

PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
"""Label with a WorkloadPriorityClass, which affects only the queue. Kueue reads it from the RayJob, so it is copied
there from the run."""
_BACKSTOP_SECONDS = 120


def build_rayjob(
    run: DeepCoderRun, attempt: AttemptStatus, image: str, config_map: str, *, s3_ca: bool, fixed_user: bool = True
) -> Object:
    """Build the RayJob, whose head mounts a ConfigMap. Raises `TemplateError` with the field a template may not set."""
    stage = run.spec.stages[attempt.stage_index]
    labels = {LABEL_STAGE: stage.name, LABEL_ORDINAL: str(attempt.ordinal)}
    queue = run.spec.scheduling.queue_name
    labels[LABEL_ASKED_QUEUE] = queue or ""
    labels |= {QUEUE_LABEL: queue} if queue else {}
    labels |= {k: v for k, v in run.metadata.labels.items() if k == PRIORITY_LABEL}
    meta = metadata(run, attempt.name, labels)
    meta["annotations"] = {"ray.io/disable-provisioned-head-restart": "true"}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": meta,
        "spec": {
            "entrypoint": f"deepcoder-trainer run --config {CONFIG_DIRECTORY}/{STAGE_FILE}",
            "submissionMode": "HTTPMode",
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": TTL_SECONDS,
            "preRunningDeadlineSeconds": stage.pre_running_deadline_seconds + _BACKSTOP_SECONDS,
            "suspend": bool(queue),
            "rayClusterSpec": _cluster(AttemptPods(run, stage, attempt.ordinal, config_map, image, s3_ca, fixed_user)),
        },
    }


def mounted_config_map(rayjob: Object) -> str | None:
    """Return the name of the ConfigMap that the head of a RayJob mounts, or None if it mounts none."""
    template = rayjob["spec"].get("rayClusterSpec", {}).get("headGroupSpec", {}).get("template", {})
    for volume in template.get("spec", {}).get("volumes") or ():
        if volume["name"] == CONFIG_VOLUME:
            sources = (volume.get("projected") or {}).get("sources") or ()
            return next((s["configMap"]["name"] for s in sources if "configMap" in s), None)
    return None


def _cluster(pods: AttemptPods) -> Object:
    groups = []
    for role, group, resources in _groups(pods.stage, pods.run.spec.recipe.tensor_parallel):
        groups.append(
            {
                "groupName": f"{role}s",
                "replicas": group.replicas,
                "minReplicas": group.replicas,
                "maxReplicas": group.replicas,
                # A shell comes between KubeRay and Ray, hence the quotes. They are single because KubeRay takes quotes
                # off, but no backslashes; if it cannot read this, it does not tell Ray of the pod's GPUs either.
                "rayStartParams": {"resources": f"'{json.dumps(resources)}'"},
                "template": pods.template(role, group.template),
            }
        )
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104  guarded by token and policy
            "template": pods.template(HEAD, pods.stage.resources.head.template),
        },
        "workerGroupSpecs": groups,
    }


def _groups(stage: Stage, tensor_parallel: int) -> list[tuple[str, WorkerGroup, dict[str, int]]]:
    """Return role, pods and Ray resources per pod: one unit of `sampler` per engine, one of `learner` per rank."""
    learners = stage.resources.learners or WorkerGroup()
    ranks = {LEARNER: per_pod(learners, 1)}
    if stage.placement is Placement.COLOCATED:
        return [(LEARNER, learners, ranks | {SAMPLER: per_pod(learners, tensor_parallel)})]
    samplers = stage.resources.samplers or WorkerGroup()
    groups = [(SAMPLER, samplers, {SAMPLER: per_pod(samplers, tensor_parallel)})]
    return [*groups, (LEARNER, learners, ranks)] if stage.type is StageType.TRAIN else groups
