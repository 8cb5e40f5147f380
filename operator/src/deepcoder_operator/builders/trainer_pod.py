"""Pod templates of a Ray cluster: head, samplers, learners.

They meet the restricted Pod Security Standard unless the user's template says otherwise: non-root, no capabilities, a
read-only root file system with writable emptyDirs for /tmp and HOME, and no service-account token except the head's
own, which is bound to the operator's audience. Every pod gets the S3 credentials: heads and learners upload, samplers
fetch the model. Fields that a template may not set are refused with `TemplateError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.api.stage import Stage
from deepcoder_contracts.progress import AUDIENCE
from deepcoder_contracts.template_refusals import refused_of_run
from deepcoder_operator.builders import mesh
from deepcoder_operator.builders.podtemplate import TemplateError, merge
from deepcoder_operator.builders.restricted import CONTAINER_CONTEXT, pod_context
from deepcoder_operator.builders.stage_config import (
    CA_FILE,
    CONFIG_DIRECTORY,
    JUDGE_TOKEN,
    PROGRESS_TOKEN,
    STAGE_FILE,
)
from deepcoder_operator.domain.bounds import GRACE_SECONDS, SAMPLER_GRACE_SECONDS
from deepcoder_operator.domain.names import (
    HEAD,
    HEAD_CONTAINER,
    LABEL_ROLE,
    SAMPLER,
    TOGETHER_KEY,
    WORKER_CONTAINER,
    account_name,
    attempt_labels,
    pool_name,
)
from deepcoder_operator.domain.pool_names import TOKEN_KEY, token_secret_name

HOME = "/home/deepcoder"
S3_CA_DIRECTORY = "/etc/deepcoder-s3"
S3_CA_KEY = "ca.crt"
METRICS_PORT_VARIABLE = "DEEPCODER_METRICS_PORT"
METRICS_PORT = 9464
"""Port on which the driver, in the head pod, serves the trainer's own metrics."""

CONFIG_VOLUME = "config"
"""Volume of the head with the stage config and its tokens."""

_READY = {
    "httpGet": {"path": "/api/healthz", "port": 52365},
    "periodSeconds": 2,
    "timeoutSeconds": 5,
    "failureThreshold": 25,
}
"""KubeRay's probe of Ray's agent, without its initial delay of ten seconds, because a job starts only once all pods are
ready."""

_TOKEN_SECONDS = 3600


@dataclass(frozen=True)
class AttemptPods:
    """What determines the pods of an attempt."""

    run: DeepCoderRun

    stage: Stage
    """Stage of the attempt."""

    ordinal: int
    """Number of the attempt."""

    config_map: str
    """Name of the ConfigMap with the stage config."""

    image: str
    """Trainer image."""

    s3_ca: bool
    """Whether the bucket's Secret contains a ca.crt."""

    fixed_user: bool = True
    """Whether they run as the user of our images, or as the one that the cluster assigns."""

    def template(self, role: str, user: dict[str, Any]) -> dict[str, Any]:
        """Build the PodTemplateSpec of a role. Raises `TemplateError` if the user's template sets a field that the
        operator owns."""
        if refused := refused_of_run(user, self.stage.name, role):
            raise TemplateError(refused)
        meta = self.run.metadata
        labels = attempt_labels(meta.name, meta.uid, self.stage.name, self.ordinal) | {LABEL_ROLE: role} | mesh.LABELS
        spec = _pod_spec(self, role) | {"containers": [_container(self, role)]}
        return merge({"metadata": {"labels": labels, "annotations": mesh.ANNOTATIONS}, "spec": spec}, user)


def _container_of(role: str) -> str:
    return HEAD_CONTAINER if role == HEAD else WORKER_CONTAINER


def _pod_spec(pods: AttemptPods, role: str) -> dict[str, Any]:
    run = pods.run
    scheduling, checkpoint = run.spec.scheduling, run.spec.checkpoint
    volumes: list[dict[str, Any]] = [
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "home", "emptyDir": {}},
    ]
    if role == HEAD:
        sources = _sources(run, pods.config_map)
        volumes.append({"name": CONFIG_VOLUME, "projected": {"defaultMode": 0o440, "sources": sources}})
    if pods.s3_ca and checkpoint.s3.credentials_secret_ref:
        items = [{"key": S3_CA_KEY, "path": S3_CA_KEY}]
        secret = {"secretName": checkpoint.s3.credentials_secret_ref.name, "items": items, "defaultMode": 0o440}
        volumes.append({"name": "s3-ca", "secret": secret})
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": account_name(run.metadata.name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": (
            SAMPLER_GRACE_SECONDS if role == SAMPLER else checkpoint.drain_seconds + GRACE_SECONDS
        ),
        "securityContext": pod_context(fixed_user=pods.fixed_user) | {"fsGroupChangePolicy": "OnRootMismatch"},
        "volumes": volumes,
    }
    if run.spec.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": s.name} for s in run.spec.image_pull_secrets]
    if scheduling.priority_class_name:
        spec["priorityClassName"] = scheduling.priority_class_name
    if scheduling.scheduler_name:
        spec["schedulerName"] = scheduling.scheduler_name
    return spec


