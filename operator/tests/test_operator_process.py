"""The operator's process and what it stands on: signals, an API server that is away, kinds that are not served."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from crd_serving import established
from loop_world import Cluster, Wire, install_kuberay_crds, kuberay_crds, let_runs_go, wait_for
from run_manifests import TRAIN

from deepcoder_contracts.api.base import API_VERSION
from deepcoder_operator.__main__ import RECURSION_LIMIT
from deepcoder_operator.kube.client import Object
from deepcoder_operator.kube.resources import (
    CRDS,
    POOLS,
    RUNS,
)

pytestmark = [pytest.mark.apiserver, pytest.mark.s3]


async def test_sigterm_ends_the_command_in_time_and_well(site: Cluster) -> None:
    await site.start_operator("-m", "deepcoder_operator")
    await wait_for("the operator is ready", site.ready)
    assert site.process is not None
    site.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):  # a pod's grace
        assert await site.process.wait() == 0
    assert "Traceback" not in (site.directory / "operator.log").read_text()


async def test_operator_is_ready_once_runs_can_be_listed_and_sees_those_of_a_crd_that_came_later(
    cluster: Cluster,
) -> None:
    await cluster.kill_operator()
    crd = f"{RUNS.plural}.{RUNS.group}"
    definition = await cluster.kube.get(CRDS, None, crd)
    await cluster.kube.delete(CRDS, None, crd)
    await let_runs_go(cluster.kube, None)

    async def removed() -> bool:
        return await cluster.kube.find(CRDS, None, crd) is None

    await wait_for("the CRD is gone", removed)
    try:
        await cluster.start_operator()

        async def lacks_runs_only() -> bool:
            return (await cluster.probe("readyz")) == (503, "caches: not listed yet: deepcoderruns\n")

        await wait_for("runs cannot be listed", lacks_runs_only)
    finally:
        kept = {"name": crd, "annotations": definition["metadata"].get("annotations", {})}
        await cluster.kube.apply({**definition, "metadata": kept, "status": {}} | {"kind": "CustomResourceDefinition"})
        await established(cluster.kube, crd)
    await wait_for("the operator is ready", cluster.ready)
    await cluster.create_run(stages=[TRAIN])
    await cluster.until_running("demo-s0-a1")


async def test_outage_of_the_api_server_is_outlived_by_the_same_process(cluster: Cluster) -> None:
    await cluster.kill_operator()
    config = json.loads(cluster.kubeconfig.read_text())
    server = config["clusters"][0]["cluster"]
    wire = Wire(urlsplit(server["server"]).port or 0)
    cluster.kubeconfig = cluster.directory / "kubeconfig"
    await wire.connect()
    server["server"] = f"https://127.0.0.1:{wire.port}"
    cluster.kubeconfig.write_text(json.dumps(config))
    await cluster.start_operator()
    await wait_for("the operator is ready", cluster.ready)
    await wire.cut()
    await cluster.create_run(stages=[TRAIN])

    async def noticed() -> bool:
        """Its Lease was asked for in vain, and its watches are broken: soon, as its Lease lasts for seconds only."""
        log = (cluster.directory / "operator.log").read_text()
        return all(words in log for words in (" cannot be read or written: ", " cannot be watched: watch of "))

    await wait_for("the operator has noticed", noticed)
    assert (await cluster.probe("healthz"))[0] == 200
    await wire.connect()
    await cluster.until_running("demo-s0-a1")
    assert cluster.process is not None
    assert cluster.process.returncode is None
    await wire.cut()


async def test_without_kuberay_a_run_says_so_and_can_still_be_deleted(cluster: Cluster) -> None:
    """Nothing of the operator waits for a kind that is not served; it starts without it, too."""
    await cluster.kill_operator()
    for crd in kuberay_crds():
        await cluster.kube.delete(CRDS, None, crd["metadata"]["name"])

    async def removed() -> bool:
        names = [crd["metadata"]["name"] for crd in kuberay_crds()]
        return not any([await cluster.kube.find(CRDS, None, name) for name in names])

    await wait_for("KubeRay's CRDs are gone", removed)
    try:
        await cluster.start_operator()
        await cluster.create_run(stages=[TRAIN])

        def told(run: Object) -> bool:
            conditions = run.get("status", {}).get("conditions", [])
            return any(c["type"] == "Progressing" and c["reason"] == "KubeRayNotFound" for c in conditions)

        await cluster.until("KubeRayNotFound", told)
        await cluster.kube.delete(RUNS, cluster.namespace, "demo")
        await wait_for("the run is gone", cluster.gone)
    finally:
        await install_kuberay_crds(cluster.kube)


@pytest.fixture
def deep() -> Iterator[dict[str, Any]]:
    """A template three times as deep as Python reads by itself; the API server takes 10,000 levels, and seconds for
    them. Until all else is gone, the test can read it too."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(RECURSION_LIMIT)
    template: dict[str, Any] = {}
    for _ in range(3000):
        template = {"a": template}
    yield template
    sys.setrecursionlimit(before)


def test_objects_nested_as_deeply_as_the_api_server_allows_fit_into_a_thread_s_stack() -> None:
    """Beyond its stack, C code ends the process without a word. A thread has the least."""
    program = """
import json, sys, threading
from deepcoder_operator.__main__ import RECURSION_LIMIT
from deepcoder_operator.kube.cache_transform import trim_for_cache
from deepcoder_operator.kube.resources import POOLS
def handle():
    spec = '{"a":' * 10_000 + "{}" + "}" * 10_000
    objects = [json.loads('{"metadata": {"name": "deep"}, "spec": %s}' % spec) for _ in range(2)]
    kept = trim_for_cache(POOLS, objects[0])
    assert trim_for_cache(POOLS, objects[1], kept)["spec"] is kept["spec"]
    print(len(json.dumps(kept)))
sys.setrecursionlimit(RECURSION_LIMIT)
threading.stack_size(4 << 20)
thread = threading.Thread(target=handle)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 60_000


async def test_objects_nested_more_deeply_than_python_reads_by_itself_end_no_operator(
    deep: dict[str, Any], cluster: Cluster
) -> None:
    """Anybody who may create a run or a pool writes its templates. At Python's own limit, reading one of these would
    raise in the watch of all tenants' objects, and again after each restart."""
    meta = {"name": "deep", "namespace": cluster.namespace}
    await cluster.kube.create(
        {"apiVersion": API_VERSION, "kind": POOLS.kind, "metadata": meta, "spec": {"template": deep}}
    )
    cluster.name = "deep"
    await cluster.create_run(stages=[TRAIN | {"resources": {"head": {"template": deep}}}])
    run = await cluster.until_reason("Accepted", "TemplateMalformed")
    told = next(c["message"] for c in run["status"]["conditions"] if c["type"] == "Accepted")
    assert told.startswith("spec.stages[short].resources.head.template is nested more than")

    async def refused() -> bool:
        found = (await cluster.kube.get(POOLS, cluster.namespace, "deep")).get("status") or {}
        return any(c["reason"] == "InvalidTemplate" for c in found.get("conditions") or ())

    await wait_for("the pool says so too", refused)
    cluster.name = "demo"
    await cluster.create_run(stages=[TRAIN])
    await cluster.until_running("demo-s0-a1")
    assert cluster.process is not None
    assert cluster.process.returncode is None
    await cluster.kill_operator()
    await cluster.start_operator()
    await cluster.finish("demo-s0-a1")
    await cluster.until_phase("Complete")
    log = (cluster.directory / "operator.log").read_text()
    assert "the watch of DeepCoderRuns has ended" not in log, "kopf reads the objects too"
    assert "Traceback" not in log
