"""Which contexts a kubeconfig has, for whoever is to choose one."""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from kubernetes import config

from deepcoder_client.errors import NoCluster


def context_names(kubeconfig: str | Path | None = None) -> list[str]:
    """Of a file (default: KUBECONFIG, else ~/.kube/config), in its order; raises `NoCluster`."""
    file = os.fspath(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG") or None
    try:
        known, _ = config.list_kube_config_contexts(file)
    except (config.ConfigException, yaml.YAMLError, OSError, TypeError, ValueError) as error:
        raise NoCluster(f"no usable kubeconfig: {error}") from error
    return [str(each["name"]) for each in known]
