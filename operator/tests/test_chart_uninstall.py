"""`helm upgrade` and `helm uninstall` on an API server of its own, whose CRDs come and go with the release.

There is no node: the hook's Job is carried out here, by the command and the account that it names, and is then said to
be complete. With a kubelet, and with an operator that works meanwhile, tests/e2e/test_e2e_uninstall.py does the same.

Each test has namespaces of its own, which are deleted with it and seen to be gone when all tests are done: a namespace
takes five seconds at the least, and a finalizer that was left would hold it for ever.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import chart_account
import control_plane
import pytest
import release_before
from crd_serving import established
from operator_template import said_by
from run_manifests import run_manifest
from waits import WAIT_SECONDS

from deepcoder_contracts.api.run import FINALIZER
from deepcoder_operator.kube import access, errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import CONFIGMAPS, CRDS, POOLS, RUNS, Resource

pytestmark = [pytest.mark.apiserver, pytest.mark.early]

JOBS = Resource("batch", "v1", "jobs", "Job")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace")
NAMES = ("deepcoderruns.deepcoder.dev", "sandboxpools.deepcoder.dev")
NOW = "2026-01-01T00:00:00Z"
DONE = {
    "startTime": NOW,
    "completionTime": NOW,
    "succeeded": 1,
    "conditions": [
        {"type": kind, "status": "True", "lastTransitionTime": NOW} for kind in ("SuccessCriteriaMet", "Complete")
    ],
}


@dataclass(frozen=True)
class Site:
    """An API server, helm, and a place for files."""

    kube: Kube
    kubeconfig: Path
    helm_program: str
    chart: Path
    directory: Path
    home: str
    """The release's namespace."""
    team: str
    """A namespace with runs."""

    async def helm(self, *arguments: str | Path) -> str:
        """What it says."""
        process = await asyncio.create_subprocess_exec(
            self.helm_program, *map(str, arguments), "--namespace", self.home, "--kubeconfig", str(self.kubeconfig),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(200):
            said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()
        return said.decode()

    async def install(self, *values: str, chart: Path | None = None) -> None:
        settings = [word for value in values for word in ("--set", value)]
        await self.helm("install", "deepcoder", chart or self.chart, "--set", "replicas=1", *settings)
        await self.prepared()

    async def prepared(self) -> None:
        """Wait until the API server answers from its caches, which it prepares at the first question.

        A CRD that was deleted earlier failed with "storage is (re)initializing", and was still there 150 seconds later.
        """
        for name, resource in zip(NAMES, (RUNS, POOLS), strict=True):
            await established(self.kube, name)
            await self.kube.read(resource.path(None), {"resourceVersion": "0"})

    async def uninstall(self) -> None:
        """With `--wait`, while the hook's Job is carried out."""
        hook = asyncio.create_task(self._carry_out())
        try:
            await self.helm("uninstall", "deepcoder", "--wait", "--timeout", "150s")
        finally:
            hook.cancel()
        await asyncio.gather(hook, return_exceptions=True)
        assert hook.cancelled() or hook.exception() is None, hook.exception()

    async def held(self, namespace: str) -> Object:
        """A run that an operator has taken on."""
        run = run_manifest(namespace, "demo")
        run["metadata"]["finalizers"] = [FINALIZER]
        return await self.kube.create(run)

    async def knows_curation(self) -> bool:
        """Whether the CRD that is served is of a release that has `dataset.curation`."""
        crd = await self.kube.get(CRDS, None, NAMES[0])
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        return "curation" in schema["properties"]["dataset"]["properties"]

    async def served(self) -> set[str]:
        return {crd["metadata"]["name"] for crd in (await self.kube.list(CRDS, None))[0]} & {*NAMES}

    async def _carry_out(self) -> None:
        while not (jobs := (await self.kube.list(JOBS, self.home))[0]):
            await asyncio.sleep(0.1)
        (job,) = jobs
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        (mounted,) = [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume]
        config = (await self.kube.get(CONFIGMAPS, self.home, mounted))["data"]["config.yaml"]
        (self.directory / "config.yaml").write_text(config)
        token = await chart_account.token(self.kube, self.home, pod["serviceAccountName"])
        account = self.directory / "hook.kubeconfig"
        account.write_text(json.dumps(chart_account.with_token(self.kubeconfig, token)))
        words = [word.replace("/etc/deepcoder-operator", str(self.directory)) for word in container["args"]]
        await said_by(words, os.environ | {"KUBECONFIG": str(account)}, self.directory / "hook.log")
        await self.kube.patch(JOBS, self.home, job["metadata"]["name"], {"status": DONE}, subresource="status")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    paths = control_plane.programs()
    if paths is None:
        pytest.skip("the API server has not been built: run `python -m devcluster build`")
    with control_plane.running(tmp_path_factory.mktemp("uninstall"), paths) as kubeconfig:
        yield kubeconfig
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", str(kubeconfig))
            asyncio.run(nothing_is_held())


async def nothing_is_held() -> None:
    """Of all that was deleted nothing stays."""
    kube = Kube(access.find(), deadline=WAIT_SECONDS)
    try:
        async with asyncio.timeout(120):
            while left := [o for o in (await kube.list(NAMESPACES, None))[0] if o["metadata"].get("deletionTimestamp")]:
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"held: {left}") from None
    finally:
        await kube.close()


