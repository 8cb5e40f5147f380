"""What the operator builds for a run, and the parts of it that tests look at."""

from __future__ import annotations

import json
import shlex
from typing import Any

from plan_world import START

from deepcoder_contracts.api.attempt_status import AttemptStatus
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.api.run_status import ProvenanceStatus
from deepcoder_contracts.stage import StageConfig
from deepcoder_operator.builders.rayjob import build_rayjob
from deepcoder_operator.builders.settings import TrainerSettings
from deepcoder_operator.builders.stage_config import build_stage_config
from deepcoder_operator.domain.resolve import resolve

SETTINGS = TrainerSettings("https://operator.deepcoder.svc:8443", "CA", monitoring_namespace="monitoring")


def attempt(index: int = 0, ordinal: int = 1) -> AttemptStatus:
    return AttemptStatus(ordinal=ordinal, stage_index=index, name=f"demo-s{index}-a{ordinal}", intended_time=START)


def job(run: DeepCoderRun, index: int = 0, **options: Any) -> dict[str, Any]:
    return build_rayjob(run, attempt(index), "trainer:1", "config", **({"s3_ca": False} | options))


def config(run: DeepCoderRun, index: int = 0) -> StageConfig:
    resolved = resolve(run, None)
    provenance = ProvenanceStatus(
        config_digest=resolved.digest, image="trainer:1", model="m", storage="s", operator_version="v"
    )
    return build_stage_config(run, attempt(index), resolved, provenance, SETTINGS)


def head(rayjob: dict[str, Any]) -> dict[str, Any]:
    template: dict[str, Any] = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    return template


def groups(rayjob: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {g["groupName"]: g for g in rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]}


def pods(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    return [head(rayjob)["spec"], *(g["template"]["spec"] for g in groups(rayjob).values())]


def resources_of(group: dict[str, Any]) -> dict[str, int]:
    """As `ray start --resources=…` gets them, after the shell has taken the quotes off."""
    [word] = shlex.split(group["rayStartParams"]["resources"])
    parsed: dict[str, int] = json.loads(word)
    return parsed


def with_gpus(count: object, replicas: int = 1) -> dict[str, Any]:
    container = {"name": "ray-worker", "resources": {"limits": {"nvidia.com/gpu": count}}}
    return {"replicas": replicas, "template": {"spec": {"containers": [container]}}}
