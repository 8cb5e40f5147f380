"""All that a leader has sent comes once more when another leads: the run goes on as if nothing had been.

So late may a write come that a process was at when it was stopped, which nothing can exclude (`kube/session.py`), or
that a network has held back.
"""

from __future__ import annotations

import pytest
from loop_world import Cluster, wait_for
from operator_lives import lives_in
from run_manifests import TRAIN

from deepcoder_operator.kube.resources import CONFIGMAPS, EVENTS, NETWORK_POLICIES, POOLS, RAYJOBS

pytestmark = [pytest.mark.apiserver, pytest.mark.s3]

FIRST, SECOND = "demo-s0-a1", "demo-s0-a2"
EDITED = [{"ports": [{"port": 1}]}]

HARMLESS = {
    f"POST configmaps {FIRST}",
    f"POST rayjobs {FIRST}",  # made once more, and deleted as a stray, with the one that it mounts
    "POST tokenreviews",
    *(f"PATCH {kind} demo-sandbox-judge" for kind in ("services", "networkpolicies", "poddisruptionbudgets")),
}
"""What is not refused. Around the pool it says what is there already, or the leader applies its own again."""


async def test_all_that_a_leader_has_written_may_come_once_more_late(site: Cluster) -> None:
    async with lives_in(site) as lives:
        first = await lives.begin()
        s3 = {"endpoint": lives.s3.url}
        await site.create_run(stages=[TRAIN], failurePolicy={"backoff": {"initialSeconds": 0}}, s3=s3)
        await site.until_running(FIRST)
        await site.standin.leave(FIRST, 1, "Crashed")
        await site.until_running(SECOND)

        async def judged() -> bool:
            pool = await site.kube.get(POOLS, site.namespace, "demo-sandbox")
            return bool((pool.get("status") or {}).get("replicas"))

        await wait_for("its pool has judges", judged)
        first.end()
        second = await lives.begin()

        async def leads() -> bool:
            return any("/leases/" in request.path for request, _ in second.proxy.changes)

        await wait_for("another one leads", leads)
        # What the first one would apply is not what there is by now.
        edit = {"spec": {"egress": EDITED}}
        await site.kube.patch(NETWORK_POLICIES, site.namespace, "demo-trainer", edit)
        job = await site.kube.get(RAYJOBS, site.namespace, SECOND)

        answers = [*await first.proxy.send_again(), *await lives.s3.send_again()]
        assert len(answers) > 25, "all of it"
        done = {label for label, status in answers if status < 300}
        assert f"POST rayjobs {FIRST}" in done, "it was gone, so this is no repetition"
        assert done <= HARMLESS

        async def stray_is_gone() -> bool:
            events, _ = await site.kube.list(EVENTS, site.namespace)
            told = any(e["reason"] == "StrayDeleted" for e in events)
            return told and await site.kube.find(RAYJOBS, site.namespace, FIRST) is None

        await wait_for("the attempt of before is deleted again", stray_is_gone)
        maps, _ = await site.kube.list(CONFIGMAPS, site.namespace, "deepcoder.dev/run=demo")
        assert not [m for m in maps if m["metadata"]["name"].startswith(FIRST)]
        policy = await site.kube.get(NETWORK_POLICIES, site.namespace, "demo-trainer")
        assert policy["spec"]["egress"][0]["ports"][0]["port"] == 1
        now = await site.kube.get(RAYJOBS, site.namespace, SECOND)
        assert now["metadata"]["uid"] == job["metadata"]["uid"]
        await site.finish(SECOND)
        stage = (await site.until_phase("Complete"))["status"]["stages"][0]
        assert (stage["attempts"], stage["failures"]) == (2, 1)
