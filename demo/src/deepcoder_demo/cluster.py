"""The cluster to run on: the one that KUBECONFIG names, or one that devcluster makes.

A KUBECONFIG that names no reachable cluster is an error and not a reason to build one: the user meant something by
it. KubeRay and an S3 server are installed by devcluster in its own cluster; a foreign one must have them.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from deepcoder_demo import data
from deepcoder_demo.clock import Stopwatch
from deepcoder_demo.commands import CommandFailed, run
from deepcoder_demo.settings import Cluster, Images, S3Access, SettingsError, foreign_cluster
from devcluster import tools
from devcluster.config import Cluster as DevCluster

BUILD_SECONDS = 3600
UP_SECONDS = 300
IMAGES_SECONDS = 1800
INSTALL_SECONDS = 600


def prepare(stopwatch: Stopwatch) -> tuple[Cluster, Path]:
    """A ready cluster and the folder of the demo's model and problems, which is made side by side."""
    with ThreadPoolExecutor(1) as beside:
        made: Future[Path] = beside.submit(_make_data, stopwatch)
        cluster = _named_by_user() or _own(stopwatch)
        with stopwatch.part("wait for the demo's model and problems"):
            return cluster, made.result()


def _make_data(stopwatch: Stopwatch) -> Path:
    with stopwatch.part("make the demo's model and problems", beside=True):
        return data.make()


def _named_by_user() -> Cluster | None:
    named = os.environ.get("KUBECONFIG")
    if not named or Path(named) == DevCluster.named().kubeconfig:
        return None
    try:
        run(["kubectl", "--kubeconfig", named, "get", "--raw=/readyz", "--request-timeout=10s"], seconds=20)
    except CommandFailed as error:
        raise SettingsError(
            f"KUBECONFIG={named} names a cluster that does not answer: {error}\nUnset it to have a cluster made here."
        ) from error
    return foreign_cluster(Path(named))


def _own(stopwatch: Stopwatch) -> Cluster:
    for part, arguments, seconds in (
        ("build programs and base images", ["build"], BUILD_SECONDS),
        ("start the cluster", ["up"], UP_SECONDS),
        ("build and load images", ["images"], IMAGES_SECONDS),
        ("install DNS, KubeRay and S3", ["install"], INSTALL_SECONDS),
    ):
        with stopwatch.part(part):
            run([sys.executable, "-m", "devcluster", *arguments], seconds=seconds, show=True)
    ours = DevCluster.named()
    images = json.loads((ours.state / "images.json").read_text())
    s3 = json.loads((ours.state / "s3.json").read_text())
    programs = tools.directory(ours.cache)
    return Cluster(
        kubeconfig=ours.kubeconfig,
        ours=True,
        kubectl=str(programs / "kubectl"),
        helm=str(programs / "helm"),
        images=Images(**{part: images[part]["reference"] for part in ("operator", "trainer", "sandbox")}),
        s3=S3Access(
            endpoint=s3["endpoint_in_cluster"],
            host_endpoint=s3["endpoint_on_host"],
            bucket=s3["bucket"],
            region=s3["region"],
            access_key=s3["access_key_id"],
            secret_key=s3["secret_access_key"],
        ),
    )
