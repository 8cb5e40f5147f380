"""Where the demo finds things: the checkout, the cache, the tools, the cluster and its S3 server.

The demo runs from a checkout (it builds images from it). Where KUBECONFIG names a reachable cluster, that one is used
and none is built; its images and its S3 server then come from variables, and what is missing is said by name.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
OUTPUT = REPOSITORY / "out" / "demo"
NAMESPACE = "demo"
RUN = "demo"
OPERATOR_NAMESPACE = "deepcoder"
CREDENTIALS_SECRET = "deepcoder-s3"  # noqa: S105 - the Secret's name


CREDENTIAL_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


class SettingsError(Exception):
    """Something the demo needs is missing; the message says what to set."""


def cache_dir() -> Path:
    """Where expensive things are kept between runs."""
    return Path(os.environ.get("DEEPCODER_CACHE") or Path.home() / ".cache" / "deepcoder")


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


@dataclass(frozen=True)
class Images:
    """Image references that the cluster can pull."""

    operator: str
    trainer: str
    sandbox: str


@dataclass(frozen=True)
class Cluster:
    """A cluster to run the demo on."""

    kubeconfig: Path
    ours: bool
    """Whether devcluster made it."""
    images: Images
    s3: S3Access
    kubectl: str = "kubectl"
    helm: str = "helm"


def foreign_cluster(kubeconfig: Path) -> Cluster:
    """A cluster of the user's: images and S3 server come from variables."""
    names = ("DEEPCODER_IMAGES", "DEEPCODER_S3_ENDPOINT", "DEEPCODER_S3_BUCKET", *CREDENTIAL_VARIABLES)
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise SettingsError(
            f"KUBECONFIG names a reachable cluster ({kubeconfig}), so none is built. The demo then also needs "
            f"{', '.join(missing)}: DEEPCODER_IMAGES is a JSON file with the keys operator, trainer and sandbox, whose "
            "images the cluster can pull. Or unset KUBECONFIG to have a cluster made on this machine."
        )
    endpoint = os.environ["DEEPCODER_S3_ENDPOINT"]
    return Cluster(
        kubeconfig,
        ours=False,
        images=read_images(Path(os.environ["DEEPCODER_IMAGES"])),
        s3=S3Access(
            endpoint=endpoint,
            host_endpoint=os.environ.get("DEEPCODER_S3_HOST_ENDPOINT", endpoint),
            bucket=os.environ["DEEPCODER_S3_BUCKET"],
            region=os.environ.get("AWS_REGION", "us-east-1"),
            access_key=os.environ["AWS_ACCESS_KEY_ID"],
            secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        ),
    )


def read_images(path: Path) -> Images:
    """Image references from a JSON file with the keys operator, trainer and sandbox."""
    try:
        values = json.loads(path.read_text())
        return Images(operator=values["operator"], trainer=values["trainer"], sandbox=values["sandbox"])
    except (OSError, ValueError, KeyError) as error:
        raise SettingsError(f"{path} must be JSON with the keys operator, trainer and sandbox: {error!r}") from error
