"""What waits for a busy API server waits once, and nothing that was begun goes on after an error."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from carry_out_world import Harness as CarryOut
from observe_harness import Harness as Observe
from plan_world import make_run

from deepcoder_operator.kube.at_once import at_once


async def test_results_come_in_order_and_requests_are_under_way_together() -> None:
    all_there = asyncio.Barrier(3)

    async def ask(number: int) -> int:
        async with asyncio.timeout(5):
            await all_there.wait()
        return number

    assert await at_once(ask(n) for n in (3, 1, 2)) == [3, 1, 2]


async def test_the_first_error_is_raised_once_all_have_ended() -> None:
    ended: list[str] = []

    async def ask(name: str, seconds: float, error: Exception | None) -> None:
        await asyncio.sleep(seconds)
        ended.append(name)
        if error is not None:
            raise error

    requests = [
        ask("a", 0.02, None),
        ask("b", 0.01, ValueError("b")),
        ask("c", 0.0, KeyError("c")),
        ask("d", 0.03, None),
    ]
    with pytest.raises(ValueError, match="b"):
        await at_once(requests)
    assert ended == ["c", "b", "a", "d"]


@pytest.mark.parametrize("kinds", [("ServiceAccount", "NetworkPolicy"), ("ConfigMap",)])
async def test_two_objects_that_do_not_need_each_other_are_made_at_once(kinds: tuple[str, ...]) -> None:
    harness, both = CarryOut(), asyncio.Barrier(2)
    create = harness.api.create

    async def slow(obj: dict[str, Any], **settings: Any) -> dict[str, Any]:
        if obj["kind"] in kinds:
            async with asyncio.timeout(5):
                await both.wait()
        return await create(obj, **settings)

    harness.api.create = slow  # type: ignore[method-assign]
    assert await harness.carry_out(harness.make) is None


async def test_names_that_a_run_needs_are_looked_up_at_once() -> None:
    harness, names = Observe(), asyncio.Barrier(4)
    find = harness.api.find

    async def slow(resource: Any, namespace: str, name: str) -> Any:
        async with asyncio.timeout(5):
            await names.wait()
        return await find(resource, namespace, name)

    harness.api.find = slow  # type: ignore[method-assign]
    assert (await harness.look(make_run())).refusal is None
