"""Once no operator runs any more, runs can be deleted all the same: the chart's last hook lets them go."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import chart_account
import pytest
from run_manifests import run_manifest

from deepcoder_contracts.api.run import FINALIZER
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import RUNS
from deepcoder_operator.release import release_runs

pytestmark = pytest.mark.apiserver

OTHER = "example.com/other"


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


async def test_the_command_does_it_with_the_rights_of_the_charts_hook(
    kube: Kube, kubeconfig: Path, helm: str, chart: Path, namespace: str, tmp_path: Path
) -> None:
    await held(kube, namespace, "ours", FINALIZER)
    every = chart_account.render(helm, chart, namespace, {"watchNamespaces": [namespace]}, hooks=True)
    hooks = [o for o in every if o["metadata"]["name"].endswith("-release")]
    (config,) = [o["data"]["config.yaml"] for o in hooks if o["kind"] == "ConfigMap"]
    (tmp_path / "config.yaml").write_text(config)
    async with chart_account.account(kube, kubeconfig, hooks, namespace, tmp_path) as account:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deepcoder_operator", "release", "--config", str(tmp_path / "config.yaml"),
            env={**os.environ, "KUBECONFIG": str(account.kubeconfig)}, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(60):
            _, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert await finalizers(kube, namespace, "ours") == []
