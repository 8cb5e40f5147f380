"""Once no operator runs any more, runs can be deleted all the same: the chart's hook lets them go, or its how-to."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import chart_account
import pytest
from chart_account import Account
from loop_world import Cluster, wait_for
from operator_template import said_by
from run_manifests import run_manifest

from deepcoder_contracts.api.run import FINALIZER
from deepcoder_operator.kube import errors, lease
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import LEASES, RUNS, Resource
from deepcoder_operator.release import release_runs
from devcluster import tools
from devcluster.config import cache_root

pytestmark = [pytest.mark.apiserver, pytest.mark.early]

OTHER = "example.com/other"
ROOT = Path(__file__).resolve().parents[2]


async def held(kube: Kube, namespace: str, name: str, *finalizers: str) -> None:
    """A run with finalizers."""
    run = run_manifest(namespace, name)
    run["metadata"]["finalizers"] = list(finalizers)
    await kube.create(run)


async def finalizers(kube: Kube, namespace: str, name: str) -> list[str]:
    return list((await kube.get(RUNS, namespace, name))["metadata"].get("finalizers") or [])


async def test_runs_are_let_go_and_what_others_hold_stays(kube: Kube, namespace: str) -> None:
    await held(kube, namespace, "ours", FINALIZER)
    await held(kube, namespace, "both", OTHER, FINALIZER)
    await held(kube, namespace, "leaving", FINALIZER)
    await kube.delete(RUNS, namespace, "leaving")
    assert await finalizers(kube, namespace, "leaving") == [FINALIZER], "nobody lets it go"
    assert await release_runs(kube, [namespace]) == []
    assert await finalizers(kube, namespace, "ours") == []
    assert await finalizers(kube, namespace, "both") == [OTHER]
    assert await kube.find(RUNS, namespace, "leaving") is None
    assert await release_runs(kube, [namespace]) == [], "a second time there is nothing to do"
    await kube.patch(RUNS, namespace, "both", {"metadata": {"finalizers": []}})


async def test_a_run_that_cannot_be_read_again_is_told_and_the_others_are_let_go(
    kube: Kube, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        await held(kube, namespace, name, FINALIZER)
    patch, get = kube.patch, kube.get

    async def changed_meanwhile(resource: Resource, where: str | None, name: str, change: Object) -> Object:
        if name == "first":
            raise errors.Conflict("the object has been modified", 409)
        return await patch(resource, where, name, change)

    async def away(*_: Any) -> Object:
        raise errors.Unavailable("no answer in 15 s")

    monkeypatch.setattr(kube, "patch", changed_meanwhile)
    monkeypatch.setattr(kube, "get", away)
    assert await release_runs(kube, [namespace]) == [f"{namespace}/first: no answer in 15 s"]
    monkeypatch.setattr(kube, "get", get)
    assert await finalizers(kube, namespace, "second") == []


async def test_no_more_of_a_run_is_kept_in_memory_than_is_read(
    kube: Kube, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chart gives its hook a quarter of a gigabyte, and runs that are over stay for years."""
    await held(kube, namespace, "ours", FINALIZER)
    listed = kube.list
    sizes: list[int] = []

    async def measured(*arguments: Any, **options: Any) -> tuple[list[Object], str]:
        runs, version = await listed(*arguments, **options)
        sizes.extend(len(json.dumps(run)) for run in runs)
        return runs, version

    monkeypatch.setattr(kube, "list", measured)
    assert await release_runs(kube, [namespace]) == []
    assert len(sizes) == 1
    assert sizes[0] < 500


async def released(account: Account, config: Path) -> str:
    """What the chart's hook says that it did, with the operator's rights."""
    environment = os.environ | {"KUBECONFIG": str(account.kubeconfig)}
    return await said_by(("release", "--config", str(config), "--take-lease"), environment, config.parent / "hook.log")


async def lease_of(kube: Kube, account: Account) -> Object:
    config = account.config
    return dict((await kube.get(LEASES, config["namespace"], config["lease"]))["spec"])


