"""The cluster to run on: the one that KUBECONFIG names, or one that devcluster makes.

devcluster installs KubeRay and an S3 server in its own cluster; an existing cluster must have them. The demo's model
and problems are made in parallel with the builds, once it is certain that there will be a cluster. If the cluster
fails, they are abandoned too.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from deepcoder_demo import commands, data, devcluster, existing_cluster
from deepcoder_demo.settings import Cluster
from deepcoder_demo.stopwatch import Stopwatch

BUILD_SECONDS = 3600
UP_SECONDS = 300
IMAGES_SECONDS = 1800
INSTALL_SECONDS = 600
DOCTOR_SECONDS = 60


def prepare(stopwatch: Stopwatch) -> tuple[Cluster, Path]:
    """A ready cluster, and the folder of the demo's model and problems, which is made at the same time."""
    at = devcluster.places()
    named = existing_cluster.named(os.environ, at.kubeconfig)
    users = existing_cluster.check(named, os.environ) if named is not None else None
    if users is None:
        devcluster.do("doctor", seconds=DOCTOR_SECONDS)
    with ThreadPoolExecutor(1) as beside:
        made: Future[Path] = beside.submit(_make_data, stopwatch, at.cache)
        try:
            cluster = users or _own(stopwatch, at)
            with stopwatch.part("wait for the demo's model and problems"):
                return cluster, made.result()
        except BaseException:
            commands.end_all()
            raise


def _make_data(stopwatch: Stopwatch, cache: Path) -> Path:
    with stopwatch.part("make the demo's model and problems", beside=True):
        return data.make(cache)


def _own(stopwatch: Stopwatch, at: devcluster.Places) -> Cluster:
    for part, command, seconds in (
        ("build programs and images", ["build", "--images"], BUILD_SECONDS),
        ("start the cluster", ["up"], UP_SECONDS),
        ("load images", ["images"], IMAGES_SECONDS),
        ("install DNS, KubeRay and S3", ["install"], INSTALL_SECONDS),
    ):
        with stopwatch.part(part):
            devcluster.do(*command, seconds=seconds)
    return devcluster.cluster(at)
