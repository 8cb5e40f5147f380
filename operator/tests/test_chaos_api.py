"""An API server at its worst, between it and the operator a proxy: the run goes to its end as if nothing had been.

Watches are dropped, told twice, called too old, or silent; everything is refused with 429 for a while; every status
write meets a conflict. Nothing is made twice, no failure is counted that was none.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from itertools import chain, repeat
from pathlib import Path
from urllib.parse import urlsplit

import chart_account
import control_plane
import pytest
from crd_serving import established
from kill_scenarios import CrashAndComplete, SuspendAndDelete
from loop_world import Cluster, cluster_in
from operator_lives import Life, Lives, lives_in
from s3_server import S3Server

from deepcoder_contracts.api import run as run_api
from deepcoder_contracts.api import sandboxpool
from deepcoder_contracts.api.schema import custom_resource_definition
from deepcoder_operator.controllers import watch
from deepcoder_operator.kube import client, informer
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.errors import Unavailable
from deepcoder_operator.kube.resources import Resource

pytestmark = [pytest.mark.apiserver, pytest.mark.s3]

SECONDS = 180.0

Fault = Callable[[Lives], Awaitable[None]]
"""Works on the proxy of whatever operator lives: a busy machine may cost one its Lease, and another begins."""


async def survive(site: Cluster, fault: Fault, kind: type[CrashAndComplete | SuspendAndDelete]) -> list[Life]:
    """A run goes to its end while the fault is at work; an operator that ends is begun again, as a kubelet does."""
    async with lives_in(site) as lives:
        scenario = kind(site)
        life = await lives.begin()
        work = asyncio.create_task(fault(lives))
        try:
            await scenario.begin(lives.s3.url)
            async with asyncio.timeout(SECONDS):
                ended = False
                while not ended:
                    if life.over:
                        storm = life.proxy.storm_until
                        life = await lives.begin()
                        life.proxy.storm_until = storm
                    with suppress(Unavailable):  # the server is away for the test, too
                        ended = await scenario.ended()
                    await asyncio.sleep(0.05)
            await scenario.check()
        except TimeoutError:
            lived = f"{len(lives.all)} operators wrote: {lives.labels}"
            raise AssertionError(f"the run does not end; {lived}; {scenario.progress()}") from None
        else:
            assert not work.done() or work.exception() is None, work
        finally:
            work.cancel()
        return lives.all


def writes(lives: Lives) -> int:
    """How much all operators together have written."""
    return sum(len(life.proxy.writes) for life in lives.all)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that never stops makes informers wait for half a minute before each list: a run would take minutes."""
    monkeypatch.setattr(informer, "FIRST_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(informer, "MAX_PAUSE_SECONDS", 0.5)


@pytest.mark.usefixtures("short_pauses")
async def test_watches_that_break_each_second_lose_nothing(site: Cluster) -> None:
    broken = 0

    async def fault(lives: Lives) -> None:
        nonlocal broken
        while True:
            await asyncio.sleep(1)
            broken += lives.proxy.drop_watches()

    await survive(site, fault, CrashAndComplete)
    assert broken > 5


@pytest.mark.long
async def test_events_that_come_twice_do_nothing_twice(site: Cluster) -> None:
    async def fault(lives: Lives) -> None:
        while True:
            lives.proxy.repeats_events = True
            await asyncio.sleep(0.05)

    await survive(site, fault, CrashAndComplete)


@pytest.mark.usefixtures("short_pauses")
async def test_watches_whose_version_is_too_old_are_begun_anew(site: Cluster) -> None:
    async def fault(lives: Lives) -> None:
        for seconds in chain((1.0, 1.0), repeat(2.0)):  # more than once, however soon the run is at its end
            lives.proxy.expired_watches = 3
            lives.proxy.drop_watches()
            await asyncio.sleep(seconds)

    lives = await survive(site, fault, CrashAndComplete)
    assert sum(life.proxy.refused for life in lives) > 3


@pytest.mark.long
async def test_watches_that_fall_silent_are_found_out(site: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection stands and tells nothing: only a listing can know."""
    monkeypatch.setattr(client, "WATCH_SILENCE_SECONDS", 2.0)
    monkeypatch.setattr(watch, "RELIST_SECONDS", 2.0)

    async def fault(lives: Lives) -> None:
        while True:
            if lives.proxy.open_watches:
                lives.proxy.silent = True
            await asyncio.sleep(0.05)

    await survive(site, fault, CrashAndComplete)


async def test_conflict_of_every_status_write_costs_a_plan_and_nothing_else(site: Cluster) -> None:
    conflicts: set[str] = set()

    async def fault(lives: Lives) -> None:
        while True:
            lives.proxy.conflicts = conflicts
            await asyncio.sleep(0.05)

    await survive(site, fault, SuspendAndDelete)
    assert len(conflicts) > 8


@pytest.mark.parametrize("seconds", [4.0, pytest.param(60.0, marks=pytest.mark.long)])
async def test_storm_of_429_passes(site: Cluster, seconds: float) -> None:
    """A storm that is longer than the lease ends the operator, which is begun again until it is over."""

    async def fault(lives: Lives) -> None:
        while writes(lives) < 6:
            await asyncio.sleep(0.01)
        lives.proxy.storm_until = time.monotonic() + seconds

    began = time.monotonic()
    lives = await survive(site, fault, CrashAndComplete)
    assert time.monotonic() - began > seconds
    assert sum(life.proxy.refused for life in lives) > 3


def api_server_of(kubeconfig: Path) -> tuple[int, list[str]]:
    """Process and command line of the API server behind a kubeconfig."""
    port = urlsplit(json.loads(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]).port
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = place.read_bytes().decode(errors="replace").split("\0")[:-1]
            if words and words[0].endswith("kube-apiserver") and f"--secure-port={port}" in words:
                return int(place.parent.name), words
    raise AssertionError(f"no kube-apiserver listens on {port}")


@pytest.mark.long
async def test_api_server_killed_and_started_again_is_outlived(
    helm: str, chart: Path, s3: S3Server, tmp_path: Path, unused_tcp_port_factory: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """SIGKILL, twice in a run; its store lives on. An API server of the test's own, so that no other test sees it."""
    programs = control_plane.programs()
    assert programs is not None
    with control_plane.running(tmp_path, programs) as kubeconfig, ExitStack() as stack:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        kube = await Kube.connect()
        for resource in (run_api.RESOURCE, sandboxpool.RESOURCE):
            await kube.apply(custom_resource_definition(resource))
            await established(kube, f"{resource.plural}.deepcoder.dev")
        namespaces = Resource("", "v1", "namespaces", "Namespace")
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "restarts"}}
        await kube.post(namespaces.path(None), body)
        objects = chart_account.render(helm, chart, "restarts")
        (tmp_path / "site").mkdir()

        async def restarts(lives: Lives) -> None:
            for count in (8, 25):
                while writes(lives) < count:
                    await asyncio.sleep(0.01)
                pid, command = api_server_of(kubeconfig)
                os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(2)
                log = stack.enter_context((tmp_path / "again.log").open("ab"))
                again = subprocess.Popen(command, stdout=log, stderr=log)
                stack.callback(again.wait, 10)
                stack.callback(again.kill)

        try:
            async with (
                chart_account.account(kube, kubeconfig, objects, "restarts", tmp_path) as account,
                cluster_in(kube, account, s3, tmp_path / "site", unused_tcp_port_factory) as site,
            ):
                lives = await survive(site, restarts, CrashAndComplete)
                assert lives
        finally:
            await kube.close()