@pytest.mark.s3
async def test_an_operator_that_works_lets_runs_be_once_the_hook_has_its_lease(cluster: Cluster) -> None:
    await cluster.create_run(suspend=True)
    await cluster.until_phase("Suspended")
    await cluster.until("it is held", lambda run: run["metadata"].get("finalizers") == [FINALIZER])
    hook = asyncio.create_task(released(cluster.account, cluster.directory / "operator.yaml"))
    assert cluster.process is not None
    async with asyncio.timeout(60):
        assert await cluster.process.wait() != 0, "it leads no more, and says so"

    await cluster.start_operator()  # as the kubelet does, while the hook waits for others that it cannot see
    await wait_for("it is ready again", cluster.ready)
    await hook
    await cluster.kube.patch(RUNS, cluster.namespace, "demo", {"metadata": {"labels": {"touched": "x"}}})
    await asyncio.sleep(2)
    assert await finalizers(cluster.kube, cluster.namespace, "demo") == [], "a candidate holds no run"
    spec = await lease_of(cluster.kube, cluster.account)
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"]) == ("uninstallation", 30)
    sooner = {"spec": {"leaseDurationSeconds": 1}}
    await cluster.kube.patch(LEASES, cluster.account.config["namespace"], cluster.account.config["lease"], sooner)
    await cluster.until(
        "one that is installed again works", lambda run: run["metadata"].get("finalizers") == [FINALIZER]
    )


async def test_a_watched_namespace_that_is_gone_keeps_nothing_from_being_uninstalled(
    kube: Kube, kubeconfig: Path, helm: str, chart: Path, namespace: str, tmp_path: Path
) -> None:
    await held(kube, namespace, "ours", FINALIZER)
    values = {"watchNamespaces": ["gone-since", namespace]}
    every = chart_account.render(helm, chart, namespace, values, hooks=True)
    objects = [o for o in every if o["metadata"].get("namespace") == namespace]
    (config,) = [o["data"]["config.yaml"] for o in objects if o["kind"] == "ConfigMap"]
    (tmp_path / "config.yaml").write_text(config)
    async with chart_account.account(kube, kubeconfig, objects, namespace, tmp_path) as account:
        said = await released(account, tmp_path / "config.yaml")
    assert "namespace gone-since is gone or may not be accessed" in said
    assert await finalizers(kube, namespace, "ours") == []


async def test_the_lease_is_taken_in_spite_of_a_renewal_meanwhile_and_others_wait(
    kube: Kube, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0)
    leader = lease.Election(kube, namespace, "the-lease", "operator-a", time.monotonic)
    await leader.turn()
    assert leader.leads
    patch, renewals = kube.patch, iter(("once",))

    async def renewed_first(*arguments: Any, **options: Any) -> Object:
        for _ in renewals:
            await leader.turn()
        return await patch(*arguments, **options)

    monkeypatch.setattr(kube, "patch", renewed_first)
    await lease.take_away(kube, namespace, "the-lease", "uninstallation", 300)
    with pytest.raises(errors.LeadershipLost, match="held by uninstallation"):
        await leader.turn()
    other = lease.Election(kube, namespace, "the-lease", "operator-b", time.monotonic)
    await other.turn()
    assert not other.leads


async def test_the_command_of_the_docs_frees_runs_that_an_operator_has_left(
    kube: Kube, kubeconfig: Path, namespace: str
) -> None:
    """As they are after somebody has deleted the operator's namespace: nothing of ours is left to do it."""
    for name in ("leaving", "staying"):
        await held(kube, namespace, name, FINALIZER)
    await kube.delete(RUNS, namespace, "leaving")
    page = (ROOT / "docs/howto/upgrading.md").read_text()
    (command,) = re.findall(r"```sh\n(kubectl get dcr -A .*?)```", page, re.DOTALL)
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "PATH": f"{tools.fetch(cache_root())}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert await kube.find(RUNS, namespace, "leaving") is None
    assert await finalizers(kube, namespace, "staying") == []