async def gone(kube: Kube, resource: Resource, name: str) -> None:
    """Delete it, and wait until it is not there: a finalizer that stays is an error."""
    try:
        await kube.delete(resource, None, name)
    except errors.NotFound:
        return
    async with asyncio.timeout(120):
        while await kube.find(resource, None, name) is not None:
            await asyncio.sleep(0.2)


@pytest.fixture
async def site(
    server: Path, helm: str, chart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    monkeypatch.setenv("KUBECONFIG", str(server))
    for kind in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"HELM_{kind}_HOME", str(tmp_path / "helm" / kind))
    kube = Kube(access.find(), deadline=WAIT_SECONDS)
    try:
        home, team = (f"{name}-{uuid.uuid4().hex[:8]}" for name in ("deepcoder", "team"))
        for name in (home, team):
            await kube.post(NAMESPACES.path(None), {"kind": "Namespace", "metadata": {"name": name}})
        yield Site(kube, server, helm, chart, tmp_path, home, team)
        for name in NAMES:
            await gone(kube, CRDS, name)
        for name in (home, team):
            await kube.delete(NAMESPACES, None, name)
    finally:
        await kube.close()


async def finalizers(kube: Kube, namespace: str) -> list[str]:
    found: Object = (await kube.get(RUNS, namespace, "demo"))["metadata"]
    return list(found.get("finalizers") or [])


async def test_crds_that_stay_keep_their_runs_which_nothing_holds(site: Site) -> None:
    await site.install()
    await site.held(site.team)
    await site.uninstall()
    assert await site.served() == {*NAMES}
    assert await finalizers(site.kube, site.team) == []


async def test_crds_that_go_with_the_release_wait_for_no_run(site: Site) -> None:
    await site.install("crds.keep=false")
    await site.held(site.team)
    await site.uninstall()
    assert await site.served() == set()


async def test_crds_may_be_gone_already(site: Site) -> None:
    await site.install()
    for name in NAMES:
        await gone(site.kube, CRDS, name)
    await site.uninstall()


async def test_a_namespace_is_watched_no_more_and_may_be_gone(site: Site) -> None:
    other = f"{site.team}-b"
    await site.kube.post(NAMESPACES.path(None), {"kind": "Namespace", "metadata": {"name": other}})
    await site.install(f"watchNamespaces={{{site.team},{other}}}", "rbac.aggregate=false")
    await site.held(site.team)
    await site.held(other)
    fewer = ("--reset-then-reuse-values", "--set", f"watchNamespaces={{{site.team}}}")
    notes = await site.helm("upgrade", "deepcoder", site.chart, *fewer)
    assert f"Not watched any more: {other}. Nobody supervises the runs there" in notes
    page = (Path(__file__).resolve().parents[2] / "docs/howto/upgrading.md").read_text()
    (text,) = re.findall(r"echo '(watchNamespaces: .*)' > left-out.yaml\n", page)
    (words,) = re.findall(r"deepcoder-operator (.* left-out.yaml)\n", page)
    (site.directory / "left-out.yaml").write_text(text.replace("team-blue", other))
    command = [str(site.directory / word) if word.endswith(".yaml") else word for word in words.split()]
    await site.kube.delete(NAMESPACES, None, other)
    assert await finalizers(site.kube, other) == [FINALIZER], "nobody is left who lets it go"
    await said_by(command, dict(os.environ), site.directory / "release.log")
    assert await finalizers(site.kube, site.team) == [FINALIZER], "it is watched"
    notes = await site.helm("upgrade", "deepcoder", site.chart, *fewer)
    assert "Not watched any more" not in notes
    await gone(site.kube, NAMESPACES, other)
    await site.uninstall()
    assert await finalizers(site.kube, site.team) == []


async def test_the_release_before_is_upgraded_with_its_crds_and_its_runs_stay_as_they_are(site: Site) -> None:
    before = release_before.unpack(site.directory / "before", release_before.CHART)
    await site.install(chart=before / release_before.CHART)
    assert not await site.knows_curation()
    made = await site.held(site.team)

    await site.helm("upgrade", "deepcoder", site.chart, "--reset-then-reuse-values")
    await site.prepared()

    assert await site.knows_curation()
    run = await site.kube.get(RUNS, site.team, "demo")
    kept = ("uid", "generation", "finalizers")
    assert [run["metadata"][k] for k in kept] == [made["metadata"][k] for k in kept]
    assert run["spec"] | {"dataset": made["spec"]["dataset"]} == made["spec"]
    assert run["spec"]["dataset"] == made["spec"]["dataset"] | {"curate": False}, "a default that has come since"
    await site.uninstall()
    assert await finalizers(site.kube, site.team) == []
