"""A platform that is ready for runs: cluster, chart, namespace, model and problems in the bucket.

The demo and the end-to-end tests begin here; what is ready already is not made again.
"""

from __future__ import annotations

from deepcoder_demo import data, platform
from deepcoder_demo.clock import Stopwatch
from deepcoder_demo.cluster import prepare
from deepcoder_demo.settings import NAMESPACE, Cluster


def make_ready(stopwatch: Stopwatch) -> Cluster:
    """Everything but a run."""
    cluster, folder = prepare(stopwatch)
    with stopwatch.part("put model and problems into the bucket"):
        sent = data.upload(folder, cluster.s3)
        stopwatch.console.print(f"{sent} files sent to s3://{cluster.s3.bucket}/{data.PREFIX}")
    with stopwatch.part("helm install"):
        platform.install_chart(cluster)
        platform.make_namespace(cluster, NAMESPACE)
    return cluster
