"""Two operators on a real API server under the rights of the chart: the leader fails, the other takes over in time.

Nothing is shortened: the Lease is the deployed one's, and the audit log shows who sent what. Whether it was in time is
read in the Lease, where both note when they renewed and took it, less the time for which a busy machine kept the
standby from looking at it. How soon a run starts then, is the machine's matter. A leader is frozen where its loop
waits. Between its last look at its Lease and the system call that sends it would be at one write, which goes out when
it wakes and does no harm: `test_late_writes`.
"""

from __future__ import annotations

import asyncio
import json
import platform
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import api_audit
import pytest
from loop_world import Cluster, Wire, wait_for
from operator_template import Running
from run_manifests import TRAIN

from deepcoder_operator.kube.client import Object
from deepcoder_operator.kube.lease import LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS
from deepcoder_operator.kube.resources import LEASES, PODS

pytestmark = [pytest.mark.apiserver, pytest.mark.s3, pytest.mark.early]

FAILOVER_SECONDS = 20
"""From the last renewal of who led to the first of who follows; a Lease is looked at each `RETRY_SECONDS`."""
_EPOLL = {"x86_64": (232, 281), "aarch64": (22,)}[platform.machine()]
"""Numbers of the system calls in which a loop waits."""


async def lease_of(cluster: Cluster) -> Object:
    leases, _ = await cluster.kube.list(LEASES, cluster.namespace)
    return dict(leases[0]["spec"]) if leases else {}


async def holder(cluster: Cluster) -> str:
    return str((await lease_of(cluster)).get("holderIdentity", ""))


async def let_be(cluster: Cluster) -> datetime:
    """When the Lease was renewed last by who can renew it no more."""
    return datetime.fromisoformat((await lease_of(cluster))["renewTime"])


async def follows_in_time(second: Cluster, renewed: datetime, kubeconfig: Path) -> bool:
    """Whether the standby waited for the end of the Lease, and not much longer.

    It looks every `RETRY_SECONDS`, as `test_leader_lease` shows. Longer pauses between two looks are due to the machine
    and do not count.
    """
    taken = datetime.fromisoformat((await lease_of(second))["acquireTime"])
    asked = [r for r in api_audit.requests(kubeconfig, second.account.user) if f"({second.identity})" in r.agent]
    looks = sorted(r.at for r in asked if r.verb == "get" and r.rights[0].resource == LEASES.plural and r.at < taken)
    since = [renewed, *(look for look in looks if look > renewed), taken]
    late = sum(max(0.0, (later - look).total_seconds() - RETRY_SECONDS) for look, later in pairwise(since))
    return LEASE_SECONDS <= (taken - renewed).total_seconds() < FAILOVER_SECONDS + late


async def until_led_by(cluster: Cluster, identity: str) -> None:
    async def led() -> bool:
        return await holder(cluster) == identity

    await wait_for(f"{identity} leads", led)


async def freeze_at_rest(process: Running) -> None:
    """Stop it; once more if its loop was at work. Of a stopped process the kernel tells which call it was in."""
    about = Path(f"/proc/{process.pid}")

    async def stopped() -> bool:
        return (about / "stat").read_text().rpartition(")")[2].split()[0] == "T"

    async def waits() -> bool:
        process.send_signal(signal.SIGSTOP)
        await wait_for("it is stopped", stopped)
        if int((about / "syscall").read_text().split()[0]) in _EPOLL:
            return True
        process.send_signal(signal.SIGCONT)
        return False

    await wait_for("it is frozen at rest", waits)


@pytest.fixture
async def pair(site: Cluster, unused_tcp_port_factory: Callable[[], int]) -> AsyncIterator[tuple[Cluster, Cluster]]:
    """A leader and a standby, both ready, with the deployed Lease."""
    cluster, site.constants = site, {}
    await cluster.start_operator()
    await until_led_by(cluster, cluster.identity)
    directory = cluster.directory / "second"
    directory.mkdir()
    ports = {"port": unused_tcp_port_factory(), "health_port": unused_tcp_port_factory()}
    second = replace(cluster, directory=directory, process=None, tasks=[], identity="operator-b", **ports)
    await second.start_operator()
    try:
        for each in (cluster, second):
            await wait_for(f"{each.identity} is ready", each.ready)
        yield cluster, second
    finally:
        await second.kill_operator()


