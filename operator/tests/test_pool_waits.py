"""Judges that find no place and are made anew, where they may come to more of them now: nothing has failed."""

from __future__ import annotations

from pool_passes import Harness

from deepcoder_operator.domain.pool_names import LABEL_AVOIDS

UNSCHEDULABLE = {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}


async def test_judges_that_waited_for_a_place_and_are_made_anew_hold_up_no_others() -> None:
    """An hour after a node was avoided there may be ten of them, and programs wait for more."""
    harness = Harness()
    harness.api.quota = 100
    harness.edit(minReplicas=10, maxReplicas=50)
    await harness.passes(1)
    waiting = harness.live()
    for pod in waiting:
        harness.change(pod, UNSCHEDULABLE, **{LABEL_AVOIDS: "required-12345678"})
    await harness.passes(1)
    assert [p["metadata"]["name"] for p in harness.live()] == [f"judges-{i}-{_hash(waiting)}" for i in range(10, 20)]
    harness.edit(minReplicas=20, maxReplicas=50)
    await harness.passes(1)
    assert len(harness.live()) == 20


def _hash(pods: list[dict[str, dict[str, str]]]) -> str:
    return pods[0]["metadata"]["name"].rpartition("-")[2]
