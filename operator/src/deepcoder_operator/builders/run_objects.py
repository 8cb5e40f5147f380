"""Objects that all attempts of a run share: config, account without permissions, NetworkPolicy, the run's own pool."""

from __future__ import annotations

from typing import Any

from deepcoder_contracts.api.base import API_VERSION
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_operator.builders.meta import Object, metadata
from deepcoder_operator.builders.settings import TrainerSettings
from deepcoder_operator.builders.trainer_pod import METRICS_PORT
from deepcoder_operator.domain.names import (
    LABEL_ROLE,
    LABEL_RUN_UID,
    account_name,
    config_name,
    own_pool_name,
    policy_name,
)
from deepcoder_operator.domain.resolve import ResolvedConfig

CONFIG_FILE = "config.json"

_DASHBOARD_PORT = 8265
_METRICS_PORTS = (8080, 44217, 44227, METRICS_PORT)
"""Metrics ports: Ray's export, its autoscaler's and dashboard's, and the trainer's own."""


def build_config_map(run: DeepCoderRun, config: ResolvedConfig) -> Object:
    """Build the immutable ConfigMap of the resolved config. Its digest is in status.provenance."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(run, config_name(run.metadata.name)),
        "immutable": True,
        "data": {CONFIG_FILE: config.to_json().decode()},
    }


def build_service_account(run: DeepCoderRun) -> Object:
    """Build the ServiceAccount of the run's pods. No role is bound to it."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(run, account_name(run.metadata.name)),
        "automountServiceAccountToken": False,
    }


def build_network_policy(run: DeepCoderRun, settings: TrainerSettings) -> Object:
    """Build the NetworkPolicy: the run's pods accept only each other, KubeRay on the job port, and Prometheus, because
    Ray's dashboard runs arbitrary code."""
    mine = {"matchLabels": {LABEL_RUN_UID: run.metadata.uid}}
    rules: list[dict[str, Any]] = [
        {"from": [{"podSelector": mine}]},
        {"from": [_namespace(settings.kuberay_namespace)], "ports": [_port(_DASHBOARD_PORT)]},
    ]
    if settings.monitoring_namespace:
        ports = [_port(p) for p in _METRICS_PORTS]
        rules.append({"from": [_namespace(settings.monitoring_namespace)], "ports": ports})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(run, policy_name(run.metadata.name)),
        "spec": {
            "podSelector": mine | {"matchExpressions": [{"key": LABEL_ROLE, "operator": "Exists"}]},
            "policyTypes": ["Ingress"],
            "ingress": rules,
        },
    }


def build_pool(run: DeepCoderRun) -> Object | None:
    """Build the run's own SandboxPool, or None if it refers to another. Only fields that the user wrote are set."""
    template = run.spec.sandbox.template
    if template is None:
        return None
    return {
        "apiVersion": API_VERSION,
        "kind": "SandboxPool",
        "metadata": metadata(run, own_pool_name(run.metadata.name)),
        "spec": template.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def _namespace(name: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _port(number: int) -> dict[str, Any]:
    return {"port": number, "protocol": "TCP"}