def _sources(run: DeepCoderRun, config_map: str) -> list[dict[str, Any]]:
    """Return the files of the head below /etc/deepcoder: stage config, the operator's CA, and tokens for operator and
    judges.

    Only one key of the judges' Secret is mounted, because a user's Secret may hold other keys that are not for the run.
    """
    files = [{"key": name, "path": name} for name in (STAGE_FILE, CA_FILE)]
    token = {"path": PROGRESS_TOKEN, "audience": AUDIENCE, "expirationSeconds": _TOKEN_SECONDS}
    hosted, pool = run.spec.sandbox.together, pool_name(run)
    if hosted is not None:
        secret, key = hosted.credentials_secret_ref.name, TOGETHER_KEY
    else:
        assert pool is not None, "the API sees to it"
        secret, key = token_secret_name(pool), TOKEN_KEY
    return [
        {"configMap": {"name": config_map, "items": files}},
        {"serviceAccountToken": token},
        {"secret": {"name": secret, "items": [{"key": key, "path": JUDGE_TOKEN}]}},
    ]


def _container(pods: AttemptPods, role: str) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = [
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  the container's own
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "home", "mountPath": HOME},
    ]
    if role == HEAD:
        mounts.append({"name": CONFIG_VOLUME, "mountPath": CONFIG_DIRECTORY, "readOnly": True})
    if pods.s3_ca:
        mounts.append({"name": "s3-ca", "mountPath": S3_CA_DIRECTORY, "readOnly": True})
    container: dict[str, Any] = {
        "name": _container_of(role),
        "image": pods.image,
        "imagePullPolicy": "IfNotPresent",
        "env": _env(pods, role),
        "readinessProbe": _READY,
        "resources": {"requests": {"cpu": "1", "memory": "4Gi"}},
        "securityContext": CONTAINER_CONTEXT | {"readOnlyRootFilesystem": True},
        "volumeMounts": mounts,
    }
    if role != SAMPLER:
        container["lifecycle"] = {"preStop": {"exec": {"command": ["deepcoder-trainer", "drain", "--wait"]}}}
    return container


def _env(pods: AttemptPods, role: str) -> list[dict[str, Any]]:
    run, s3 = pods.run, pods.run.spec.checkpoint.s3
    env: list[dict[str, Any]] = [
        _field("POD_NAME", "metadata.name"),
        _field("POD_NAMESPACE", "metadata.namespace"),
        _field("POD_UID", "metadata.uid"),
        {"name": "HOME", "value": HOME},
        {"name": "HF_HOME", "value": f"{HOME}/.cache/huggingface"},
        {"name": "XDG_CACHE_HOME", "value": f"{HOME}/.cache"},
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
        # Threads of torch that busy-wait starve each other if pods share cores.
        {"name": "OMP_WAIT_POLICY", "value": "PASSIVE"},
    ]
    if role == HEAD:
        env.append({"name": METRICS_PORT_VARIABLE, "value": str(METRICS_PORT)})
        # When a RayJob is deleted, KubeRay has Ray stop the driver: SIGTERM, then SIGKILL after this time, not 3 s.
        stop = run.spec.checkpoint.drain_seconds + GRACE_SECONDS
        env.append({"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": str(stop)})
    if not _uses_hub(run):
        env.append({"name": "HF_HUB_OFFLINE", "value": "1"})
    if s3.region:
        env.append({"name": "AWS_REGION", "value": s3.region})
    if s3.credentials_secret_ref:
        secret = s3.credentials_secret_ref.name
        env += [_key(k, secret) for k in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
        env.append(_key("AWS_SESSION_TOKEN", secret, optional=True))
    if pods.s3_ca:
        env.append({"name": "AWS_CA_BUNDLE", "value": f"{S3_CA_DIRECTORY}/{S3_CA_KEY}"})
    if run.spec.model.credentials_secret_ref:
        env.append(_key("HF_TOKEN", run.spec.model.credentials_secret_ref.name))
    return env


def _uses_hub(run: DeepCoderRun) -> bool:
    dataset = run.spec.dataset
    curate = dataset.curation if dataset else None
    uris = [run.spec.model.uri, (dataset.uri if dataset else None) or ""]
    uris += [s.uri for s in (*curate.inputs, *curate.against)] + [curate.pass_rates or ""] if curate else []
    uris += [d.uri for s in run.spec.stages if s.evaluate for d in s.evaluate.datasets]
    return any(u.startswith("hf://") for u in uris)


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _key(name: str, secret: str, *, optional: bool = False) -> dict[str, Any]:
    reference: dict[str, Any] = {"name": secret, "key": name}
    return {"name": name, "valueFrom": {"secretKeyRef": reference | ({"optional": True} if optional else {})}}
