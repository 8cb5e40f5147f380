"""The demo's settings, shared by all its parts: names, paths in the checkout, the cluster to run on.

The demo runs from a checkout, because it builds images from it. Everything here is a value; nothing fails.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
OUTPUT = REPOSITORY / "out" / "demo"
NAMESPACE = "demo"
RUN = "demo"
OPERATOR_NAMESPACE = "deepcoder"
MADE_BY = {"deepcoder.dev/made-by": "demo"}
"""Label of the namespaces that the demo makes, and annotation of its operator's pods, a value of its release."""
CREDENTIALS_SECRET = "deepcoder-s3"  # noqa: S105 - the Secret's name


class SettingsError(Exception):
    """Something the demo needs is missing; the message says what to set."""


def tool(name: str) -> Path:
    """A program of the virtual environment that runs us."""
    return Path(sys.executable).parent / name


@dataclass(frozen=True)
class S3Access:
    """An S3 server as the cluster and this process see it."""

    endpoint: str
    """URL for pods."""
    host_endpoint: str
    """URL for this process."""
    bucket: str
    region: str
    access_key: str
    secret_key: str
    session_token: str = ""
    """Belongs to temporary keys; empty for others."""


@dataclass(frozen=True)
class Images:
    """Image references that the cluster can pull."""

    operator: str
    trainer: str
    sandbox: str


@dataclass(frozen=True)
class Cluster:
    """A cluster to run the demo on."""

    kubeconfig: str
    """Value for KUBECONFIG: one file, or several joined by ':'."""
    ours: bool
    """Whether devcluster made it."""
    images: Images
    s3: S3Access
    kubectl: str = "kubectl"
    helm: str = "helm"