async def test_killed_leader_is_followed_within_20_seconds(pair: tuple[Cluster, Cluster], kubeconfig: Path) -> None:
    first, second = pair
    await first.kill_operator()
    renewed = await let_be(first)
    await first.create_run(stages=[TRAIN])
    await second.until_running("demo-s0-a1")
    assert await follows_in_time(second, renewed, kubeconfig)
    assert await holder(second) == second.identity
    assert second.standin.seen == ["demo-s0-a1"]


async def test_leader_that_is_frozen_and_wakes_sends_nothing_more_and_ends(
    pair: tuple[Cluster, Cluster], kubeconfig: Path
) -> None:
    """When it wakes it finds news on its watches and passes that are due, all of them meant for another by now."""
    first, second = pair
    assert first.process is not None
    assert second.process is not None
    await first.create_run(stages=[TRAIN], failurePolicy={"backoff": {"initialSeconds": 0}})
    await first.until_running("demo-s0-a1")
    await freeze_at_rest(first.process)
    renewed = await let_be(first)
    await first.kube.delete(PODS, first.namespace, "demo-s0-a1-head", grace_seconds=0)
    await second.until_running("demo-s0-a2")
    assert await follows_in_time(second, renewed, kubeconfig)
    woken = datetime.now(UTC)
    first.process.send_signal(signal.SIGCONT)
    async with asyncio.timeout(60):
        assert await first.process.wait() == 1
    sent = [r for r in api_audit.requests(kubeconfig, first.account.user) if f"({first.identity})" in r.agent]
    assert {r.verb for r in sent} > {"get", "list", "watch", "patch", "update"}, "its requests are known by their agent"
    writes = [f"{r.verb} {r.rights} {r.name}" for r in sent if r.at >= woken and r.verb not in ("get", "list", "watch")]
    assert not writes, f"sent after it woke: {writes}"

    await first.start_operator()
    await wait_for("it is back as a standby", first.ready)
    await first.standin.report("demo-s0-a2", second.port, 5)
    with pytest.raises(AssertionError, match="another one leads"):
        await first.standin.report("demo-s0-a2", first.port, 6)
    version = (await first.kube.list(LEASES, first.namespace))[1]
    second.process.send_signal(signal.SIGTERM)
    await until_led_by(first, first.identity)
    holders = []
    async for _, told in first.kube.watch(LEASES, first.namespace, "", version):
        holders.append(told["spec"]["holderIdentity"])
        if holders[-1] == first.identity:
            break
    assert "" in holders, "it was let go, and not waited for"
    await first.finish("demo-s0-a2")
    run = await first.until_phase("Complete")
    assert await second.process.wait() == 0
    assert first.standin.seen == ["demo-s0-a1", "demo-s0-a2"]
    assert run["status"]["stages"][0]["failures"] == 1


@pytest.mark.long
async def test_outage_that_outlasts_the_lease_ends_the_leader_which_comes_back_and_goes_on(site: Cluster) -> None:
    config = json.loads(site.kubeconfig.read_text())
    server = config["clusters"][0]["cluster"]
    wire = Wire(urlsplit(server["server"]).port or 0)
    await wire.connect()
    server["server"] = f"https://127.0.0.1:{wire.port}"
    site.kubeconfig = site.directory / "kubeconfig-through-a-wire"
    site.kubeconfig.write_text(json.dumps(config))
    site.constants = {}
    await site.start_operator()
    await site.create_run(stages=[TRAIN])
    await site.until_running("demo-s0-a1")
    assert site.process is not None
    await wire.cut()
    async with asyncio.timeout(RENEW_SECONDS + 10):
        assert await site.process.wait() == 1
    assert "no longer leads" in (site.directory / "operator.log").read_text()
    await site.start_operator()
    await asyncio.sleep(2)
    assert site.process.returncode is None, "a candidate waits for the API server"
    await wire.connect()
    await site.finish("demo-s0-a1")
    run = await site.until_phase("Complete")
    assert site.standin.seen == ["demo-s0-a1"]
    assert run["status"]["stages"][0].get("failures", 0) == 0
    await wire.cut()
