"""Settings from the operator's configuration that go into the objects of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainerSettings:
    """Settings of the operator for a run's objects."""

    progress_url: str
    """URL, without a path, at which head pods reach the progress server."""

    ca_bundle: str
    """PEM bundle that verifies the progress server's certificate."""

    kuberay_namespace: str = "kuberay-system"
    """Namespace of KubeRay, which submits jobs to the heads."""

    monitoring_namespace: str | None = None
    """Namespace that may scrape metrics."""

    fixed_user: bool = True
    """Whether pods run as the user of our images, or as the one that the cluster assigns."""
