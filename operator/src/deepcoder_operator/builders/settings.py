"""What the operator's own configuration adds to the objects of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainerSettings:
    """The operator's side of a run's objects."""

    progress_url: str
    """Under which heads reach the progress server, without a path."""

    ca_bundle: str
    """PEM bundle that its certificate is checked against."""

    kuberay_namespace: str = "kuberay-system"
    """Namespace of KubeRay, which submits jobs to the heads."""

    monitoring_namespace: str | None = None
    """Namespace that may scrape metrics."""
