"""Makes the platform ready for runs: cluster, chart, namespace, and model and problems in the bucket.

The demo and the end-to-end tests start with this. Whatever is ready is not made again.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from deepcoder_demo import data, platform
from deepcoder_demo.cluster import prepare
from deepcoder_demo.settings import NAMESPACE, Cluster
from deepcoder_demo.stopwatch import Stopwatch


def make_ready(stopwatch: Stopwatch) -> Cluster:
    """Everything but a run."""
    past_proxies(os.environ)
    cluster, folder = prepare(stopwatch)
    with stopwatch.part("put model and problems into the bucket"):
        sent = data.upload(folder, cluster.s3)
        stopwatch.console.print(f"{sent} files sent to s3://{cluster.s3.bucket}/{data.PREFIX}")
    with stopwatch.part("helm install"):
        platform.install_chart(cluster)
        platform.make_namespace(cluster, NAMESPACE)
    return cluster


def past_proxies(environment: MutableMapping[str, str]) -> None:
    """Make this process and its children connect to servers on this machine without a proxy.

    kubectl and helm use no proxy for 127.0.0.1; Python's clients do, unless the environment says otherwise.
    """
    known = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    value = known if known.strip() == "*" else ",".join(filter(None, (known, "127.0.0.1", "localhost")))
    environment.update({"no_proxy": value, "NO_PROXY": value})
