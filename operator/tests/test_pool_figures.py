"""A pool's figures while its objects are refused: its judges work as before, so they are not told as idle."""

from __future__ import annotations

import pytest
from pool_passes import Harness

from deepcoder_operator.domain.pool_plan import JudgeLoad, JudgePod
from deepcoder_operator.kube import errors
from deepcoder_operator.sandbox.capacity import CapacityPoller


async def test_figures_of_judges_that_serve_are_told_though_the_pools_service_may_not_be_applied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An autoscaler and the alerts go by them."""
    harness, load = Harness(), JudgeLoad(4, 3, 7, 9.0)

    async def poll(pool: str, pods: list[JudgePod], token: str) -> dict[str, JudgeLoad]:
        return {p.uid: load for p in pods if p.ready and token}

    def figures() -> list[int]:
        names = ("slots", "busySlots", "queueDepth", "longestWaitSeconds")
        return [harness.pool["status"].get(name, 0) for name in names]

    monkeypatch.setattr(CapacityPoller, "poll", staticmethod(poll))
    harness.edit(minReplicas=1, maxReplicas=1)
    harness.api.quota = 1
    await harness.passes(1)
    (pod,) = harness.live()
    harness.change(pod, {"conditions": [{"type": "Ready", "status": "True"}]})
    await harness.passes(1)
    assert figures() == [4, 3, 7, 9]
    harness.api.forbidden, harness.now = "Service", harness.now + 60
    for load in (JudgeLoad(4, 2, 0, 0.0), JudgeLoad(4, 4, 1, 5.0)):
        with pytest.raises(errors.Forbidden):
            await harness.passes(1)
        assert harness.accepted() == ("False", "Forbidden")
        assert figures() == [load.slots, load.busy, load.queued, load.longest_wait]
        harness.now += 60
    harness.reconciler._memory.clear()  # as a restart does
    with pytest.raises(errors.Forbidden):
        await harness.passes(1)
    assert figures() == [4, 4, 1, 5], "without the token they are as they were last known"
    harness.change(pod, {})
    with pytest.raises(errors.Forbidden):
        await harness.passes(1)
    assert figures() == [0, 0, 0, 0], "no judge serves"
