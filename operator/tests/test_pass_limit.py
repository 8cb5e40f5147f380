"""Places for passes: who waits for a bucket leaves its place to others, and has one again before it goes on."""

from __future__ import annotations

import asyncio

from deepcoder_operator.controllers.passes import PassLimit


async def test_pass_that_waits_for_storage_holds_no_place() -> None:
    limit, silence, ended = PassLimit(2), asyncio.Event(), []

    async def dead(i: int) -> None:
        async with limit.place():
            async with limit.aside():
                await silence.wait()
            ended.append(i)

    async def healthy() -> str:
        async with limit.place():
            return "planned"

    waiting = [asyncio.create_task(dead(i)) for i in range(40)]
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        assert await healthy() == "planned"
    silence.set()
    await asyncio.gather(*waiting)
    assert sorted(ended) == list(range(40))


async def test_no_more_passes_work_than_there_are_places_when_all_come_back_at_once() -> None:
    limit, answers, now, most = PassLimit(2), asyncio.Event(), 0, 0

    async def one() -> None:
        nonlocal now, most
        async with limit.place():
            async with limit.aside():
                await answers.wait()
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.001)
            now -= 1

    tasks = [asyncio.create_task(one()) for _ in range(20)]
    await asyncio.sleep(0.01)
    answers.set()
    await asyncio.gather(*tasks)
    assert most == 2


async def test_whoever_holds_no_place_gives_none_away() -> None:
    limit, held = PassLimit(1), asyncio.Event()

    async def holder() -> None:
        async with limit.place():
            await held.wait()

    holding = asyncio.create_task(holder())
    await asyncio.sleep(0)
    async with limit.aside():
        second = asyncio.create_task(holder())
        await asyncio.sleep(0.01)
        assert limit._places.locked()
    held.set()
    await asyncio.gather(holding, second)


async def test_pass_that_is_cancelled_while_it_waits_costs_no_place() -> None:
    limit = PassLimit(1)

    async def dead() -> None:
        async with limit.place(), limit.aside():
            await asyncio.Event().wait()

    task = asyncio.create_task(dead())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(60), limit.place():
        assert limit._places.locked()
    assert not limit._places.locked()


async def test_pass_that_is_cancelled_again_while_it_waits_to_come_back_gives_no_place_too_many() -> None:
    limit, held = PassLimit(1), asyncio.Event()

    async def dead() -> None:
        async with limit.place(), limit.aside():
            await asyncio.Event().wait()

    async def holder() -> None:
        async with limit.place():
            await held.wait()

    task = asyncio.create_task(dead())
    await asyncio.sleep(0)
    holding = asyncio.create_task(holder())
    await asyncio.sleep(0)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.gather(task, return_exceptions=True)
    assert limit._places.locked(), "the only place is still held"
    held.set()
    await holding
    async with asyncio.timeout(60), limit.place():
        assert limit._places.locked(), "and there is only one"
